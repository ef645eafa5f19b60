"""FLOPs of a LoRA training step, for MFU: what the mathematics needs, without recomputed activations.

A multiply-add counts as 2. Per token, a frozen weight costs 4 (forward, and the gradient of its input) and a trained
weight 6 (its own gradient as well). Counting 6 for all weights, the rule for full training, would overstate MFU by
half. Causal attention costs 6 x width x length^2 per sample and layer: half of the full square, once forward and
twice backward. A weight counts for the tokens that pass it: in a DualFFN layer, text passes one FFN and audio the
other; the heads get labelled positions only.
"""

import re
from dataclasses import dataclass

import torch
from boson_multimodal.model.higgs_audio import HiggsAudioModel

from engine.batch.stream import Stream

# Dense bf16 peaks from NVIDIA's data sheets, by a part of the device name that CUDA reports; the first match counts.
_PEAK_BF16_TFLOPS = {
    "H200 NVL": 835,
    "H100 NVL": 835,
    "H100 PCIe": 756,
    "H200": 989,  # GH200 too
    "H100": 989,
    "B200": 2250,
    "A100": 312,
    "L40S": 362,
}


def peak_flops(device_name: str) -> float | None:
    """Peak dense bf16 FLOP/s of a GPU by its name; None if it is not in the table."""
    return next((peak * 1e12 for part, peak in _PEAK_BF16_TFLOPS.items() if part in device_name), None)


@dataclass(frozen=True)
class FlopRates:
    """FLOPs, forward and backward, per unit of each kind that a pack contains."""

    text_token: int
    audio_column: int
    text_label: int
    audio_label: int  # an audio column with labels
    squared_length: int  # length of a sample: its text tokens and audio columns
    squared_text_length: int  # text tokens of a sample

    def of_pack(self, stream: Stream) -> float:
        """FLOPs of one pack, forward and backward: the sum over kinds of rate times number."""
        return (
            self.text_token * len(stream.text_tokens)
            + self.audio_column * stream.audio_columns.shape[1]
            + self.text_label * len(stream.text_predict)
            + self.audio_label * len(stream.audio_predict)
            + self.squared_length * _sum_of_squares(stream.segments)
            + self.squared_text_length * _sum_of_squares(stream.text_segments)
        )


def flop_rates(model: HiggsAudioModel) -> FlopRates:
    """The rates of a loaded model with its LoRA layers and modules trained whole, in any DualFFN configuration."""
    text_token = audio_column = text_label = audio_label = 0
    for name, parameter in model.named_parameters():
        if parameter.dim() != 2 or ".original_module." in name:  # PEFT's unused copy of a head trained whole
            continue
        flops = (6 if parameter.requires_grad else 4) * parameter.numel()
        match = re.match(r"layers\.(\d+)\.(self_attn|mlp|audio_mlp)\.", name)
        if match:
            layer, part = model.layers[int(match[1])], match[2]
            text_token += flops * (part != "audio_mlp")
            audio_column += flops * (part in _parts_for_audio(layer))
        elif ".text_lm_head." in name:
            text_label += flops
        elif ".audio_lm_head." in name:
            audio_label += flops
    config = model.config.text_config
    width = config.num_attention_heads * config.head_dim
    num_text_only = sum(getattr(layer, "fast_forward", False) for layer in model.layers)
    return FlopRates(
        text_token=text_token,
        audio_column=audio_column,
        text_label=text_label,
        audio_label=audio_label,
        squared_length=6 * width * (len(model.layers) - num_text_only),
        squared_text_length=6 * width * num_text_only,
    )


def _parts_for_audio(layer: torch.nn.Module) -> tuple[str, ...]:
    """Parts of a decoder layer that audio columns pass in engine.model.forward."""
    if getattr(layer, "fast_forward", False):
        return ()
    return ("self_attn", "audio_mlp") if hasattr(layer, "audio_mlp") else ("self_attn", "mlp")


def _sum_of_squares(borders: torch.Tensor) -> int:
    return int((borders.diff().long() ** 2).sum())
