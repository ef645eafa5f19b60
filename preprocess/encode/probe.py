"""Read the headers of all clips in a pool: a file over which a library crashes or hangs costs itself."""

from collections.abc import Callable, Iterable, Sequence

from preprocess.audio.decode import NO_SUCH_FILE, Header
from preprocess.audio.recording import Recording
from preprocess.common.errors import Rejected, costs_its_item
from preprocess.common.progress import show_progress
from preprocess.encode.local_pool import TRIES, WorkerDied, run_local
from preprocess.plan.clips import ClipPlan
from preprocess.plan.respelled_names import find_respelled

_BATCH = 64  # recordings per job: a job of one would spend its time in pipes
_MAX_SILENCE_SEC = 300.0


def probe_clips(
    clips: Iterable[ClipPlan], num_workers: int, max_silence_sec: float = _MAX_SILENCE_SEC
) -> tuple[dict[str, Header], dict[str, Rejected]]:
    """{key: header} of the clips that have one, and {key: why not} of the others.

    Where a file exists in another Unicode form, its clip's path becomes that one. max_silence_sec: a worker that
    takes longer over one recording counts as hung.
    """
    clips = sorted(clips, key=lambda clip: clip.recording.order)
    headers, rejected = _probe(clips, num_workers, max_silence_sec)
    missing = [clip for clip in clips if clip.key in rejected and rejected[clip.key].found == NO_SUCH_FILE]
    respelled = find_respelled(missing, rejected)
    if respelled:
        print(f"  {len(respelled)} clips: the file's name has another Unicode form (NFC, NFD) than the manifest's")
        headers_too, rejected_too = _probe(respelled, num_workers, max_silence_sec)
        headers |= headers_too
        rejected = {key: error for key, error in rejected.items() if key not in headers_too} | rejected_too
    return headers, rejected


def _probe(
    clips: list[ClipPlan], num_workers: int, max_silence_sec: float
) -> tuple[dict[str, Header], dict[str, Rejected]]:
    found: list[Header | Rejected | None] = [None] * len(clips)
    jobs = _batches([clip.recording for clip in clips])
    with show_progress("headers", len(clips), "files") as advance:
        while jobs:
            halves = []
            batches = [[clips[number].recording for number in job] for job in jobs]
            for batch, results in run_local(_probe_batch, batches, num_workers, advance, max_silence_sec):
                job = jobs[batch]
                if not isinstance(results, WorkerDied):
                    for number, result in zip(job, results, strict=True):
                        found[number] = result
                elif len(job) == 1:
                    found[job[0]] = _culprit(clips[job[0]].recording, results)
                else:  # one of them is the cause
                    halves += [job[: len(job) // 2], job[len(job) // 2 :]]
            jobs = halves
    by_key = {clip.key: result for clip, result in zip(clips, found, strict=True)}
    headers = {key: result for key, result in by_key.items() if isinstance(result, Header)}
    rejected = {key: result for key, result in by_key.items() if isinstance(result, Rejected)}
    assert len(headers) + len(rejected) == len(clips)
    return headers, rejected


def _batches(recordings: Sequence[Recording]) -> list[range]:
    """Positions of the recordings of each job. Those of one file are in one job: what is read of it is kept there."""
    starts: list[int] = []
    for number, recording in enumerate(recordings):
        is_full = not starts or number - starts[-1] >= _BATCH
        if is_full and (number == 0 or recording.path != recordings[number - 1].path):
            starts.append(number)
    return [range(start, stop) for start, stop in zip(starts, [*starts[1:], len(recordings)], strict=True)]


def _probe_batch(recordings: list[Recording], progress: Callable[[float], None]) -> list[Header | Rejected]:
    results = []
    for recording in recordings:
        results.append(_probe_one(recording))
        progress(1)
    return results


def _probe_one(recording: Recording) -> Header | Rejected:
    try:
        with costs_its_item(str(recording)):
            return recording.probe()
    except Rejected as rejected:
        return rejected


def _culprit(recording: Recording, died: WorkerDied) -> Rejected:
    found, action = f"{TRIES} workers that died over its header ({died.how})", "Check the file, or leave it out."
    return Rejected("failed", "worker_died", str(recording), found, "a header that can be read", action)
