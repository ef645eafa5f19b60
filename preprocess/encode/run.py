"""Run the plan: keep the shards that are finished, make the others, and outlive workers that die."""

import contextlib
import time
from dataclasses import replace

from tqdm import tqdm

from preprocess.audio.decode import Header
from preprocess.common.errors import InputError, Rejected
from preprocess.encode.failure_budget import refuse_many_failures
from preprocess.encode.local_pool import TRIES, WorkerDied, run_local
from preprocess.encode.make_shard import (
    ShardReport,
    clip_in_work,
    discard_fragment,
    make_shard,
    read_finished,
    remove_unfinished,
)
from preprocess.encode.ray_pool import run_ray
from preprocess.plan.clips import ClipPlan
from preprocess.plan.shard_specs import ShardSpec

_DIED = "worker_died"


def make_shards(
    specs: list[ShardSpec],
    headers: dict[str, Header],
    num_workers: int,
    max_failure_share: float,
    executor: str = "local",
) -> list[ShardReport]:
    """A report for every spec, in the plan's order. executor: local, with `num_workers` processes, or ray.

    A clip over which a worker dies twice is left out, named, and tried again by the next run. Raises InputError
    where more than `max_failure_share` of the clips fail.
    """
    reports = {spec.name: report for spec in specs if (report := _keep_finished(spec))}
    to_make = [spec for spec in specs if spec.name not in reports]
    to_make.sort(key=lambda spec: -_seconds(spec, headers))  # the longest first: none alone at the end
    if reports:
        print(f"{len(reports)} of {len(specs)} shards are finished already and kept", flush=True)
    try:
        _make(to_make, reports, headers, num_workers, max_failure_share, executor)
    except KeyboardInterrupt as stop:
        remove_unfinished([spec for spec in to_make if spec.name not in reports])
        stop.add_note(
            f"{len(reports)} of {len(specs)} shards are done and kept; run the same command again to continue"
        )
        raise
    return [reports[spec.name] for spec in specs]


def _make(
    to_make: list[ShardSpec],
    reports: dict[str, ShardReport],
    headers: dict[str, Header],
    num_workers: int,
    max_failure_share: float,
    executor: str,
) -> None:
    """Put a report of each shard into `reports`, as soon as it is made."""
    with _ProgressBar(to_make, headers) as bar:
        while to_make:
            died = []
            if executor == "ray":
                results = run_ray(make_shard, to_make, lambda report: bar.add(_seconds_written(report)))
            else:
                results = run_local(make_shard, to_make, num_workers, bar.add)
            with contextlib.closing(results):  # an error ends the workers now: they hold the folder's lock
                for number, result in results:
                    spec = to_make[number]
                    if isinstance(result, WorkerDied) and (clip := clip_in_work(spec)):
                        died.append(replace(spec, culprits={**spec.culprits, clip.key: _culprit(clip, result)}))
                        continue
                    reports[spec.name] = _all_failed(spec, result) if isinstance(result, WorkerDied) else result
                    refuse_many_failures("encoding", *_failures(reports), max_failure_share)
            to_make = died


def _seconds(spec: ShardSpec, headers: dict[str, Header]) -> float:
    """Seconds of audio in a shard, by the headers; of a clip no more than is used."""
    return sum(min(headers[clip.key].duration_sec, spec.screening.longest_sec) for clip in spec.clips)


def _seconds_written(report: ShardReport) -> float:
    return sum(row["duration_sec"] for row in report.rows)


def split_by_state(specs: list[ShardSpec]) -> tuple[list[ShardReport], list[ShardSpec]]:
    """(reports of the finished shards in the plan's order, specs of the others)."""
    reports = [read_finished(spec) for spec in specs]
    missing = [spec for spec, report in zip(specs, reports, strict=True) if report is None]
    return [report for report in reports if report is not None], missing


def refuse_missing(specs: list[ShardSpec]) -> None:
    """Raise InputError where --finalize finds shards that no slice has finished."""
    _, missing = split_by_state(specs)
    if missing:
        names = ", ".join(spec.name for spec in missing[:5]) + ", ..." * (len(missing) > 5)
        raise InputError(
            str(missing[0].out),
            f"{len(missing)} of {len(specs)} shards not finished: {names}",
            "all shards finished",
            "Run the slices that stopped again, or the same command with neither --slice nor --finalize: it makes "
            "what is missing.",
        )


def _keep_finished(spec: ShardSpec) -> ShardReport | None:
    """The report of a finished shard, unless a clip of it deserves another try."""
    report = read_finished(spec)
    if report and any(error.reason == _DIED for error in report.rejected.values()):
        discard_fragment(spec)
        return None
    return report


def _failures(reports: dict[str, ShardReport]) -> tuple[list[Rejected], int]:
    rejected = [error for report in reports.values() for error in report.rejected.values()]
    failed = [error for error in rejected if error.status == "failed"]
    return failed, len(rejected) + sum(len(report.rows) for report in reports.values())


def _culprit(clip: ClipPlan, died: WorkerDied) -> Rejected:
    return Rejected(
        "failed",
        _DIED,
        str(clip.recording),
        f"{TRIES} workers that died over this clip ({died.how})",
        "audio that can be decoded and encoded",
        "Look at the file. Run the same command again to try it again; if memory ran out (exit code -9), with fewer "
        "--workers.",
    )


def _all_failed(spec: ShardSpec, died: WorkerDied) -> ShardReport:
    """No fragment is written: the next run tries again."""
    rejected = {
        clip.key: Rejected(
            "failed",
            _DIED,
            str(clip.recording),
            f"{TRIES} workers that died before they began the first clip of {spec.name} ({died.how})",
            "a worker that can start",
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
