"""Linear layers under PEFT's LoRA, as one autograd function per projection group (q, k, v; gate, up; o; down).

PEFT's own forward runs, besides its matmuls, a dropout with its mask, a scaling and an addition for every layer, and
their counterparts in the backward pass. The layers of a group share one input, so one dropped-out copy and one matmul
for all their A's will do; scalings and additions are part of the other matmuls (addmm). The parameters remain PEFT's:
what is saved is a standard adapter.

Two things differ from PEFT, both in what is random or rounded: the layers of a group share one dropout mask, and in
bf16 an output is rounded twice (base, base + adapter) where PEFT rounds five times.
"""

from collections.abc import Sequence
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from peft.tuners.lora import Linear as LoraLinear
from torch import nn

Tensors = Sequence[torch.Tensor]


def project(rows: torch.Tensor, *layers: nn.Module) -> list[torch.Tensor]:
    """layer(rows) of each of `layers`: [T, out] each, from rows [T, in].

    Fused if all layers are plain LoRA (or rsLoRA) on a frozen linear layer in the dtype of `rows`. Otherwise each
    runs its own forward: layers without adapter, trained whole (modules_to_save), with DoRA or another of PEFT's
    variants, with adapters merged or switched off, with fp32 adapters on a bf16 model.
    """
    plain = [layer for layer in layers if _is_plain_lora(layer, rows.dtype)]
    if len(plain) < len(layers):
        return [layer(rows) for layer in layers]
    pairs = [(layer, layer.active_adapters[0]) for layer in plain]
    dropout = plain[0].lora_dropout[plain[0].active_adapters[0]]
    return list(
        _LoraGroup.apply(
            rows,
            dropout.p if isinstance(dropout, nn.Dropout) and dropout.training else 0.0,
            [layer.scaling[adapter] for layer, adapter in pairs],
            [layer.get_base_layer().bias for layer in plain],
            *(layer.get_base_layer().weight for layer in plain),
            *(layer.lora_A[adapter].weight for layer, adapter in pairs),
            *(layer.lora_B[adapter].weight for layer, adapter in pairs),
        )
    )


def _is_plain_lora(layer: nn.Module, dtype: torch.dtype) -> TypeGuard[LoraLinear]:
    if not isinstance(layer, LoraLinear) or layer.disable_adapters or layer.merged or len(layer.active_adapters) != 1:
        return False
    adapter, base = layer.active_adapters[0], layer.get_base_layer()
    return (
        type(base) is nn.Linear
        and not any(parameter.requires_grad for parameter in base.parameters())
        and adapter in layer.lora_A
        and adapter not in layer.lora_variant
        and not layer.lora_bias[adapter]
        and base.weight.dtype == layer.lora_A[adapter].weight.dtype == dtype
    )


class _LoraGroup(torch.autograd.Function):
    """y_i = x W_i^T + bias_i + s_i dropout(x) A_i^T B_i^T for n layers that share x and the dropout mask.

    weights: all W, then all A, then all B. The products of x with the A's stand side by side in one matrix, `inner`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows: torch.Tensor,
        dropout: float,
        scalings: list[float],
        biases: list[torch.Tensor | None],
        *weights: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        bases, downs, ups = _thirds(weights)
        dropped, kept = torch.native_dropout(rows, dropout, True) if dropout else (rows, None)
        down = torch.cat(tuple(downs)) if len(downs) > 1 else downs[0]  # [sum of ranks, in]
        inner = dropped @ down.T  # [T, sum of ranks]
        outputs = []
        for base, bias, up, part, scaling in zip(bases, biases, ups, _parts(inner, downs), scalings, strict=True):
            outputs.append(F.linear(rows, base, bias).addmm_(part, up.T, alpha=scaling))
        # The W are frozen: of x, backward needs only the dropped-out copy, for the gradients of the A's.
        ctx.save_for_backward(dropped, kept, inner, down, *weights)
        ctx.dropout, ctx.scalings = dropout, scalings
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        dropped, kept, inner, down, *weights = ctx.saved_tensors
        bases, downs, ups = _thirds(weights)
        inner_gradient = torch.empty_like(inner)
        up_gradients = []
        parts = zip(gradients, ups, _parts(inner, downs), _parts(inner_gradient, downs), ctx.scalings, strict=True)
        for gradient, up, part, part_gradient, scaling in parts:
            part_gradient.addmm_(gradient, up, beta=0, alpha=scaling)
            up_gradients.append(torch.empty_like(up).addmm_(gradient.T, part, beta=0, alpha=scaling))
        down_gradients = (inner_gradient.T @ dropped).split([len(down) for down in downs])
        row_gradient = None
        if ctx.needs_input_grad[0]:
            row_gradient = gradients[0] @ bases[0]
            for gradient, base in zip(gradients[1:], bases[1:], strict=True):
                row_gradient.addmm_(gradient, base)
            if kept is None:
                row_gradient.addmm_(inner_gradient, down)
            else:
                row_gradient.addcmul_(inner_gradient @ down, kept, value=1 / (1 - ctx.dropout))
        return row_gradient, None, None, None, *(None for _ in bases), *down_gradients, *up_gradients


def _thirds(weights: Tensors) -> tuple[Tensors, Tensors, Tensors]:
    count = len(weights) // 3
    return weights[:count], weights[count : 2 * count], weights[2 * count :]


def _parts(inner: torch.Tensor, downs: Tensors) -> Tensors:
    """The columns of inner [T, sum of ranks] that belong to each A, without copying."""
    return torch.split(inner, [len(down) for down in downs], dim=1)
