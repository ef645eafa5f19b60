"""Do something with each clip in the pool: what one clip raises, a crash or a hang included, costs that clip."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from preprocess.common.errors import Rejected, costs_its_item
from preprocess.common.progress import show_progress
from preprocess.encode.local_pool import TRIES, WorkerDied, run_local
from preprocess.plan.clips import ClipPlan

Result = TypeVar("Result")

_BATCH = 64  # clips per job: a job of one would spend its time in pipes
_MAX_SILENCE_SEC = 300.0


def for_each_clip(
    work: Callable[[ClipPlan], Result],
    clips: Sequence[ClipPlan],
    num_workers: int,
    title: str,
    max_silence_sec: float = _MAX_SILENCE_SEC,
) -> list[Result | Rejected]:
    """What `work` returns for each clip, or why it has nothing, in the order of `clips`.

    clips: those of one file one after another: they go to one worker, which keeps what it has read of the file.
    title: of the progress bar. max_silence_sec: a worker that takes longer over one clip counts as hung.
    """
    found: list[Result | Rejected | None] = [None] * len(clips)
    jobs = _batches(clips)

    def work_on(job: range, progress: Callable[[float], None]) -> list[Result | Rejected]:
        results = []
        for number in job:
            results.append(_work_on_one(work, clips[number]))
            progress(1)
        return results

    with show_progress(title, len(clips), "files") as advance:
        while jobs:
            halves = []
            for number, results in run_local(work_on, jobs, num_workers, advance, max_silence_sec):
                job = jobs[number]
                if not isinstance(results, WorkerDied):
                    found[job.start : job.stop] = results
                elif len(job) == 1:
                    found[job.start] = _culprit(clips[job.start], results)
                else:  # one of them is the cause
                    halves += [job[: len(job) // 2], job[len(job) // 2 :]]
            jobs = halves
    known = [result for result in found if result is not None]
    assert len(known) == len(clips)
    return known


def _batches(clips: Sequence[ClipPlan]) -> list[range]:
    """Positions of the clips of each job."""
    starts: list[int] = []
    for number, clip in enumerate(clips):
        is_full = not starts or number - starts[-1] >= _BATCH
        if is_full and (number == 0 or clip.path != clips[number - 1].path):
            starts.append(number)
    return [range(start, stop) for start, stop in zip(starts, [*starts[1:], len(clips)], strict=True)]


def _work_on_one(work: Callable[[ClipPlan], Result], clip: ClipPlan) -> Result | Rejected:
    try:
        with costs_its_item(str(clip.recording)):
            return work(clip)
    except Rejected as rejected:
        return rejected


def _culprit(clip: ClipPlan, died: WorkerDied) -> Rejected:
    found, action = f"{TRIES} workers that died over it ({died.how})", "Check the file, or leave it out."
    return Rejected("failed", "worker_died", str(clip.recording), found, "audio that can be read", action)
