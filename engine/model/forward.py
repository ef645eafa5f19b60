"""The forward pass of a pack: model and batch in, logits at labelled positions out, by either of two methods.

`boson`: Boson's own HiggsAudioModel.forward on the padded batch of its collator. It computes text logits at every
position, and is the reference.
`packed`: the same modules applied to one flat stream: no padding, one split into text and audio for all layers, heads
at labelled positions only. tests/engine/model/test_forward.py compares it with the reference, gradients included.
"""

import dataclasses
import functools
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from boson_multimodal.data_collator.higgs_audio_collator import HiggsAudioBatchInput
from boson_multimodal.model.higgs_audio import HiggsAudioModel
from boson_multimodal.model.higgs_audio.modeling_higgs_audio import HiggsAudioDualFFNDecoderLayer
from peft import PeftModel
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaDecoderLayer, LlamaMLP, LlamaRMSNorm

from engine.base.recipe import Loss
from engine.batch.stream import Batch, Stream, TowerInput, map_tensors
from engine.model.attention import attention_layer
from engine.model.consistency import consistency_sum
from engine.model.flops import FlopRates, flop_rates
from engine.model.lora_linear import project
from engine.model.losses import LabelledLogits, LossSums, codebook_weights, loss_sums
from preprocess.corpus.dialogue import IGNORE_INDEX

DecoderLayer: TypeAlias = HiggsAudioDualFFNDecoderLayer | LlamaDecoderLayer
Rotary: TypeAlias = tuple[torch.Tensor, torch.Tensor]  # cos and sin, [1, L, head_dim] each


def boson_forward(model: HiggsAudioModel, batch: HiggsAudioBatchInput) -> LabelledLogits:
    """Logits of Boson's forward at the positions that predict a label.

    The shift by one never crosses from one sample into the next: a row of the padded batch is one sample, and in the
    concatenated audio columns the first column of each audio (stream BOS) has no label.
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


def packed_hidden(model: HiggsAudioModel, stream: Stream, num_checkpointed_layers: int = 0) -> torch.Tensor:
    """[L, hidden] of a stream, in split order, after the last layer and before the final norm.

    num_checkpointed_layers: how many layers, from the first on, recompute their activations in the backward pass.
    """
    text = model.embed_tokens(stream.text_tokens)
    if stream.tower is not None:
        text = text.index_copy(0, stream.tower.rows, _tower_outputs(model, stream.tower))
    hidden = torch.cat([text, model._embed_audio_ids(stream.audio_columns)])
    cos, sin = model.rotary_emb(hidden, stream.position_ids.unsqueeze(0))
    text_positions = stream.stream_to_split[: len(stream.text_tokens)]
    text_rotary = cos[:, text_positions], sin[:, text_positions]
    for number, layer in enumerate(model.layers):
        if number < num_checkpointed_layers and torch.is_grad_enabled():
            hidden = checkpoint(_layer, layer, hidden, stream, (cos, sin), text_rotary, use_reentrant=False)
        else:
            hidden = _layer(layer, hidden, stream, (cos, sin), text_rotary)
    return hidden


def packed_logits(model: HiggsAudioModel, hidden: torch.Tensor, stream: Stream) -> LabelledLogits:
    """Logits at the labelled positions of a stream, from its `packed_hidden`."""
    heads = model.audio_decoder_proj
    (text_logits,) = project(_norm(model.norm, hidden[stream.text_predict]), heads.text_lm_head)
    (audio_logits,) = project(_norm(model.norm, hidden[stream.audio_predict]), heads.audio_lm_head)
    return LabelledLogits(
        text_logits=text_logits,
        text_labels=stream.text_labels,
        audio_logits=audio_logits.view(-1, model.audio_num_codebooks, model.audio_codebook_size),
        audio_labels=stream.audio_labels,
    )


def _tower_outputs(model: HiggsAudioModel, tower: TowerInput) -> torch.Tensor:
    """[F, hidden] from the waveforms by Boson's audio tower and projector; [0, hidden] with zero gradient if none."""
    if len(tower.features):
        outputs, _ = model._apply_audio_tower(tower.features, tower.feature_mask)
        return torch.index_select(outputs.flatten(0, 1), 0, tower.outputs)
    no_rows = model.embed_tokens.weight.new_zeros(0, model.audio_tower.config.d_model)
    projected: torch.Tensor = model.audio_encoder_proj(no_rows)
    return projected


