"""How long the samples of training are, in tokens: what a plan will have, but for its random choices."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from preprocess.corpus.base_model import BaseModel
from preprocess.corpus.dialogue import canonical_dialogue, read_dialogue


class ClipLength(NamedTuple):
    """What a clip takes as a part of samples.

    frames: of its codes; from a header's duration it may be a fraction. draws_reference: it is the target of a sample
    whose reference is drawn. system_tokens: of its row's own system text; None: it has none.
    """

    key: str
    speaker: str
    text_tokens: int
    frames: float
    draws_reference: bool = True
    system_tokens: int | None = None


@dataclass
class SampleLengths:
    """Number and tokens of the samples of one epoch. longest_key: the target of the longest one.

    A drawn reference counts with the mean of those that can be drawn; in the longest sample, with the longest one.
    """

    num_samples: int = 0
    total_tokens: float = 0.0
    longest_tokens: float = 0.0
    longest_key: str = ""

    def add(self, key: str, mean_tokens: float, most_tokens: float) -> None:
        """Add a sample of `mean_tokens` tokens on average over the epochs, and at most `most_tokens`."""
        self.num_samples += 1
        self.total_tokens += mean_tokens
        if most_tokens > self.longest_tokens:
            self.longest_tokens, self.longest_key = most_tokens, key


def audio_columns(base: BaseModel, frames: float) -> float:
    """Columns of an audio: its frames, its begin and end, and the delay of the codebooks."""
    num_codebooks: int = base.config.audio_num_codebooks
    return frames + 2 + num_codebooks - 1


def measure_samples(
    base: BaseModel, system_text: str, clips: Iterable[ClipLength], named: Iterable[tuple[str, float]]
) -> SampleLengths:
    """Lengths of the samples with one drawn reference, and of those that name theirs.

    clips: all of the split, those too that are only drawn as references. named: (target, tokens) of each dialogue.
    """
    alone = _tokens_of_layout(base, system_text, 0)
    per_reference = _tokens_of_layout(base, system_text, 1) - alone
    system_tokens = base.num_tokens(system_text)
    of_speaker: defaultdict[str, list[tuple[ClipLength, float]]] = defaultdict(list)
    for clip in clips:
        of_speaker[clip.speaker].append((clip, clip.text_tokens + audio_columns(base, clip.frames)))
    lengths = SampleLengths()
    for own in of_speaker.values():
        total, longest = sum(tokens for _, tokens in own), sorted(tokens for _, tokens in own)[-2:]
        for clip, tokens in own:
            if not clip.draws_reference:
                continue
            mean = most = alone + tokens + (0 if clip.system_tokens is None else clip.system_tokens - system_tokens)
            if len(own) > 1:
                mean += per_reference + (total - tokens) / (len(own) - 1)
                most += per_reference + (longest[0] if tokens == longest[1] else longest[1])
            lengths.add(clip.key, mean, most)
    for key, tokens in named:
        lengths.add(key, tokens, tokens)
    return lengths


def _tokens_of_layout(base: BaseModel, system_text: str, num_references: int) -> int:
    """Text tokens of a sample whose transcripts are empty."""
    dialogue = canonical_dialogue("", [("reference", "")] * num_references)
    return base.dialogue_tokens(read_dialogue(dialogue, "target", system_text))[0]
