"""Packs with references of other speakers: the change in loss shows whether the model uses the references."""

import dataclasses
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from engine.plan.plan import Pack, Sample


def swap_references(packs: Sequence[Pack]) -> list[Pack]:
    """The packs with every drawn reference replaced by one of another speaker, the same each time.

    [] if fewer than two speakers have a drawn reference. `num_tokens` is 0, not counted, where they were replaced.
    """
    drawn = [sample for sample in samples_of_packs(packs) if sample.dialogue < 0 and sample.references]
    drawn.sort(key=lambda sample: (sample.speaker, sample.target))
    speakers = [sample.speaker for sample in drawn]
    if len(set(speakers)) < 2:
        return []
    swapped: dict[Sample, Sample] = {}
    for speaker in set(speakers):
        begin, end = bisect_left(speakers, speaker), bisect_right(speakers, speaker)
        others = drawn[end:] + drawn[:begin]  # beginning with the next speaker, so that every speaker is used
        for place, sample in enumerate(drawn[begin:end]):
            references = others[place % len(others)].references
            swapped[sample] = dataclasses.replace(sample, references=references, num_tokens=0)
    return [Pack(tuple(swapped.get(sample, sample) for sample in pack.samples)) for pack in packs]


def samples_of_packs(packs: Sequence[Pack]) -> list[Sample]:
    """The samples of all packs, in order."""
    return [sample for pack in packs for sample in pack.samples]
