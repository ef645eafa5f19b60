"""What the command says: what was read, what is lost and why, what was written, what comes next."""

import sys
from collections import Counter, defaultdict
from collections.abc import Iterable

from preprocess.audio.decode import Header
from preprocess.common.errors import InputError, Rejected
from preprocess.corpus.shards import FAILURES_FILE
from preprocess.encode.make_shard import ShardReport
from preprocess.finish.accounts import Outcome
from preprocess.finish.corpus_page import REPORT_FILE
from preprocess.manifest.columns import join_some
from preprocess.manifest.read import Manifest
from preprocess.plan.clips import ClipTable
from preprocess.plan.screening import Screening, dominating_reason, screen, thresholds
from preprocess.plan.settings import Settings
from preprocess.plan.slices import Slice

_SHOWN_PER_REASON = 5


def show_manifest(manifest: Manifest, table: ClipTable, keep_system: bool) -> None:
    """Dialects, clips, and whatever of the manifest is not used."""
    dialects = ", ".join(f"{count} rows of {name}" for name, count in sorted(manifest.dialects.items()))
    names = [file.path.name for file in manifest.files]
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    print(f"{shown}: {dialects}; {len(table.uses)} samples of {len(table.clips)} clips")
    if table.validation is not None:
        print(f"  {len(table.validation)} clips of --val-manifest are the validation split")
        known = sorted(_speakers(table, table.validation) & _speakers(table, table.clips.keys() - table.validation))
        if known:
            shown = ", ".join(known[:5]) + (", ..." if len(known) > 5 else "")
            print(f"  {len(known)} of its speakers are in training too, no held-out voices: {shown}")
    if table.rows_without_speaker:
        voices = "each clip" if any(row.turns for row in manifest.rows) else "each reference"
        print(f"  {table.rows_without_speaker} rows name a reference and no speaker: {voices} is a voice")
    if manifest.own_system_texts:
        what = "it is kept" if keep_system else "--system-text replaces it (--keep-system keeps it)"
        print(f"  {manifest.own_system_texts} rows have a system text of their own: {what}")
    unheard = sum(row.has_audio_outside_assistant for row in manifest.rows)
    if unheard:
        print(f"  warning: {unheard} rows have audio in turns of the user or the system: a base without an audio")
        print("    tower hears none of it, and Boson's generation passes over the gap otherwise than training does;")
        print("    in --layout canonical the assistant says the reference")
    for (field, column), count in sorted(manifest.mapped.items()):
        print(f"  {field} = column {column} ({count} rows)")
    spellings = defaultdict(set)
    for name in _speakers(table, table.clips):
        spellings[name.casefold()].add(name)
    alike = sorted(" / ".join(sorted(names)) for names in spellings.values() if len(names) > 1)
    if alike:
        print(f"  {len(alike)} speakers whose names differ in capitals alone count as others: {join_some(alike, 5)}")
    if manifest.repeated_ids:
        count, shown = len(manifest.repeated_ids), join_some(manifest.repeated_ids, 5)
        print(f"  {count} ids stand in more than one row (nothing is merged by id): {shown}")
    if manifest.ignored_columns:
        print(f"  columns not used: {join_some(name or '(nameless)' for name in sorted(manifest.ignored_columns))}")
    sys.stdout.flush()


def show_encoder(faster_forms: dict[str, bool]) -> None:
    """Which faster forms of Boson's encoder are on, and which are off on this processor."""
    on, off = ([name for name, equal in faster_forms.items() if equal is wanted] for wanted in (True, False))
    print(f"encoder: faster than Boson's, with the same bits: {', '.join(on) or 'nothing'}", flush=True)
    if off:
        print(f"  left as Boson's: {', '.join(off)}; the faster form has other bits on this processor", flush=True)


def show_screening(screening: Screening) -> None:
    """Which filters are on."""
    print(f"screening: {thresholds(screening) or 'none'}", flush=True)


def _speakers(table: ClipTable, keys: Iterable[str]) -> set[str]:
    return {table.clips[key].speaker for key in keys}


def show_problems(manifest: Manifest, table: ClipTable, rejected: dict[str, Rejected]) -> list[Rejected]:
    """Say on stderr, and return, why rows and clips can't be used, as far as manifest and headers tell."""
    problems = [error for _, error in sorted(manifest.rejected + table.rejected, key=lambda item: item[0])]
    problems += rejected.values()
    _show_problems(problems, f"a run names them in {FAILURES_FILE}")
    return problems


