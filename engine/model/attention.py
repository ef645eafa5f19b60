"""Causal self-attention over samples that lie side by side in one stream: each sample attends only to itself."""

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention.varlen import varlen_attn
from transformers.models.llama.modeling_llama import LlamaAttention

VARLEN, PER_SEGMENT = "varlen_attn", "scaled_dot_product_attention, sample by sample"


def attention_backend(device: torch.device, dtype: torch.dtype) -> str:
    """VARLEN, one variable-length kernel, on CUDA in half precision (it takes no fp32); else PER_SEGMENT, a loop."""
    return VARLEN if device.type == "cuda" and dtype in (torch.bfloat16, torch.float16) else PER_SEGMENT


def causal_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: torch.Tensor, longest_segment: int
) -> torch.Tensor:
    """[L, heads, head_dim] from query [L, heads, head_dim] and key, value [L, key_value_heads, head_dim].

    segments: int32 [S + 1] borders of the samples; longest_segment: tokens of the longest one.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    if attention_backend(query.device, query.dtype) == VARLEN:
        return varlen_attn(  # type: ignore[return-value]  # a tuple only with return_aux
            query, key, value, segments, segments, longest_segment, longest_segment, window_size=(-1, 0)
        )
    parts = []
    for begin, end in pairwise(segments.tolist()):
        # With a batch dimension: without it torch has no flash kernel and multiplies bf16 in fp32.
        q, k, v = (tensor[None, begin:end].transpose(1, 2) for tensor in (query, key, value))
        parts.append(F.scaled_dot_product_attention(q, k, v, is_causal=True)[0].transpose(0, 1))
    return torch.cat(parts)


def attention_layer(
    attention: LlamaAttention,
    query_key_value: list[torch.Tensor],
    rotary: tuple[torch.Tensor, torch.Tensor],
    segments: torch.Tensor,
    longest_segment: int,
) -> torch.Tensor:
    """[L, heads * head_dim], the input of o_proj, from the outputs of q_proj, k_proj and v_proj.

    query_key_value: [L, heads * head_dim] each; rotary: cos and sin [1, L, head_dim]. All are in stream order, in
    which `segments` counts.
    """
    query, key, value = (projected.view(len(projected), -1, attention.head_dim) for projected in query_key_value)
    cos, sin = (table[0, :, None, : attention.head_dim // 2] for table in rotary)  # their two halves are equal
    query, key = _Rotate.apply(query, cos, sin), _Rotate.apply(key, cos, sin)
    return causal_attention(query, key, value, segments, longest_segment).flatten(1)


class _Rotate(torch.autograd.Function):
    """RoPE of rows [L, heads, head_dim] by cos and sin [L, 1, head_dim / 2]; backward rotates the other way.

    The same sums as transformers' apply_rotary_pos_emb in half the memory traffic (bench/LOG.md).
    """

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate(rows, cos, sin, 1)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotate(gradient, cos, sin, -1), None, None


def _rotate(rows: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, direction: int) -> torch.Tensor:
    first, second = rows.chunk(2, dim=-1)
    rotated = torch.empty_like(rows)
    rotated_first, rotated_second = rotated.chunk(2, dim=-1)
    torch.mul(first, cos, out=rotated_first).addcmul_(second, sin, value=-direction)
    torch.mul(second, cos, out=rotated_second).addcmul_(first, sin, value=direction)
    return rotated
