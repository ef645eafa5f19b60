"""MKL's own bits from oneDNN, which is twice as fast on AMD's cores.

PyTorch gives linear layers to MKL. MKL sums blocks of the input's channels (192 of them on AVX2) and adds each
block's sum to the bias and the blocks before it. oneDNN does the same when it is given the blocks one after the
other. Which block is MKL's on this machine is found by trying.
"""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F

_BLOCKS = (128, 192, 256, 384, 512)
# Layers of fewer frames are left to MKL, which has other kernels for a few.
MIN_FRAMES = 64
_FRAMES_TO_TRY = (MIN_FRAMES, 65, 100, 333, 750, 1500)


def add_in_blocks(linear: torch.nn.Linear) -> None:
    """Give a linear layer a forward in blocks, if this machine's MKL has a block size."""
    block = _block_of_mkl(linear.in_features, linear.out_features)
    if block is None or linear.bias is None:
        return
    weight, bias = linear.weight.detach(), linear.bias.detach()
    fast = _in_blocks(weight, bias, block)
    linear.forward = lambda x: fast(x) if x.shape[-2] >= MIN_FRAMES else F.linear(x, weight, bias)


@functools.cache
@torch.no_grad()
def _block_of_mkl(num_in: int, num_out: int) -> int | None:
    """Input channels that MKL sums at a time; None if oneDNN gives its bits at no block size."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(num_out, num_in, generator=generator)
    bias = torch.randn(num_out, generator=generator)
    inputs = [torch.randn(1, frames, num_in, generator=generator) for frames in _FRAMES_TO_TRY]
    expected = [F.linear(x, weight, bias) for x in inputs]
    for block in (num_in, *_BLOCKS):
        if block <= num_in:
            layer = _in_blocks(weight, bias, block)
            if all(torch.equal(layer(x), y) for x, y in zip(inputs, expected, strict=True)):
                return block
    return None


def _in_blocks(weight: torch.Tensor, bias: torch.Tensor, block: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """A linear layer on [..., frames, channels] that adds up `block` channels at a time."""
    pack, run = torch.ops.mkldnn._reorder_linear_weight, torch.ops.mkldnn._linear_pointwise
    first, *others = [pack(part.contiguous(), 512) for part in weight.split(block, dim=1)]

    def forward(x: torch.Tensor) -> torch.Tensor:
        part, *parts = [part.contiguous() for part in x.split(block, dim=-1)]
        out = run(part, first, bias, "none", [], "")
        for part, packed in zip(parts, others, strict=True):
            out = run.binary(part, out, packed, None, "add")
        return out

    return forward