def _layer(
    layer: DecoderLayer, hidden: torch.Tensor, stream: Stream, rotary: Rotary, text_rotary: Rotary
) -> torch.Tensor:
    """One decoder layer of any kind that Boson's config allows and engine.base.trainable_base does not refuse."""
    # For `split`: the backward of a slice fills zeros and adds (bench/LOG.md).
    sides = [len(stream.text_tokens), len(hidden) - len(stream.text_tokens)]
    if getattr(layer, "fast_forward", False):
        # Audio columns skip the layer, and text attends to text only.
        text, audio = hidden.split(sides)
        projected = _project(layer.self_attn, _norm(layer.input_layernorm, text))
        mixed = attention_layer(
            layer.self_attn, projected, text_rotary, stream.text_segments, stream.longest_text_segment
        )
        text = text + project(mixed, layer.self_attn.o_proj)[0]
        text = text + _mlp(layer.mlp, _norm(layer.post_attention_layernorm, text))
        return torch.cat([text, audio])

    is_dual = hasattr(layer, "audio_mlp")
    if is_dual:
        text, audio = hidden.split(sides)
        normed = torch.cat([_norm(layer.input_layernorm, text), _norm(layer.audio_input_layernorm, audio)])
    else:
        normed = _norm(layer.input_layernorm, hidden)
    projected = [
        _Permute.apply(part, stream.split_to_stream, stream.stream_to_split)
        for part in _project(layer.self_attn, normed)
    ]
    mixed = attention_layer(layer.self_attn, projected, rotary, stream.segments, stream.longest_segment)
    mixed = _Permute.apply(mixed, stream.stream_to_split, stream.split_to_stream)
    hidden = hidden + project(mixed, layer.self_attn.o_proj)[0]
    if not is_dual:
        return hidden + _mlp(layer.mlp, _norm(layer.post_attention_layernorm, hidden))
    text, audio = hidden.split(sides)
    text = _mlp(layer.mlp, _norm(layer.post_attention_layernorm, text))
    audio = _mlp(layer.audio_mlp, _norm(layer.audio_post_attention_layernorm, audio))
    return hidden + torch.cat([text, audio])


def _project(attention: LlamaAttention, hidden: torch.Tensor) -> list[torch.Tensor]:
    return project(hidden, attention.q_proj, attention.k_proj, attention.v_proj)


def _mlp(mlp: LlamaMLP, hidden: torch.Tensor) -> torch.Tensor:
    gate, up = project(hidden, mlp.gate_proj, mlp.up_proj)
    return project(mlp.act_fn(gate) * up, mlp.down_proj)[0]


def _norm(norm: LlamaRMSNorm, hidden: torch.Tensor) -> torch.Tensor:
    """LlamaRMSNorm's result; on CUDA by one kernel instead of eight, and without keeping an fp32 copy."""
    return F.rms_norm(hidden, norm.weight.shape, norm.weight, norm.variance_epsilon)


class _Permute(torch.autograd.Function):
    """Rows in another order. backward gathers by the inverse order; autograd's own would use atomic additions."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, order: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(inverse)
        return rows.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return gradient.index_select(0, inverse), None, None


class LossModel(nn.Module):
    """A model, bare or under PEFT, whose forward takes a batch of either kind and returns the pack's LossSums.

    DeepSpeed wraps this class, so that losses are computed inside its forward.
    """

    def __init__(
        self, model: HiggsAudioModel | PeftModel, num_checkpointed_layers: int = 0, loss: Loss | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.num_checkpointed_layers = num_checkpointed_layers
        self.loss = loss or Loss()

    @property
    def higgs(self) -> HiggsAudioModel:
        """Boson's model, with PEFT's layers in it if there is an adapter."""
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    @functools.cached_property
    def flop_rates(self) -> FlopRates:
        """FLOPs of a training step of this model, as it is at the first call."""
        return flop_rates(self.higgs)

    @functools.cached_property
    def codebook_weights(self) -> torch.Tensor:
        """[codebooks] weights of the audio losses, on the device that the model has at the first call."""
        return codebook_weights(self.loss, self.higgs.config.audio_num_codebooks).to(self.higgs.device)

    def forward(self, batch: Batch) -> LossSums:
        """LossSums of the pack. In evaluation they are the plain cross-entropies, whatever training adds to them."""
        higgs, loss = self.higgs, self.loss
        start, smooth = higgs.config.audio_out_bos_token_id, self.training and loss.label_smoothing > 0
        if not isinstance(batch, Stream):
            return loss_sums(boson_forward(higgs, batch), start, smooth)
        hidden = packed_hidden(higgs, batch, self.num_checkpointed_layers)
        sums = loss_sums(packed_logits(higgs, hidden, batch), start, smooth)
        if self.training and loss.consistency_weight > 0:
            audio = higgs.norm(hidden[len(batch.text_tokens) :])
            consistency = consistency_sum(audio, batch.voice, batch.speakers, loss.consistency_temperature)
            sums = sums._replace(consistency=consistency)
        return sums


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on `device`; copies from pinned memory overlap with computation."""
    return map_tensors(batch, lambda tensor: tensor.to(device, non_blocking=True))
