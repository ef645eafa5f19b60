"""What the command prints: what was read, what is lost and why, what was written, and the next command."""

import sys
from collections import Counter, defaultdict
from collections.abc import Iterable

from preprocess.common.errors import InputError, Rejected, join_some
from preprocess.common.say import say
from preprocess.corpus.base_model import BaseModel
from preprocess.corpus.shards import FAILURES_FILE, Corpus
from preprocess.encode.make_shard import ShardReport
from preprocess.finish.accounts import Outcome
from preprocess.finish.corpus_page import REPORT_FILE
from preprocess.finish.next_command import train_command
from preprocess.finish.two_channels import channel_lines
from preprocess.manifest.odd_speakers import speaker_warnings
from preprocess.manifest.read import Manifest
from preprocess.plan.clips import ClipTable
from preprocess.plan.screening import Screening, describe_thresholds, screening_warning
from preprocess.plan.settings import Settings
from preprocess.plan.slices import Slice

_SHOWN_PER_REASON = 5


def show_manifest(manifest: Manifest, table: ClipTable, keep_system: bool, speaker: str | None = None) -> None:
    """Print dialects, number of clips, how columns were read, and what of the manifest is not used.

    speaker: that of --speaker.
    """
    dialects = ", ".join(f"{count} rows of {name}" for name, count in sorted(manifest.dialects.items()))
    files = join_some((file.path.name for file in manifest.files), 3)
    say(f"{files}: {dialects}; {len(table.uses)} samples of {len(table.clips)} clips")
    if table.validation is not None:
        say(f"  {len(table.validation)} clips of --val-manifest are the validation split")
        known = sorted(_speakers(table, table.validation) & _speakers(table, table.clips.keys() - table.validation))
        if known:
            say(f"  {len(known)} of its speakers are in training too, no held-out voices: {join_some(known, 5)}")
    if table.rows_without_speaker:
        voice = "clip" if any(row.turns for row in manifest.rows) else "reference"
        say(f"  {table.rows_without_speaker} rows name a reference and no speaker: each {voice} counts as a voice")
    if manifest.own_system_texts:
        what = "it is kept" if keep_system else "--system-text replaces it (--keep-system keeps it)"
        say(f"  {manifest.own_system_texts} rows have a system text of their own: {what}")
    num_outside = sum(row.has_audio_outside_assistant for row in manifest.rows)
    if num_outside:
        say(f"  warning: {num_outside} rows have audio in turns of the user or the system: a base without an audio")
        say("    tower gets none of it, and Boson's generation treats the gap differently from training;")
        say("    --layout canonical puts references into turns of the assistant")
    for (field, column), count in sorted(manifest.mapped.items()):
        say(f"  {field} = column {column} ({count} rows)")
    if manifest.audio_marks:
        say(
            f"  {manifest.audio_marks} marks <|audio_bos|><|AUDIO|><|audio_eos|> came off the texts before recordings"
        )
    for column, count in sorted(manifest.none_words.items()):
        say(f"  {count} rows say nan, None or the like as {column}: they have none")
    spellings = defaultdict(set)
    for name in _speakers(table, table.clips):
        spellings[name.casefold()].add(name)
    alike = sorted(" / ".join(sorted(names)) for names in spellings.values() if len(names) > 1)
    if alike:
        say(f"  {len(alike)} names differ only in capitals and count as several speakers: {join_some(alike, 5)}")
    if manifest.repeated_ids:
        count, ids = len(manifest.repeated_ids), join_some(manifest.repeated_ids, 5)
        say(f"  {count} ids are in more than one row (nothing is merged by id): {ids}")
    if manifest.ignored_columns:
        say(f"  columns not used: {join_some(name or '(nameless)' for name in sorted(manifest.ignored_columns))}")
    _show_speakers(manifest, speaker)
    sys.stdout.flush()


def _show_speakers(manifest: Manifest, speaker: str | None) -> None:
    """Print whose voice the rows without a speaker are, and what is odd about the speakers that rows name."""
    for name, count in sorted(manifest.given_speakers.items()):
        why = "as --speaker says" if speaker else "after their folder (--speaker NAME names another)"
        say(f"  {count} rows name no speaker: they are the voice {name!r}, {why}")
    num_own = sum(row.speaker is not None for row in manifest.rows) - manifest.given_speakers.total()
    if speaker and num_own:
        say(f"  {num_own} rows keep the speaker that they name: --speaker {speaker} is not theirs")
    show_lines(speaker_warnings(manifest.rows))


def show_encoder(faster_forms: dict[str, bool]) -> None:
    """Print which faster forms of Boson's encoder are on, and which are off on this processor."""
    on, off = ([name for name, equal in faster_forms.items() if equal is wanted] for wanted in (True, False))
    say(f"encoder: faster than Boson's, with the same bits: {', '.join(on) or 'nothing'}")
    if off:
        say(f"  not used, for other bits on this processor: {', '.join(off)}")


