"""The fingerprint of a codec: one for equal weights and equal sizes, in whichever layout they are."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import torch
from boson_multimodal.audio_processing.higgs_audio_tokenizer import HiggsAudioTokenizer

from preprocess.common.json_file import JsonObject

_DIGITS = 3
_CODEC_KEYS = ("n_q", "quantizer_dim", "sample_rate", "semantic_sample_rate", "semantic_dim", "downsample_mode")
HUBERT_KEYS = (
    *("hidden_act", "layer_norm_eps", "num_attention_heads", "feat_extract_norm", "feat_extract_activation"),
    *("conv_stride", "do_stable_layer_norm", "feat_proj_layer_norm", "num_conv_pos_embedding_groups"),
)


def codec_fingerprint(tokenizer: HiggsAudioTokenizer) -> str:
    """Hex sha256 over name, dtype, shape and bytes of each tensor of the codec and of HuBERT, and over their configs.

    Of the convolutions with weight norm it takes the shape, and the root mean square to three digits: one layout
    holds them before that norm, the other after it, and the last bit of what it gives depends on the processor.
    """
    content = {}
    for name, tensor in tokenizer.state_dict().items():
        if name.endswith(("weight_g", "weight_v", "masked_spec_embed")):
            continue
        data = tensor.detach().cpu().contiguous()
        content[name] = [str(data.dtype), list(data.shape), hashlib.sha256(_bytes(data)).hexdigest()]
    for name, weight in _normed_weights(tokenizer):
        mean_square = float(weight.detach().double().square().mean())
        content[name] = [str(weight.dtype), list(weight.shape), f"{mean_square**0.5:.{_DIGITS - 1}e}"]
    whole = json.dumps([_deciding_values(tokenizer), sorted(content.items())], sort_keys=True)
    return hashlib.sha256(whole.encode()).hexdigest()


def _normed_weights(tokenizer: HiggsAudioTokenizer) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, weight) of each convolution that Boson's class gives a weight norm, whether it still has it or not."""
    for side in ("encoder", "decoder_2"):
        for name, module in getattr(tokenizer, side).named_modules():
            if hasattr(module, "weight_g"):
                yield f"{side}.{name}.weight", torch._weight_norm(module.weight_v, module.weight_g, 0)
            elif isinstance(module, torch.nn.Conv1d | torch.nn.ConvTranspose1d):
                yield f"{side}.{name}.weight", module.weight


def _deciding_values(tokenizer: HiggsAudioTokenizer) -> JsonObject:
    hubert = tokenizer.semantic_model.config
    values = {key: getattr(tokenizer, key) for key in _CODEC_KEYS}
    values |= {key: getattr(hubert, key) for key in HUBERT_KEYS}
    values["conv_stride"] = list(hubert.conv_stride)
    return values | {"hop_length": int(tokenizer.hop_length)}


def _bytes(tensor: torch.Tensor) -> memoryview:
    data: Any = tensor.flatten().view(torch.uint8).numpy()
    return memoryview(data)
