"""Losses of a pack as sums, and the one place that weights and adds them.

Sums, never means: the caller divides by the labelled positions of the whole global step. So neither packing nor
accumulation nor world size changes the cross-entropies.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from engine.base.recipe import Loss
from preprocess.corpus.dialogue import IGNORE_INDEX


class LabelledLogits(NamedTuple):
    """Logits at labelled positions only, each with the token that it should predict: the shift by one is done.

    text_logits [num_text, vocabulary], text_labels [num_text]; audio_logits [num_columns, codebooks, codes],
    audio_labels [num_columns, codebooks], -100 where a codebook has no label in a column.
    """

    text_logits: torch.Tensor
    text_labels: torch.Tensor
    audio_logits: torch.Tensor
    audio_labels: torch.Tensor


class LossSums(NamedTuple):
    """Sums over one pack: losses in nats, and numbers of correct predictions.

    text [], audio [codebooks]: plain cross-entropy, as training and validation report it. text_uniform [],
    audio_uniform [codebooks]: cross-entropy against the uniform distribution, which label smoothing adds; 0 without
    it. consistency []: see engine.model.consistency; 0 without it. text_correct [], of them start_correct [] at
    <|audio_out_bos|>; audio_correct [codebooks].
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
        """All sums 0, in float64 so that a sum over many packs keeps its digits."""
        shapes = [(), (num_codebooks,), (), (num_codebooks,), (), (), (), (num_codebooks,)]
        return cls(*(torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes))

    def plus(self, other: "LossSums") -> "LossSums":
        """These sums plus those of `other`, which is detached from its autograd graph."""
        return LossSums(*(mine + theirs.detach() for mine, theirs in zip(self, other, strict=True)))


def loss_sums(logits: LabelledLogits, start_token_id: int, smooth: bool = False) -> LossSums:
    """LossSums of a pack without its consistency; 0 with a gradient of 0 if nothing is labelled.

    start_token_id: that of <|audio_out_bos|>; smooth: compute also the sums that label smoothing needs.
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
    """[...] cross-entropy of logits [..., tokens] against the uniform distribution: the mean of -log p."""
    return logits.logsumexp(-1) - logits.mean(-1)


def codebook_weights(loss: Loss, num_codebooks: int) -> torch.Tensor:
    """[codebooks] weights in the audio loss: those of the recipe or equal ones, scaled to sum 1."""
    weights = torch.tensor(loss.codebook_weights or [1.0] * num_codebooks)
    return weights / weights.sum()


def weighted_loss(
    sums: LossSums, text_count: int, audio_count: int, loss: Loss, weights: torch.Tensor, consistency_count: int = 0
) -> torch.Tensor:
    """[] this pack's part of the loss of a global step: the weighted sums, each divided by its count over the step.

    text_count: labelled text positions; audio_count: labelled positions of each codebook; weights: [codebooks];
    consistency_count: samples that are contrasted. The step's loss is the sum over its packs. Label smoothing e takes
    (1 - e) of the cross-entropy and e of that against the uniform distribution, as torch's cross_entropy does.
    """
    plain, uniform = 1 - loss.label_smoothing, loss.label_smoothing
    text = (plain * sums.text + uniform * sums.text_uniform) / text_count
    audio = ((plain * sums.audio + uniform * sums.audio_uniform) * weights).sum() / audio_count
    consistency = sums.consistency / max(1, consistency_count)
    return loss.text_weight * text + loss.audio_weight * audio + loss.consistency_weight * consistency
