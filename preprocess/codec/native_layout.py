"""The codec in the layout of transformers 5 (`model_type: higgs_audio_v2_tokenizer`), in terms of Boson's own.

The names and values are those of transformers.models.higgs_audio_v2_tokenizer. Its file holds HuBERT as well, and the
convolutions of the acoustic encoder and decoder with their weight norm applied: `weight` in place of Boson's weight_g
and weight_v.
"""

import inspect
import math
import re
from typing import Annotated, Any

from boson_multimodal.audio_processing.semantic_module import Encoder
from pydantic import Field

from preprocess.codec.config_forms import SampleRateHz, Size
from preprocess.common.json_file import JsonObject
from preprocess.common.record import Form

MODEL_TYPE = "higgs_audio_v2_tokenizer"
WEIGHTS_FILE = "model.safetensors"
_RES_UNIT = ("snake1", "conv1", "snake2", "conv2")  # of DAC, by its place in Boson's Sequential
# What Boson's class has built in: arguments of its semantic encoder and decoder, and a constant of its encode.
_FIXED: dict[str, Any] = {
    name: list(value) if isinstance(value, tuple) else value
    for name in ("kernel_size", "channel_ratios", "strides", "block_dilations", "unit_kernel_size")
    for value in [inspect.signature(Encoder.__init__).parameters[name].default]
} | {"downsample_factor": 320}


# Each doubles the encoder's channels, and its convolutions are twice as long as the ratio.
Ratios = Annotated[list[Annotated[int, Field(ge=1, le=64)]], Field(min_length=1, max_length=8)]


class AcousticForm(Form):
    """Sizes of transformers' DacConfig."""

    hidden_size: Size
    downsampling_ratios: Ratios
    upsampling_ratios: Ratios


class NativeForm(Form):
    """Sizes of transformers' HiggsAudioV2TokenizerConfig; the rest is checked with Boson's config."""

    acoustic_model_config: AcousticForm
    semantic_model_config: dict[str, Any]
    sample_rate: SampleRateHz
    semantic_sample_rate: SampleRateHz
    codebook_size: Annotated[Size, Field(ge=2)]
    codebook_dim: Size
    target_bandwidths: Annotated[list[float], Field(min_length=1, max_length=64)]


def boson_config(native: JsonObject) -> JsonObject:
    """The arguments of Boson's HiggsAudioTokenizer. native: one that fits NativeForm.

    Raises ValueError, with (found, expected), for a codec that Boson's class can't be.
    """
    acoustic = native["acoustic_model_config"]
    ratios = acoustic["downsampling_ratios"]
    wrong = [
        (f"{name} = {native[name]!r:.60}", f"{value!r}")
        for name, value in _FIXED.items()
        if native.get(name, value) != value
    ]
    if acoustic["upsampling_ratios"] != ratios:
        wrong.append((f"upsampling_ratios = {acoustic['upsampling_ratios']!r:.60}", f"downsampling_ratios: {ratios}"))
    whole = acoustic["hidden_size"] + native["semantic_model_config"].get("hidden_size", 0)
    if native["codebook_dim"] == whole:  # then Boson's class has no projections, and transformers' has them
        wrong.append((f"codebook_dim = {whole}", "another size than that of both encoders together"))
    if wrong:
        raise ValueError(wrong)
    frame_rate = math.ceil(native["sample_rate"] / math.prod(ratios))
    bits = math.ceil(math.log2(native["codebook_size"]))
    return {
        "D": acoustic["hidden_size"],
        "ratios": ratios,
        "sample_rate": native["sample_rate"],
        "semantic_sample_rate": native["semantic_sample_rate"],
        "n_q": int(1000 * native["target_bandwidths"][-1] // (frame_rate * bits)),
        "bins": native["codebook_size"],
        "codebook_dim": native["codebook_dim"],
        "target_bandwidths": native["target_bandwidths"],
    }


def native_name(name: str, num_ratios: int) -> str:
    """The native name of a tensor of Boson's codec, whose encoder has `num_ratios` blocks."""
    name = re.sub(r"\.weight_[gv]$", ".weight", name)
    side = re.match(r"(?:encoder\.block|decoder_2\.model)\.(\d+)\.(.+)", name)
    if side:
        number, rest = int(side[1]), side[2]
        prefix = "acoustic_encoder" if name.startswith("encoder") else "acoustic_decoder"
        outside = {0: "conv1", num_ratios + 1: "snake1", num_ratios + 2: "conv2"}.get(number)
        return f"{prefix}.{outside}.{rest}" if outside else f"{prefix}.block.{number - 1}.{_in_block(prefix, rest)}"
    for pattern, native in (
        (r"^quantizer\.vq\.layers\.(\d+)\.(_codebook\.)?", _in_quantizer),
        (r"^fc_prior\.", "fc."),
        (r"^fc_post([12])\.", r"fc\1."),
        (r"^((?:en|de)coder_semantic\..*?conv[12]?)\.conv\.", r"\1."),
    ):
        name, count = re.subn(pattern, native, name)
        if count:
            break
    return name


def _in_block(prefix: str, rest: str) -> str:
    """The name in an encoder block (three residual units, snake, convolution) or a decoder block (the reverse)."""
    match = re.fullmatch(r"block\.(\d)\.(.+)", rest)
    assert match, rest
    place, inner = int(match[1]), match[2]
    first_unit = 0 if prefix == "acoustic_encoder" else 2
    if first_unit <= place < first_unit + 3:
        unit = re.fullmatch(r"block\.(\d)\.(.+)", inner)
        assert unit, inner
        return f"res_unit{place - first_unit + 1}.{_RES_UNIT[int(unit[1])]}.{unit[2]}"
    others = {3: "snake1", 4: "conv1"} if first_unit == 0 else {0: "snake1", 1: "conv_t1"}
    return f"{others[place]}.{inner}"


def _in_quantizer(match: re.Match[str]) -> str:
    return f"quantizer.quantizers.{match[1]}.{'codebook.' if match[2] else ''}"
