"""Losses of a pack as sums, and the one place that weighs them.

A sum, never a mean: the caller divides by the labelled positions of the whole global step, so neither
packing, accumulation nor world size changes the cross-entropies.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from engine.base.recipe import Loss
from preprocess.corpus.dialogue import IGNORE_INDEX


class LabelledLogits(NamedTuple):
    """Logits at labelled positions alone, each beside the token it must predict (already shifted by one).

    text_logits [num_text, vocabulary], text_labels [num_text]; audio_logits [num_columns, codebooks, codes],
    audio_labels [num_columns, codebooks], -100 where a codebook has no label in a column.
    """

    text_logits: torch.Tensor
    text_labels: torch.Tensor
    audio_logits: torch.Tensor
    audio_labels: torch.Tensor


class LossSums(NamedTuple):
    """Sums over one pack: losses in nats and right answers.

    text [], audio [codebooks]: plain cross-entropy, what training and validation report. text_uniform [],
    audio_uniform [codebooks]: cross-entropy against all tokens alike, the part that label smoothing adds; 0 where it
    is off. consistency []: see engine.model.consistency; 0 where it is off. text_correct []; start_correct [] (of
    <|audio_out_bos|>); audio_correct [codebooks].
    """

    text: torch.Tensor
    audio: torch.Tensor
    text_uniform: torch.Tensor
    audio_uniform: torch.Tensor
    consistency: torch.Tensor
    text_correct: torch.Tensor
    start_correct: torch.Tensor
    audio_correct: torch.Tensor

    @classmethod
    def zeros(cls, num_codebooks: int, device: torch.device) -> "LossSums":
        """No loss yet, in float64 so that a long sum keeps its digits."""
        shapes = [(), (num_codebooks,), (), (num_codebooks,), (), (), (), (num_codebooks,)]
        return cls(*(torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes))

    def plus(self, other: "LossSums") -> "LossSums":
        """This plus `other`, without its graph."""
        return LossSums(*(mine + theirs.detach() for mine, theirs in zip(self, other, strict=True)))


def loss_sums(logits: LabelledLogits, start_token_id: int, smooth: bool = False) -> LossSums:
    """Cross-entropy sums and right answers of a pack; zero, with a gradient of zero, where nothing is labelled.

    smooth: also the sums that label smoothing needs.
    """
    text_logits, audio_logits = logits.text_logits.float(), logits.audio_logits.float()
    text = F.cross_entropy(text_logits, logits.text_labels, reduction="sum")
    num_codebooks, num_codes = audio_logits.shape[1:]
    audio = F.cross_entropy(audio_logits.reshape(-1, num_codes), logits.audio_labels.reshape(-1), reduction="none")
    text_uniform, audio_uniform = torch.zeros_like(text), audio.new_zeros(num_codebooks)
    if smooth:
        text_uniform = _against_uniform(text_logits).sum()
        audio_uniform = (_against_uniform(audio_logits) * (logits.audio_labels != IGNORE_INDEX)).sum(0)
    with torch.no_grad():
        text_right = logits.text_logits.argmax(-1) == logits.text_labels
        audio_right = logits.audio_logits.argmax(-1) == logits.audio_labels
    return LossSums(
        text=text,
        audio=audio.view(-1, num_codebooks).sum(0),
        text_uniform=text_uniform,
        audio_uniform=audio_uniform,
        consistency=torch.zeros_like(text),
        text_correct=text_right.sum(),
        start_correct=(text_right & (logits.text_labels == start_token_id)).sum(),
        audio_correct=audio_right.sum(0),
    )


def _against_uniform(logits: torch.Tensor) -> torch.Tensor:
    """[...] from [..., tokens]: the mean over tokens of -log p."""
    return logits.logsumexp(-1) - logits.mean(-1)


def codebook_weights(loss: Loss, num_codebooks: int) -> torch.Tensor:
    """[codebooks] weights that sum to 1: those of the recipe, or equal ones."""
    weights = torch.tensor(loss.codebook_weights or [1.0] * num_codebooks)
    return weights / weights.sum()


def weighted_loss(
    sums: LossSums,
    text_count: int,
    audio_count: int,
    loss: Loss,
    weights: torch.Tensor,
    consistency_count: int = 0,
) -> torch.Tensor:
    """The weighted loss of `sums`, divided by the counts of the whole global step.

    text_count: labelled text positions; audio_count: labelled positions of each codebook; weights: [codebooks];
    consistency_count: samples that are contrasted. Summed over the packs of a step this is the step's loss: with
    label smoothing e, (1 - e) of the cross-entropy and e of that against all tokens alike, as torch's cross_entropy.
    """
    plain, uniform = 1 - loss.label_smoothing, loss.label_smoothing
    text = (plain * sums.text + uniform * sums.text_uniform) / text_count
    audio = ((plain * sums.audio + uniform * sums.audio_uniform) * weights).sum() / audio_count
    consistency = sums.consistency / max(1, consistency_count)
    return loss.text_weight * text + loss.audio_weight * audio + loss.consistency_weight * consistency
