"""Recordings that are there twice, under two names: decided once all shards are made, by the sha256 of the source."""

from collections import defaultdict
from collections.abc import Iterator, Mapping

from preprocess.common.errors import Rejected
from preprocess.corpus.text import normalise_text
from preprocess.plan.clips import ClipPlan

# By key: the reason in the index, and what the clip's rows are told.
Duplicates = dict[str, tuple[str, Rejected]]


def find_duplicates(rows: dict[str, dict], clips: dict[str, ClipPlan]) -> Duplicates:
    """Which clips whose reference is drawn are no targets, and why.

    Same words, speaker and own system text: all but the first are merged into it (`duplicate_of=KEY`). Where one of
    them is another, none is used, since no one knows which is right (`two_transcripts`, `two_speakers`,
    `two_system_texts`). Rows that name their reference stay: each is a prompt of its own.
    """
    groups = defaultdict(list)
    for key in sorted(rows):
        if rows[key]["draws_reference"]:
            recording = clips[key].recording
            groups[rows[key]["source_sha256"], recording.start_sec, recording.end_sec].append(key)
    return {key: found for keys in groups.values() if len(keys) > 1 for key, found in _judge(keys, clips)}


def _judge(keys: list[str], clips: dict[str, ClipPlan]) -> list[tuple[str, tuple[str, Rejected]]]:
    plans = [clips[key] for key in keys]
    for reason, what, values in (
        ("two_transcripts", "other words", {normalise_text(plan.text) for plan in plans}),
        ("two_speakers", "another speaker", {plan.speaker for plan in plans}),
        ("two_system_texts", "another system text", {plan.system_text for plan in plans}),
    ):
        if len(values) > 1:
            return [(plan.key, (reason, _conflict(reason, what, plan, plans))) for plan in plans]
    first, *others = plans
    return [(plan.key, (f"duplicate_of={first.key}", _duplicate(plan, first))) for plan in others]


def _conflict(reason: str, what: str, plan: ClipPlan, plans: list[ClipPlan]) -> Rejected:
    other = next(other for other in plans if other is not plan)
    return Rejected(
        "screened",
        reason,
        plan.source,
        f"the same audio as {other.source}, and {what} among such rows",
        "one transcript, speaker and system text for one recording",
        "Listen, and keep the right one of the rows.",
    )


def _duplicate(plan: ClipPlan, first: ClipPlan) -> Rejected:
    return Rejected(
        "merged",
        "duplicate",
        plan.source,
        f"the same audio and text as {first.source}",
        "each recording once",
        f"Nothing to do: it is merged into clip {first.key}.",
    )


def overlapping_pairs(rows: Mapping[str, dict], clips: dict[str, ClipPlan]) -> Iterator[tuple[str, str]]:
    """Pairs of keys of clips that are the same sound: parts of one file that share at least half of the shorter."""
    places = defaultdict(list)
    for key in sorted(rows):
        start_sec = clips[key].recording.start_sec or 0.0
        places[rows[key]["source_sha256"]].append((start_sec, start_sec + rows[key]["duration_sec"], key))
    for parts in places.values():
        parts.sort()
        for number, (start_sec, end_sec, key) in enumerate(parts):
            for other_start_sec, other_end_sec, other in parts[number + 1 :]:
                if other_start_sec >= end_sec:
                    break
                shared_sec = min(end_sec, other_end_sec) - other_start_sec
                if shared_sec >= min(end_sec - start_sec, other_end_sec - other_start_sec) / 2:
                    yield key, other


def clips_in_validation(
    rows: Mapping[str, dict], clips: dict[str, ClipPlan], validation: set[str]
) -> dict[str, Rejected]:
    """Clips of training that are the same sound as one of `validation` has: training leaves them out."""
    found = {}
    for pair in overlapping_pairs(rows, clips):
        inside, outside = ([key for key in pair if (key in validation) is is_inside] for is_inside in (True, False))
        if inside and outside:
            (key,), (held_out,) = outside, inside
            found[key] = Rejected(
                "screened",
                "in_validation",
                clips[key].source,
                f"the same audio as {clips[held_out].source} of --val-manifest",
                "validation that training never hears",
                "Nothing to do: training leaves it out. To train on it, remove the other row from --val-manifest.",
            )
    return found
