"""After the shards: both accounts, the validation split, index.parquet, failures.jsonl and corpus.json.

What needs more than one clip is decided here, as columns of the index, never inside a shard.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from preprocess.common.errors import InputError, Rejected
from preprocess.common.files import write_atomically
from preprocess.corpus.dialogue import reference_keys
from preprocess.corpus.shards import FAILURES_FILE, write_corpus
from preprocess.encode.make_shard import ShardReport
from preprocess.finish.duplicates import Duplicates, clips_in_validation, find_duplicates, overlapping_pairs
from preprocess.finish.held_out import held_out_speakers
from preprocess.finish.speaker_outliers import find_speaker_outliers
from preprocess.judges.pace import speech_facts
from preprocess.manifest.read import Manifest
from preprocess.plan.clips import ClipTable, Use
from preprocess.plan.screening import Screening

# Why a clip of a finished shard serves no row: by whether it is a target.
_LOST = {True: "reference_lost", False: "target_lost"}


@dataclass(frozen=True)
class Outcome:
    """What a finished corpus holds, for the summary and for corpus.json."""

    rows: dict[str, int]  # written, merged, screened, failed
    clips: dict[str, int]  # written, screened, failed: the recordings, without their noisy copies
    derived: dict[str, int]  # as clips, of noisy copies
    rejected_rows: list[tuple[int, Rejected]]
    hours: float
    lost_hours: dict[str, float]
    usable_samples: dict[str, int]  # by split
    speakers: dict[str, int]  # by split


def finish(
    out: Path,
    manifest: Manifest,
    table: ClipTable,
    reports: list[ShardReport],
    rejected_clips: dict[str, Rejected],
    settings: dict,
) -> Outcome:
    """Write everything but the shards; raise InputError where no clip is left.

    The two accounts are asserted: each manifest row is written, merged, screened or failed; each clip is in
    exactly one shard, or screened or failed.
    """
    rows = {row["key"]: {**row, "use": True, "reason": None} for report in reports for row in report.rows}
    lost = {**rejected_clips, **{key: error for report in reports for key, error in report.rejected.items()}}
    assert sum(len(report.rows) for report in reports) == len(rows), "a clip in two shards"
    assert rows.keys() | lost.keys() == table.clips.keys()
    assert not rows.keys() & lost.keys()

    copies = {key for key, clip in table.clips.items() if clip.derived_from}
    originals = {key: row for key, row in rows.items() if key not in copies}
    rejected_rows = manifest.rejected + table.rejected
    left_out = find_speaker_outliers(originals, table.clips, Screening(**settings["settings"]["screening"]))
    leaked = clips_in_validation(originals, table.clips, table.validation or set())
    left_out |= leaked
    duplicates = find_duplicates({key: row for key, row in originals.items() if key not in leaked}, table.clips)
    unusable, written = lost | left_out, []
    for use in table.uses:
        error = _why_lost(manifest, table, use, unusable, duplicates)
        if error:
            rejected_rows.append((use.line, error))
        else:
            written.append(use)
    lines = [use.line for use in written] + [line for line, _ in rejected_rows]
    assert len(set(lines)) == len(lines) == manifest.num_rows, "a manifest row twice, or in no account"
    _mark_usable(originals, table, written, duplicates, left_out)
    validation = _validation_clips(originals, table, written, settings["settings"])
    for key, row in originals.items():
        row["split"] = "val" if key in validation else "train"
    for key in copies & rows.keys():
        _follow_original(rows[key], originals.get(rows[key]["derived_from"]))

    rejected_rows.sort(key=lambda item: item[0])
    _write_failures(out, manifest, rejected_rows, lost)
    if not written:
        raise InputError(
            str(manifest.path),
            "no row that can be used",
            "at least one utterance",
            f"The first problem: {rejected_rows[0][1]} All of them: {out / FAILURES_FILE}",
        )
    outcome = _outcome(originals, copies, reports, written, rejected_rows, lost, left_out)
    shards = [_shard_facts(report) for report in reports if report.rows]
    write_corpus(
        out,
        list(rows.values()),
        {
            **settings,
            "hours": outcome.hours,
            "lost_hours": outcome.lost_hours,
            "rows": outcome.rows,
            "clips": outcome.clips,
            **({"derived_clips": outcome.derived} if copies else {}),
            "speakers": outcome.speakers,
            "samples": outcome.usable_samples,
            "speech": speech_facts(originals.values()),
            "digits": _digits(originals.values()),
            "shards": shards,
        },
    )
    return outcome


def _why_lost(
    manifest: Manifest,
    table: ClipTable,
    use: Use,
    lost: dict[str, Rejected],
    duplicates: Duplicates,
) -> Rejected | None:
    """Why a row is not in the corpus, from the clips it needs; None if all of them are written."""
    where = manifest.where(use.line)
    if use.position is None and use.key in duplicates:
        _, error = duplicates[use.key]
        return error.at(f"{where} ({error.where})")
    if use.key in lost:
        return lost[use.key].at(f"{where} ({lost[use.key].where})")
    error = next((lost[key] for key in _references(table, use) if key in lost), None)
    return error and error.at(f"{where} (reference {error.where})", f"reference_{error.reason}")


def _references(table: ClipTable, use: Use) -> list[str]:
    """Keys of the clips that a row names besides its target."""
    if use.position is None:
        return []
    return reference_keys(table.clips[use.key].dialogues[use.position], use.key)


def _mark_usable(
    rows: dict[str, dict], table: ClipTable, written: list[Use], duplicates: Duplicates, left_out: dict[str, Rejected]
) -> None:
    """Keep the dialogues that are whole; a clip that no row needs any more is not used."""
    targets = {use.key for use in table.uses}
    needed = {use.key for use in written} | {key for use in written for key in _references(table, use)}
    kept = {(use.key, use.position) for use in written}
    for key, row in rows.items():
        row["dialogues"] = [d for d in row["dialogues"] if (key, d["position"]) in kept]
        row["draws_reference"] &= key not in duplicates
        if key not in needed:
            row["use"] = False
            row["reason"] = _LOST[key in targets]
            if key in duplicates:
                row["reason"] = duplicates[key][0]
            elif key in left_out:
                row["reason"] = left_out[key].reason


def _follow_original(row: dict, original: dict | None) -> None:
    """A noisy copy is used where its clip is, but in validation, which stays clean."""
    row["split"] = original["split"] if original else "train"
    if original is None:
        row["use"], row["reason"] = False, "original_lost"
    elif not original["use"]:
        row["use"], row["reason"] = False, original["reason"]
    elif original["split"] == "val":
        row["use"], row["reason"] = False, "validation_stays_clean"


def _validation_clips(rows: dict[str, dict], table: ClipTable, written: list[Use], choice: dict) -> set[str]:
    """Keys of the validation split: the clips of --val-manifest, or all clips of the voices that are held out."""
    if table.validation is not None:
        return table.validation
    pairs = [(use.key, key) for use in written for key in _references(table, use)]
    pairs += overlapping_pairs({key: row for key, row in rows.items() if row["use"]}, table.clips)
    voices = held_out_speakers(
        [(row["speaker"], row["duration_sec"]) for row in rows.values() if row["use"]],
        [(rows[one]["speaker"], rows[other]["speaker"]) for one, other in pairs],
        choice["val_speakers"],
        choice["seed"],
    )
    return {key for key, row in rows.items() if row["speaker"] in voices}


def _write_failures(
    out: Path, manifest: Manifest, rejected_rows: list[tuple[int, Rejected]], lost: dict[str, Rejected]
) -> None:
    places = [(manifest.place(line), error) for line, error in rejected_rows]
    records = [{"file": p.path.name, "line": n, "clip": None, **error.record()} for (p, n), error in places]
    records += [{"file": None, "line": None, "clip": key, **lost[key].record()} for key in sorted(lost)]
    text = "".join(json.dumps(record, ensure_ascii=False, sort_keys=True) + "\n" for record in records)
    write_atomically(out / FAILURES_FILE, text.encode())


def _outcome(
    rows: dict[str, dict],
    copies: set[str],
    reports: list[ShardReport],
    written: list[Use],
    rejected_rows: list[tuple[int, Rejected]],
    lost: dict[str, Rejected],
    left_out: dict[str, Rejected],
) -> Outcome:
    """rows: those of recordings. copies: keys of the noisy ones, which count as nothing but copies."""
    status = Counter(error.status for _, error in rejected_rows)
    lost_status = Counter(error.status for key, error in lost.items() if key not in copies)
    copy_status = Counter(lost[key].status for key in copies & lost.keys())
    lost_hours = defaultdict(float)
    for report in reports:
        for key, seconds in sorted(report.lost_sec.items()):
            if key not in copies:
                lost_hours[report.rejected[key].reason] += seconds / 3600
    for key, error in sorted(left_out.items()):
        if rows[key]["reason"] == error.reason:
            lost_hours[error.reason] += rows[key]["duration_sec"] / 3600
    speakers = {split: {r["speaker"] for r in rows.values() if r["split"] == split} for split in ("train", "val")}
    return Outcome(
        rows={"written": len(written), **{name: status[name] for name in ("merged", "screened", "failed")}},
        clips={"written": len(rows), **{name: lost_status[name] for name in ("screened", "failed")}},
        derived={
            "written": len(copies - lost.keys()),
            **{name: copy_status[name] for name in ("screened", "failed")},
        },
        rejected_rows=rejected_rows,
        hours=round(sum(rows[key]["duration_sec"] for key in sorted(rows)) / 3600, 6),
        lost_hours={reason: round(hours, 6) for reason, hours in sorted(lost_hours.items())},
        usable_samples={split: sum(rows[use.key]["split"] == split for use in written) for split in ("train", "val")},
        speakers={split: len(names) for split, names in speakers.items()},
    )


def _digits(rows: Iterable[dict]) -> dict[str, int]:
    """Transcripts in use that hold digits, which a voice may read in many ways, and how many digits."""
    counts = [row["num_digits"] for row in rows if row["use"]]
    return {"clips": sum(count > 0 for count in counts), "digits": sum(counts)}


def _shard_facts(report: ShardReport) -> dict:
    return {
        "name": f"{report.name}.tar",
        "bytes": report.num_bytes,
        "sha256": report.sha256,
        "clips": len(report.rows),
        "hours": round(sum(row["duration_sec"] for row in report.rows) / 3600, 6),
    }