def show_validation(
    manifest: Manifest,
    table: ClipTable,
    headers: dict[str, Header],
    rejected: dict[str, Rejected],
    screening: Screening,
) -> int:
    """The result of --validate-only: 0, or InputError where no clip can be read."""
    problems = show_problems(manifest, table, rejected)
    if not headers:
        raise _nothing_left(str(manifest.path), problems)
    hours = Counter()
    for header in headers.values():
        hours[_reason(screening, header)] += header.duration_sec / 3600
    shown = ", ".join(f"{name} {value:.3f} h" for name, value in sorted(hours.items()))
    print(
        f"{len(headers)} of {len(table.clips)} clips can be opened (by their headers: {shown}); nothing was encoded"
    )
    return 0


def show_reused(settings: Settings, reports: list[ShardReport]) -> None:
    """How many clips --reuse saved from being encoded."""
    if settings.reuse:
        count = sum(report.num_reused for report in reports)
        print(f"reused: {count} clips of {settings.reuse}; those of shards kept from an earlier run are not counted")


def show_outcome(settings: Settings, outcome: Outcome) -> None:
    """What was written and lost, and the command that trains on it."""
    _show_problems([error for _, error in outcome.rejected_rows], f"see {FAILURES_FILE}")
    screened = Counter(error.reason for _, error in outcome.rejected_rows if error.status == "screened")
    warning = dominating_reason(settings.screening, screened, sum(outcome.rows.values()))
    if warning:
        print(warning, file=sys.stderr, flush=True)
    rows = ", ".join(f"{count} {name}" for name, count in outcome.rows.items())
    print(f"rows: {rows}")
    lost = ", ".join(f"{hours:.3f} h {reason}" for reason, hours in outcome.lost_hours.items())
    print(f"clips: {outcome.clips['written']} written, {outcome.hours:.3f} h; dropped: {lost or 'nothing'}")
    if settings.noisy_references:
        counts = ", ".join(f"{count} {name}" for name, count in outcome.derived.items())
        print(f"noisy copies of clips, drawn as references only: {counts}")
    for split, count in outcome.usable_samples.items():
        print(f"{split}: {count} samples, {outcome.speakers[split]} speakers")
    assert settings.out
    print(
        f"wrote {settings.out}; look at {settings.out / REPORT_FILE}\nnext:\n"
        "  deepspeed launch/train.py --deepspeed ds_configs/zero2.json "
        "--recipe launch/recipes/arabic_8xh200.yaml \\\n"
        f"      --model {settings.model} --data {settings.out} --out runs/first",
        flush=True,
    )


def _reason(screening: Screening, header: Header) -> str:
    try:
        screen(screening, {"duration_sec": header.duration_sec}, "")
    except Rejected as rejected:
        return rejected.reason
    return "fits"


def _show_problems(problems: list[Rejected], all_of_them: str) -> None:
    """On stderr, a few of each reason in full, then all by number, and what most have in common.

    all_of_them: where they stand. Merged rows are no problem.
    """
    by_reason = defaultdict(list)
    for error in problems:
        by_reason[error.status, error.reason].append(error)
    for (status, reason), errors in sorted(by_reason.items()):
        if status == "merged":
            continue
        for error in errors[:_SHOWN_PER_REASON]:
            print(f"{status} ({reason}): {error}", file=sys.stderr)
        if len(errors) > _SHOWN_PER_REASON:
            more = len(errors) - _SHOWN_PER_REASON
            found, count = Counter(error.found for error in errors).most_common(1)[0]
            alike = f" ({count} of all {len(errors)}: {found})" if 2 * count > len(errors) else ""
            print(f"{status} ({reason}): {more} more{alike}, {all_of_them}", file=sys.stderr)
    sys.stderr.flush()


def _nothing_left(where: str, problems: list[Rejected]) -> InputError:
    return InputError(where, "no clip that can be used", "at least one", f"The first problem: {problems[0]}")


def show_slice(part: Slice, num_finished: int, num_shards: int) -> int:
    """What a slice says that is not the last; returns the exit code."""
    print(
        f"slice {part} is done; {num_finished} of {num_shards} shards of the corpus are finished. The slice that "
        "ends last writes index and corpus.json (or --finalize, if it died before)."
    )
    return 0
