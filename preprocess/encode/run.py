"""Make the shards of a plan: keep the finished ones, make the others, and go on where workers die."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from preprocess.audio.decode import Header
from preprocess.common.errors import UNEXPECTED, InputError, Rejected, join_some
from preprocess.common.progress import show_progress
from preprocess.common.say import say
from preprocess.encode.failure_budget import refuse_many_failures
from preprocess.encode.local_pool import TRIES, WorkerDied, run_local
from preprocess.encode.make_shard import (
    ShardReport,
    clip_in_progress,
    discard_fragment,
    make_shard,
    read_finished,
    remove_unfinished,
)
from preprocess.encode.ray_pool import run_ray
from preprocess.plan.clips import ClipPlan
from preprocess.plan.settings import Settings
from preprocess.plan.shard_specs import ShardSpec

_DIED = "worker_died"
_LITTLE_MEMORY = "if memory ran out (exit code -9), with fewer --workers."


def make_shards(
    settings: Settings, specs: list[ShardSpec], headers: dict[str, Header], num_workers: int
) -> list[ShardReport]:
    """One report per spec, in the plan's order. num_workers: processes of the local executor.

    A clip over which two workers died is rejected; the next run tries it again. Raises InputError where more than
    --max-failure-share of the clips fail.
    """
    reports = {spec.name: report for spec in specs if (report := _keep_finished(spec))}
    to_make = [spec for spec in specs if spec.name not in reports]
    to_make.sort(key=lambda spec: -_duration_sec(spec, headers))  # longest first: no worker is left alone at the end
    if reports:
        say(f"{len(reports)} of {len(specs)} shards are finished already and kept")
    try:
        _make_missing(settings, to_make, reports, headers, num_workers)
    except KeyboardInterrupt as stop:
        remove_unfinished([spec for spec in to_make if spec.name not in reports])
        stop.add_note(
            f"{len(reports)} of {len(specs)} shards are done and kept; run the same command again to continue"
        )
        raise
    return [reports[spec.name] for spec in specs]


def _make_missing(
    settings: Settings,
    to_make: list[ShardSpec],
    reports: dict[str, ShardReport],
    headers: dict[str, Header],
    num_workers: int,
) -> None:
    """Put a report of each shard into `reports`, as soon as it is made."""
    with _progress_bar(to_make, headers) as add_sec:
        while to_make:
            died = []
            if settings.executor == "ray":
                results = run_ray(
                    make_shard, to_make, lambda report: add_sec(sum(row["duration_sec"] for row in report.rows))
                )
            else:
                results = run_local(make_shard, to_make, num_workers, add_sec)
            with contextlib.closing(results):  # an error ends the workers at once: they hold the folder's lock
                for number, result in results:
                    spec = to_make[number]
                    if isinstance(result, WorkerDied) and (clip := clip_in_progress(spec)):
                        died.append(replace(spec, culprits={**spec.culprits, clip.key: _culprit(clip, result)}))
                        continue
                    reports[spec.name] = _all_failed(spec, result) if isinstance(result, WorkerDied) else result
                    refuse_many_failures("encoding", *_rejected(reports), settings.max_failure_share)
            to_make = died


def _duration_sec(spec: ShardSpec, headers: dict[str, Header]) -> float:
    """Seconds of audio in a shard, by the headers; each clip counts for at most the longest that screening allows."""
    return sum(min(headers[clip.key].duration_sec, spec.screening.longest_sec) for clip in spec.clips)


def split_by_state(specs: list[ShardSpec]) -> tuple[list[ShardReport], list[ShardSpec]]:
    """(reports of the finished shards in the plan's order, specs of the others)."""
    reports = [read_finished(spec) for spec in specs]
    missing = [spec for spec, report in zip(specs, reports, strict=True) if report is None]
    return [report for report in reports if report is not None], missing


def refuse_missing(specs: list[ShardSpec]) -> None:
    """Raise InputError where --finalize finds shards that no slice has finished."""
    _, missing = split_by_state(specs)
    if missing:
        raise InputError(
            str(missing[0].out),
            f"{len(missing)} of {len(specs)} shards not finished: {join_some((spec.name for spec in missing), 5)}",
            "all shards finished",
            "Run the slices that stopped again, or the same command with neither --slice nor --finalize: it makes "
            "the missing shards.",
        )


def _keep_finished(spec: ShardSpec) -> ShardReport | None:
    """The report of a finished shard; None where a clip is tried again: nobody knows why it failed."""
    report = read_finished(spec)
    if report and any(error.reason in (_DIED, UNEXPECTED) for error in report.rejected.values()):
        discard_fragment(spec)
        return None
    return report


def _rejected(reports: dict[str, ShardReport]) -> tuple[list[Rejected], int]:
    """(why clips were rejected, number of clips) of all shards made so far."""
    rejected = [error for report in reports.values() for error in report.rejected.values()]
    return rejected, len(rejected) + sum(len(report.rows) for report in reports.values())


def _culprit(clip: ClipPlan, died: WorkerDied) -> Rejected:
    found = f"{TRIES} workers that died over this clip ({died.how})"
    action = f"Check the file. Run the same command again to try it again; {_LITTLE_MEMORY}"
    return Rejected("failed", _DIED, str(clip.recording), found, "audio that can be decoded and encoded", action)


def _all_failed(spec: ShardSpec, died: WorkerDied) -> ShardReport:
    """A report in which every clip has failed. It is in no fragment, so that the next run tries the shard again."""
    found = f"{TRIES} workers that died before they began the first clip of {spec.name} ({died.how})"
    parts = found, "a worker that can start", f"Run the same command again; {_LITTLE_MEMORY}"
    rejected = {clip.key: Rejected("failed", _DIED, str(clip.recording), *parts) for clip in spec.clips}
    return ShardReport(spec.name, [], rejected, {}, 0, "")


@contextlib.contextmanager
def _progress_bar(specs: list[ShardSpec], headers: dict[str, Header]) -> Iterator[Callable[[float], None]]:
    """Progress in hours of audio, and how much faster than real time they are done; gives what adds seconds to it."""
    total_hours = sum(_duration_sec(spec, headers) for spec in specs) / 3600
    start, done_sec = time.monotonic(), 0.0
    with show_progress("encoding", total_hours, "h", decimals=3) as advance:

        def add_sec(audio_sec: float) -> None:
            nonlocal done_sec
            done_sec += audio_sec
            advance(audio_sec / 3600, f"{done_sec / max(time.monotonic() - start, 1e-9):.1f}x real time")

        yield add_sec
