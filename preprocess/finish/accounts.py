"""After the shards: the accounts of rows and clips, the validation split, index.parquet, failures.jsonl, corpus.json.

Decisions that need more than one clip are made here and stored as columns of the index, never inside a shard.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from preprocess.common.errors import InputError, Rejected
from preprocess.common.files import write_atomically
from preprocess.common.json_file import JsonObject
from preprocess.corpus.dialogue import reference_keys
from preprocess.corpus.shards import FAILURES_FILE, write_corpus
from preprocess.encode.make_shard import ShardReport
from preprocess.finish.duplicates import Duplicates, Rows, clips_in_validation, find_duplicates, overlapping_pairs
from preprocess.finish.held_out import held_out_speakers
from preprocess.finish.speaker_outliers import find_speaker_outliers
from preprocess.judges.pace import speech_facts
from preprocess.manifest.read import Manifest
from preprocess.plan.clips import ClipTable, Use
from preprocess.plan.screening import Screening

# Reason for an unused clip: {is it a target: reason}.
_LOST = {True: "reference_lost", False: "target_lost"}


@dataclass(frozen=True)
class Outcome:
    """What a finished corpus holds, for the summary and for corpus.json. Noisy copies count in `derived` alone."""

    rows: dict[str, int]  # manifest rows that were written, merged, screened, failed
    clips: dict[str, int]  # clips that were written, screened, failed
    derived: dict[str, int]  # the same for noisy copies
    rejected_rows: list[tuple[int, Rejected]]  # (line, reason)
    hours: float
    lost_hours: dict[str, float]  # by reason
    usable_samples: dict[str, int]  # by split
    speakers: dict[str, int]  # by split


@dataclass(frozen=True)
class Account:
    """What becomes of all rows and clips. rows: of the index, by key. lost: why the other clips are in no shard."""

    outcome: Outcome
    rows: Rows
    lost: dict[str, Rejected]


def finish_corpus(
    out: Path,
    manifest: Manifest,
    table: ClipTable,
    reports: list[ShardReport],
    rejected_clips: dict[str, Rejected],
    settings: JsonObject,
) -> Outcome:
    """Write everything but the shards: failures.jsonl, index.parquet, corpus.json. settings: for corpus.json.

    Two accounts are asserted: each manifest row is written, merged, screened or failed; each clip is in exactly one
    shard, or screened or failed. Raises InputError where no row can be used.
    """
    account = account_for(manifest, table, reports, rejected_clips, settings["settings"])
    outcome, rows = account.outcome, account.rows
    _write_failures(out, manifest, outcome.rejected_rows, account.lost)
    refuse_empty(manifest, outcome, f" All of them: {out / FAILURES_FILE}")
    originals = [row for row in rows.values() if not row["derived_from"]]
    write_corpus(
        out,
        list(rows.values()),
        {
            **settings,
            "hours": outcome.hours,
            "lost_hours": outcome.lost_hours,
            "rows": outcome.rows,
            "clips": outcome.clips,
            **({"derived_clips": outcome.derived} if any(outcome.derived.values()) else {}),
            "speakers": outcome.speakers,
            "samples": outcome.usable_samples,
            "speech": speech_facts(originals),
            "digits": _digits(originals),
            "shards": [_shard_facts(report) for report in reports if report.rows],
        },
    )
    return outcome


def account_for(
    manifest: Manifest,
    table: ClipTable,
    reports: list[ShardReport],
    rejected_clips: dict[str, Rejected],
    settings: JsonObject,
) -> Account:
    """What becomes of each row and clip. settings: screening, val_speakers and seed, as corpus.json has them."""
    rows = {row["key"]: {**row, "use": True, "reason": None} for report in reports for row in report.rows}
    lost = {**rejected_clips, **{key: error for report in reports for key, error in report.rejected.items()}}
    assert sum(len(report.rows) for report in reports) == len(rows), "a clip in two shards"
    assert rows.keys() | lost.keys() == table.clips.keys()
    assert not rows.keys() & lost.keys()

    copies = {key for key, clip in table.clips.items() if clip.derived_from}
    originals = {key: row for key, row in rows.items() if key not in copies}
    rejected_rows = manifest.rejected + table.rejected
    left_out = find_speaker_outliers(originals, table.clips, Screening(**settings["screening"]))
    leaked = clips_in_validation(originals, table.clips, table.validation or set())
    left_out |= leaked
    duplicates = find_duplicates({key: row for key, row in originals.items() if key not in leaked}, table.clips)
    unusable = lost | left_out
    written: list[Use] = []
    for use in table.uses:
        if error := _why_lost(manifest, table, use, unusable, duplicates):
            rejected_rows.append((use.line, error))
        else:
            written.append(use)
    lines = [use.line for use in written] + [line for line, _ in rejected_rows]
    assert len(set(lines)) == len(lines) == manifest.num_rows, "a manifest row twice, or in no account"
    _mark_usable(originals, table, written, duplicates, left_out)
    validation = validation_clips(originals, table, written, settings)
    for key, row in originals.items():
        row["split"] = "val" if key in validation else "train"
    for key in copies & rows.keys():
        _follow_original(rows[key], originals.get(rows[key]["derived_from"]))

    rejected_rows.sort(key=lambda item: item[0])
    outcome = _outcome(originals, copies, reports, written, rejected_rows, lost, left_out)
    return Account(outcome, rows, lost)


def refuse_empty(manifest: Manifest, outcome: Outcome, all_of_them: str = "") -> None:
    """Raise InputError where no row can be used. all_of_them: where the problems are named."""
    if not outcome.rows["written"]:
        raise InputError(
            str(manifest.path),
            "no row that can be used",
            "at least one utterance",
            f"The first problem: {outcome.rejected_rows[0][1]}{all_of_them}",
        )


def _why_lost(
    manifest: Manifest, table: ClipTable, use: Use, lost: dict[str, Rejected], duplicates: Duplicates
) -> Rejected | None:
    """Why a row is not in the corpus; None if all clips that it needs are there."""
    where = manifest.where(use.line)
    if use.position is None and use.key in duplicates:
        error = duplicates[use.key].error
        return error.at(f"{where} ({error.where})")
    if use.key in lost:
        return lost[use.key].at(f"{where} ({lost[use.key].where})")
    for error in (lost[key] for key in _references(table, use) if key in lost):
        return error.at(f"{where} (reference {error.where})", f"reference_{error.reason}")
    return None


def _references(table: ClipTable, use: Use) -> list[str]:
    """Keys of the clips that a row names besides its target."""
    if use.position is None:
        return []
    return reference_keys(table.clips[use.key].dialogues[use.position], use.key)


def _mark_usable(
    rows: Rows, table: ClipTable, written: list[Use], duplicates: Duplicates, left_out: dict[str, Rejected]
) -> None:
    """Keep the dialogues of written rows, and mark each clip that none of these rows needs as unused."""
    targets = {use.key for use in table.uses}
    needed = {use.key for use in written} | {key for use in written for key in _references(table, use)}
    kept = {(use.key, use.position) for use in written}
    for key, row in rows.items():
        row["dialogues"] = [d for d in row["dialogues"] if (key, d["position"]) in kept]
        row["draws_reference"] &= key not in duplicates
        if key not in needed:
            row["use"], row["reason"] = False, _LOST[key in targets]
            if key in duplicates:
                row["reason"] = duplicates[key].reason
            elif key in left_out:
                row["reason"] = left_out[key].reason


def _follow_original(row: JsonObject, original: JsonObject | None) -> None:
    """Use a noisy copy where the clip that it is made of is used, except in validation, which stays clean."""
    row["split"] = original["split"] if original else "train"
    if original is None:
        row["use"], row["reason"] = False, "original_lost"
    elif not original["use"]:
        row["use"], row["reason"] = False, original["reason"]
    elif original["split"] == "val":
        row["use"], row["reason"] = False, "validation_stays_clean"


def validation_clips(rows: Rows, table: ClipTable, written: list[Use], settings: JsonObject) -> set[str]:
    """Keys of the validation split: the clips of --val-manifest, or all clips of the speakers that are held out.

    rows: index rows of recordings by key. settings: val_speakers and seed, as corpus.json has them.
    """
    if table.validation is not None:
        return table.validation
    pairs = [(use.key, key) for use in written for key in _references(table, use)]
    pairs += overlapping_pairs({key: row for key, row in rows.items() if row["use"]}, table.clips)
    held_out = held_out_speakers(
        [(row["speaker"], row["duration_sec"]) for row in rows.values() if row["use"]],
        [(rows[one]["speaker"], rows[other]["speaker"]) for one, other in pairs],
        settings["val_speakers"],
        settings["seed"],
    )
    return {key for key, row in rows.items() if row["speaker"] in held_out}


def _write_failures(
    out: Path, manifest: Manifest, rejected_rows: list[tuple[int, Rejected]], lost: dict[str, Rejected]
) -> None:
    places = [(manifest.place(line), error) for line, error in rejected_rows]
    records = [{"file": p.path.name, "line": n, "clip": None, **error.record()} for (p, n), error in places]
    records += [{"file": None, "line": None, "clip": key, **lost[key].record()} for key in sorted(lost)]
    text = "".join(json.dumps(record, ensure_ascii=False, sort_keys=True) + "\n" for record in records)
    write_atomically(out / FAILURES_FILE, text.encode())


def _outcome(
    rows: Rows,
    copies: set[str],
    reports: list[ShardReport],
    written: list[Use],
    rejected_rows: list[tuple[int, Rejected]],
    lost: dict[str, Rejected],
    left_out: dict[str, Rejected],
) -> Outcome:
    """rows: index rows of recordings by key. copies: keys of noisy copies, which count in `derived` alone."""
    lost_hours: defaultdict[str, float] = defaultdict(float)
    for report in reports:
        for key, seconds in sorted(report.lost_sec.items()):
            if key not in copies:
                lost_hours[report.rejected[key].reason] += seconds / 3600
    for key, error in sorted(left_out.items()):
        if rows[key]["reason"] == error.reason:
            lost_hours[error.reason] += rows[key]["duration_sec"] / 3600
    speakers = {split: {r["speaker"] for r in rows.values() if r["split"] == split} for split in ("train", "val")}
    return Outcome(
        rows=_account(len(written), [error for _, error in rejected_rows], ("merged", "screened", "failed")),
        clips=_account(len(rows), [lost[key] for key in lost.keys() - copies]),
        derived=_account(len(copies - lost.keys()), [lost[key] for key in copies & lost.keys()]),
        rejected_rows=rejected_rows,
        hours=round(sum(rows[key]["duration_sec"] for key in sorted(rows)) / 3600, 6),
        lost_hours={reason: round(hours, 6) for reason, hours in sorted(lost_hours.items())},
        usable_samples={split: sum(rows[use.key]["split"] == split for use in written) for split in ("train", "val")},
        speakers={split: len(names) for split, names in speakers.items()},
    )


def _account(
    num_written: int, errors: list[Rejected], statuses: Sequence[str] = ("screened", "failed")
) -> dict[str, int]:
    counts = Counter(error.status for error in errors)
    return {"written": num_written, **{status: counts[status] for status in statuses}}


def _digits(rows: Iterable[JsonObject]) -> dict[str, int]:
    """How many transcripts in use hold digits, and how many digits: a digit can be read aloud in several ways."""
    counts = [row["num_digits"] for row in rows if row["use"]]
    return {"clips": sum(count > 0 for count in counts), "digits": sum(counts)}


def _shard_facts(report: ShardReport) -> JsonObject:
    return {
        "name": f"{report.name}.tar",
        "bytes": report.num_bytes,
        "sha256": report.sha256,
        "clips": len(report.rows),
        "hours": round(sum(row["duration_sec"] for row in report.rows) / 3600, 6),
    }
