"""Causal self-attention over samples that lie side by side in one stream: each sees itself alone."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention.varlen import varlen_attn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

VARLEN, PER_SEGMENT = "varlen_attn", "scaled_dot_product_attention, sample by sample"


def attention_backend(device: torch.device, dtype: torch.dtype) -> str:
    """VARLEN or PER_SEGMENT: one variable-length kernel on CUDA, which takes no fp32; elsewhere a loop."""
    return VARLEN if device.type == "cuda" and dtype in (torch.bfloat16, torch.float16) else PER_SEGMENT


def causal_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: torch.Tensor, longest_segment: int
) -> torch.Tensor:
    """[L, heads, head_dim] from query [L, heads, head_dim] and key, value [L, key_value_heads, head_dim].

    segments: int32 [S + 1] borders of the samples.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    if attention_backend(query.device, query.dtype) == VARLEN:
        return varlen_attn(
            query, key, value, segments, segments, longest_segment, longest_segment, window_size=(-1, 0)
        )
    parts = []
    for begin, end in pairwise(segments.tolist()):
        heads_first = (tensor[begin:end].transpose(0, 1) for tensor in (query, key, value))
        parts.append(F.scaled_dot_product_attention(*heads_first, is_causal=True).transpose(0, 1))
    return torch.cat(parts)


def attention_layer(
    attention: nn.Module,
    query_key_value: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    rotary: tuple[torch.Tensor, torch.Tensor],
    segments: torch.Tensor,
    longest_segment: int,
) -> torch.Tensor:
    """[L, heads * head_dim] before o_proj, in the order of `segments`, from the projections of a LlamaAttention.

    query_key_value: [L, heads * head_dim] each; rotary: cos and sin [1, L, head_dim].
    """
    query, key, value = (
        projected.view(1, -1, heads, attention.head_dim).transpose(1, 2)
        for projected, heads in zip(
            query_key_value,
            (attention.num_heads, attention.num_key_value_heads, attention.num_key_value_heads),
            strict=True,
        )
    )
    query, key = apply_rotary_pos_emb(query, key, *rotary)
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    return causal_attention(query, key, value, segments, longest_segment).flatten(1)
