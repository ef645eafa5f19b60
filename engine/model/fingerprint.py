"""The fingerprint of a base: one for equal weights and equal sizes, in whichever layout and files they are."""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch.distributed as dist
from boson_multimodal.model.higgs_audio import HiggsAudioConfig

from engine.base.trainable_base import read_trainable_base
from engine.model.weight_files import StoredTensor, read_exactly, stored_tensors
from preprocess.common.errors import InputError
from preprocess.common.json_file import JsonObject
from preprocess.corpus.base_model import has_audio_tower, how_to_name_a_base

_BLOCK_BYTES = 1 << 22
_MOST_THREADS = 16
# Of the config, what decides the numbers that the model computes. What the layouts spell in two ways is left out, and
# so is what only generation reads: the end of a sequence, the longest context.
_TEXT_KEYS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim"),
    *("num_key_value_heads", "hidden_act", "rms_norm_eps", "rope_theta", "attention_bias", "attention_dropout"),
    "mlp_bias",
)
_AUDIO_KEYS = (
    *("audio_num_codebooks", "audio_codebook_size", "audio_stream_bos_id", "audio_stream_eos_id", "pad_token_id"),
    *("audio_in_token_idx", "audio_out_token_idx", "audio_out_bos_token_id", "audio_eos_token_id"),
    *("use_delay_pattern", "audio_embed_avg", "use_audio_out_embed_projector", "audio_decoder_proj_num_layers"),
)
# {(path, bytes, time of its last change) of each weight file: {tensor: sha256}}
_hashed: dict[tuple[tuple[str, int, int], ...], dict[str, str]] = {}


def base_fingerprint(folder: Path | str, flag: str = "--model") -> str:
    """Hex sha256 over name, dtype, shape and bytes of every tensor of Boson's model, and over its config.

    All bytes are read, in threads, once per process while the files stay as they are. Raises InputError for a folder
    that is no base that can be trained.
    """
    base = read_trainable_base(folder, flag)
    tensors = stored_tensors(base, flag)
    paths = sorted({piece.path for tensor in tensors.values() for piece in tensor.pieces})
    stats = [path.stat() for path in paths]
    key = tuple((str(path), stat.st_size, stat.st_mtime_ns) for path, stat in zip(paths, stats, strict=True))
    if key not in _hashed:
        with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
            _hashed[key] = dict(zip(tensors, pool.map(_sha256_of, tensors.values()), strict=True))
    content = {name: [tensor.dtype, tensor.shape, _hashed[key][name]] for name, tensor in sorted(tensors.items())}
    whole = json.dumps([_deciding_values(base.config), content], sort_keys=True)
    return hashlib.sha256(whole.encode()).hexdigest()


def _sha256_of(tensor: StoredTensor) -> str:
    digest, block = hashlib.sha256(), memoryview(bytearray(_BLOCK_BYTES))
    for piece in tensor.pieces:
        with open(piece.path, "rb", buffering=0) as file:
            file.seek(piece.begin)
            left = piece.end - piece.begin
            while left:
                part = block[: min(left, _BLOCK_BYTES)]
                read_exactly(file, part)
                digest.update(part)
                left -= len(part)
    return digest.hexdigest()


def _deciding_values(config: HiggsAudioConfig) -> JsonObject:
    """What of the config decides the numbers, spelt in one way."""
    text = config.text_config
    values: JsonObject = {key: getattr(text, key) for key in _TEXT_KEYS}
    values |= {key: getattr(config, key) for key in _AUDIO_KEYS}
    values["rope_scaling"] = _rope_scaling(text.rope_scaling or {})
    values["dual_ffn_layers"] = sorted(config.audio_dual_ffn_layers or [])
    # With an audio FFN in every layer there is none that audio could pass by.
    some_pass = len(values["dual_ffn_layers"]) < text.num_hidden_layers
    values["audio_passes_other_layers"] = config.audio_adapter_type == "dual_ffn_fast_forward" and some_pass
    if has_audio_tower(config):
        values["audio_encoder_config"] = config.audio_encoder_config.to_diff_dict()
    return values


def _rope_scaling(given: JsonObject) -> JsonObject:
    """RoPE's scaling, spelt in one way: of Llama 3's three numbers two quotients decide, the wavelengths [tokens]."""
    rope = {key: float(value) if isinstance(value, int) else value for key, value in given.items()}
    rope["rope_type"] = rope.pop("type", None) or rope.get("rope_type", "default")
    if rope["rope_type"] == "llama3":
        longest = rope.pop("original_max_position_embeddings")
        rope |= {name: longest / rope[name] for name in ("low_freq_factor", "high_freq_factor")}
    return rope


def agreed_fingerprint(folder: Path | str) -> str:
    """As base_fingerprint, for a launch of several ranks: one rank of each node reads the files.

    Raises InputError on every rank if one does, or if the nodes have different bases. Without a process group it is
    base_fingerprint.
    """
    if not dist.is_initialized():
        return base_fingerprint(folder)
    mine: list[Any] = []
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:
        try:
            mine = [base_fingerprint(folder)]
        except InputError as error:
            mine = [error]
    of_ranks: list[list[Any]] = [[]] * dist.get_world_size()
    group = dist.new_group(backend="gloo")  # on CPU: no GPU is in use yet
    dist.all_gather_object(of_ranks, mine, group=group)
    dist.destroy_process_group(group)
    found = {rank: each[0] for rank, each in enumerate(of_ranks) if each}
    for each in found.values():
        if isinstance(each, InputError):
            raise each
    if len(set(found.values())) > 1:
        described = ", ".join(f"{each[:12]} at rank {rank}" for rank, each in found.items())
        action = f"Copy one base to every node. {how_to_name_a_base('--model')}"
        raise InputError(str(folder), f"bases with fingerprints {described}", "one base on all nodes", action)
    return str(found[0])
