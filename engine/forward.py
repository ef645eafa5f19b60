"""The forward pass of a pack: model and batch in, logits at labelled positions out.

`boson`: Boson's own HiggsAudioModel.forward on its collator's padded batch. It computes text logits at every
position and is the oracle that a faster path must equal.
"""

import dataclasses

import torch
from boson_multimodal.data_collator.higgs_audio_collator import HiggsAudioBatchInput
from boson_multimodal.model.higgs_audio import HiggsAudioModel
from torch import nn

from engine.losses import LabelledLogits, LossSums, loss_sums
from engine.sample import IGNORE_INDEX


def boson_forward(model: HiggsAudioModel, batch: HiggsAudioBatchInput) -> LabelledLogits:
    """Logits of Boson's forward at the positions that predict a label.

    The shift by one stays inside a sample: a row of the padded batch is one sample, and in the concatenated audio
    columns the first column of each audio (stream BOS) bears no label, so no column predicts across a border.
    """
    inputs = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    output = model(**inputs)
    text_labels = output.expanded_labels[:, 1:]
    labelled = text_labels != IGNORE_INDEX
    audio_labels = batch.label_audio_ids[:, 1:].T  # [columns - 1, codebooks]
    has_label = (audio_labels != IGNORE_INDEX).any(1)
    return LabelledLogits(
        text_logits=output.logits[:, :-1][labelled],
        text_labels=text_labels[labelled],
        audio_logits=output.audio_logits[:-1][has_label],
        audio_labels=audio_labels[has_label],
    )


class LossModel(nn.Module):
    """A model (bare or under PEFT) whose forward takes a batch and gives the pack's LossSums.

    DeepSpeed wraps this, so that losses are computed inside its forward.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    @property
    def higgs(self) -> HiggsAudioModel:
        """Boson's model, with PEFT's layers in it where there is an adapter."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    def forward(self, batch: HiggsAudioBatchInput) -> LossSums:
        return loss_sums(boson_forward(self.higgs, batch), self.higgs.config.audio_out_bos_token_id)


def to_device(batch: HiggsAudioBatchInput, device: torch.device) -> HiggsAudioBatchInput:
    """The batch with its tensors on `device`; copies from pinned memory overlap with computing."""
    moved = {
        field.name: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for field in dataclasses.fields(batch)
        for value in [getattr(batch, field.name)]
    }
    return HiggsAudioBatchInput(**moved)
