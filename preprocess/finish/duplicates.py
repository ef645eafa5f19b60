"""Recordings that are in the corpus twice, under two names: found by the sha256 of the source, after all shards."""

from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from preprocess.common.errors import Rejected
from preprocess.common.json_file import JsonObject
from preprocess.corpus.text import normalise_text
from preprocess.plan.clips import ClipPlan


class Duplicate(NamedTuple):
    """Why a clip is no target: the reason in the index, and the error that failures.jsonl gives for its rows."""

    reason: str
    error: Rejected


Duplicates = dict[str, Duplicate]  # by key
Rows = dict[str, JsonObject]  # rows of the index by key


def find_duplicates(rows: Rows, clips: dict[str, ClipPlan]) -> Duplicates:
    """Clips with a drawn reference that are no targets, because another clip has the same audio; by key, with why.

    Where words, speaker and own system text are the same too, all clips but the first are merged into the first
    (`duplicate_of=KEY`). Where they differ, no one knows which is right, and none of the clips is used
    (`two_transcripts`, `two_speakers`, `two_system_texts`). Rows that name their reference stay.
    """
    groups = defaultdict(list)
    for key in sorted(rows):
        if rows[key]["draws_reference"]:
            recording = clips[key].recording
            groups[rows[key]["source_sha256"], recording.start_sec, recording.end_sec, recording.channel].append(key)
    same_audio = [[clips[key] for key in keys] for keys in groups.values() if len(keys) > 1]
    return {key: duplicate for plans in same_audio for key, duplicate in _judge(plans).items()}


def _judge(plans: list[ClipPlan]) -> Duplicates:
    """Those of two or more clips of the same audio that are no targets."""
    for reason, what, values in (
        ("two_transcripts", "other words", {normalise_text(plan.text) for plan in plans}),
        ("two_speakers", "another speaker", {plan.speaker for plan in plans}),
        ("two_system_texts", "another system text", {plan.system_text for plan in plans}),
    ):
        if len(values) > 1:
            return {plan.key: Duplicate(reason, _conflict(reason, what, plan, plans)) for plan in plans}
    first, *others = plans
    return {plan.key: Duplicate(f"duplicate_of={first.key}", _merged(plan, first)) for plan in others}


def _conflict(reason: str, what: str, plan: ClipPlan, plans: list[ClipPlan]) -> Rejected:
    other = next(other for other in plans if other is not plan)
    found = f"the same audio as {other.source}, and {what} in one of these rows"
    expected = "one transcript, speaker and system text per recording"
    return Rejected("screened", reason, plan.source, found, expected, "Listen, and keep the right one of the rows.")


def _merged(plan: ClipPlan, first: ClipPlan) -> Rejected:
    found = f"the same audio and text as {first.source}"
    action = f"Nothing to do: it is merged into clip {first.key}."
    return Rejected("merged", "duplicate", plan.source, found, "each recording once", action)


def overlapping_pairs(rows: Rows, clips: dict[str, ClipPlan]) -> Iterator[tuple[str, str]]:
    """Pairs of keys of clips with the same audio: parts of one file that share at least half of the shorter part."""
    places: defaultdict[tuple[str, int | None], list[tuple[float, float, str]]] = defaultdict(list)
    for key in sorted(rows):
        start_sec = clips[key].recording.start_sec or 0.0
        # Two channels are two recordings: a speaker on each.
        places[rows[key]["source_sha256"], clips[key].recording.channel].append(
            (start_sec, start_sec + rows[key]["duration_sec"], key)
        )
    for parts in places.values():
        parts.sort()
        for number, (start_sec, end_sec, key) in enumerate(parts):
            for other_start_sec, other_end_sec, other in parts[number + 1 :]:
                if other_start_sec >= end_sec:
                    break
                shared_sec = min(end_sec, other_end_sec) - other_start_sec
                if shared_sec >= min(end_sec - start_sec, other_end_sec - other_start_sec) / 2:
                    yield key, other


def clips_in_validation(rows: Rows, clips: dict[str, ClipPlan], validation: set[str]) -> dict[str, Rejected]:
    """Training clips with the same audio as a clip of `validation` (keys); training leaves them out."""
    found = {}
    for pair in overlapping_pairs(rows, clips):
        inside, outside = ([key for key in pair if (key in validation) is is_inside] for is_inside in (True, False))
        if inside and outside:
            (key,), (held_out,) = outside, inside
            what = f"the same audio as {clips[held_out].source} of --val-manifest"
            expected = "validation clips that training never uses"
            action = "Nothing to do: training leaves it out. To train on it, remove its copy from --val-manifest."
            found[key] = Rejected("screened", "in_validation", clips[key].source, what, expected, action)
    return found