def show_screening(screening: Screening) -> None:
    """Print which filters are on."""
    say(f"screening: {describe_thresholds(screening) or 'none'}")


def _speakers(table: ClipTable, keys: Iterable[str]) -> set[str]:
    return {table.clips[key].speaker for key in keys}


def show_reused(settings: Settings, reports: list[ShardReport]) -> None:
    """Print how many clips were not encoded because of --reuse."""
    if settings.reuse:
        count = sum(report.num_reused for report in reports)
        say(f"reused: {count} clips of {settings.reuse}; those of shards kept from an earlier run are not counted")


def show_lines(lines: Iterable[str]) -> None:
    """Print lines that another room has written."""
    for line in lines:
        say(line)
    sys.stdout.flush()


def show_preview(settings: Settings, outcome: Outcome, how: str) -> None:
    """Print what a run would write and lose. how: how that was found out."""
    say(f"what a run would give, {how}:")
    if settings.screening.min_code_entropy_bits is not None:
        say("  (but for min_code_entropy_bits, which needs the codes)")
    _show_accounts(settings, outcome, f"a run names them in {FAILURES_FILE}")
    say("nothing was encoded")


def show_stop(error: InputError) -> None:
    """Print to stderr why a run would stop."""
    say(f"a run would stop: {error}", error=True)


def show_outcome(settings: Settings, outcome: Outcome, corpus: Corpus, base: BaseModel) -> None:
    """Print what was written and lost, what of it may be wrong, and the command that trains on it."""
    _show_accounts(settings, outcome, f"see {FAILURES_FILE}")
    show_lines(channel_lines(corpus))
    noise = corpus.info["text_noise"]
    if noise:
        shown = ", ".join(f"{facts['rows']} {kind}" for kind, facts in noise.items())
        say(f"noise in transcripts, rows by kind: {shown}; examples are in {REPORT_FILE}")
    assert settings.out
    say(f"wrote {settings.out}; look at {settings.out / REPORT_FILE}")
    nothing = "nothing can be trained, since every voice is held out for validation: lower --val-speakers"
    say(f"next: {train_command(corpus, base) or nothing}")


def _show_accounts(settings: Settings, outcome: Outcome, all_of_them: str) -> None:
    """Print the problems, rows, clips and samples. all_of_them: where the problems are named."""
    _show_problems([error for _, error in outcome.rejected_rows], all_of_them)
    screened = Counter(error.reason for _, error in outcome.rejected_rows if error.status == "screened")
    warning = screening_warning(settings.screening, screened, sum(outcome.rows.values()))
    if warning:
        say(warning, error=True)
    rows = ", ".join(f"{count} {name}" for name, count in outcome.rows.items())
    say(f"rows: {rows}")
    lost = ", ".join(f"{hours:.3f} h {reason}" for reason, hours in outcome.lost_hours.items())
    say(f"clips: {outcome.clips['written']} written, {outcome.hours:.3f} h; dropped: {lost or 'nothing'}")
    if settings.noisy_references:
        counts = ", ".join(f"{count} {name}" for name, count in outcome.derived.items())
        say(f"noisy copies of clips, drawn as references only: {counts}")
    for split, count in outcome.usable_samples.items():
        say(f"{split}: {count} samples, {outcome.speakers[split]} speakers")


def _show_problems(problems: list[Rejected], all_of_them: str) -> None:
    """Print to stderr, per reason, a few problems in full, the number of the others, and what most have in common.

    all_of_them: where the others are named. Merged rows are no problem.
    """
    by_reason = defaultdict(list)
    for error in problems:
        by_reason[error.status, error.reason].append(error)
    for (status, reason), errors in sorted(by_reason.items()):
        if status == "merged":
            continue
        for error in errors[:_SHOWN_PER_REASON]:
            say(f"{status} ({reason}): {error}", error=True)
        if len(errors) > _SHOWN_PER_REASON:
            more = len(errors) - _SHOWN_PER_REASON
            found, count = Counter(error.found for error in errors).most_common(1)[0]
            alike = f" ({count} of all {len(errors)}: {found})" if 2 * count > len(errors) else ""
            say(f"{status} ({reason}): {more} more{alike}, {all_of_them}", error=True)
    sys.stderr.flush()


def show_slice(part: Slice, num_finished: int, num_shards: int) -> int:
    """Print that other slices are not done yet; returns the exit code, 0."""
    say(
        f"slice {part} is done; {num_finished} of {num_shards} shards of the corpus are finished. The slice that "
        "ends last writes index and corpus.json (or --finalize, if it died before)."
    )
    return 0
