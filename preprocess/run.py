"""Run the plan: keep the shards that are finished, make the others, and outlive workers that die."""

import time

from tqdm import tqdm

from preprocess.audio import Header
from preprocess.errors import Rejected
from preprocess.executors import WorkerDied, run_local
from preprocess.make_shard import ShardReport, make_shard, read_finished
from preprocess.planning import ShardSpec


def make_shards(specs: list[ShardSpec], headers: dict[str, Header], num_workers: int) -> list[ShardReport]:
    """A report for every spec, in the plan's order."""
    reports = {spec.name: report for spec in specs if (report := read_finished(spec))}
    to_make = [spec for spec in specs if spec.name not in reports]
    to_make.sort(key=lambda spec: -_seconds(spec, headers))  # the longest first: none alone at the end
    if reports:
        print(f"{len(reports)} of {len(specs)} shards are finished already and kept", flush=True)
    with _ProgressBar(to_make, headers) as bar:
        for number, result in run_local(make_shard, to_make, num_workers, bar.add):
            spec = to_make[number]
            reports[spec.name] = _all_failed(spec, result) if isinstance(result, WorkerDied) else result
    return [reports[spec.name] for spec in specs]


def _seconds(spec: ShardSpec, headers: dict[str, Header]) -> float:
    """Seconds of audio in a shard, by the headers; of a clip no more than is used."""
    return sum(min(headers[clip.key].duration_sec, spec.screening.longest_sec) for clip in spec.clips)


def _all_failed(spec: ShardSpec, died: WorkerDied) -> ShardReport:
    """No fragment is written: the next run tries again."""
    rejected = {
        clip.key: Rejected(
            "failed",
            "worker_died",
            clip.path,
            f"a worker that died twice (exit code {died.exit_code}) while it made {spec.name}",
            "a shard that a worker can finish",
            "Run the same command again; if memory ran out (exit code -9), with fewer --workers.",
        )
        for clip in spec.clips
    }
    return ShardReport(spec.name, [], rejected, {}, 0, "")


class _ProgressBar:
    """Hours of audio done, and how many times faster than real time."""

    def __init__(self, specs: list[ShardSpec], headers: dict[str, Header]) -> None:
        total_hours = sum(_seconds(spec, headers) for spec in specs) / 3600
        self.bar = tqdm(
            total=total_hours,
            desc="encoding",
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {n:.3f}/{total:.3f} h [{elapsed}<{remaining}{postfix}]",
            disable=not specs,
        )
        self.start, self.audio_sec = time.monotonic(), 0.0

    def add(self, audio_sec: float) -> None:
        self.audio_sec += audio_sec
        speed = self.audio_sec / max(time.monotonic() - self.start, 1e-9)
        self.bar.set_postfix_str(f"{speed:.1f}x real time", refresh=False)
        # Headers may promise less than there is.
        self.bar.update(min(audio_sec / 3600, self.bar.total - self.bar.n))

    def __enter__(self) -> "_ProgressBar":
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()
