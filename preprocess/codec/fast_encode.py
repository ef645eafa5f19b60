"""Boson's encode on one CPU core, faster, with the same bits.

Each function changes one part of a loaded tokenizer in place. What computes in another order than Boson's own module
is tried on noise of many lengths first, and used only where it gives the very floats on this processor: rounding that
differs in the last bit would give another code once in some ten thousand, because a code is the nearest of 1,024
entries (bench/LOG.md).
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from boson_multimodal.audio_processing import higgs_audio_tokenizer as boson

from preprocess.codec.precision import BOSON_MODE, EncodeMode

# Frames of a layer that are worked on at a time: 64 to 512 channels of them stay in a core's cache.
PIECE_FRAMES = 4096
# Shorter files are left to Boson's own code: there is little to win, and kernels for few frames differ.
MIN_SAMPLES = 36000
_CHANNELS_AT_A_TIME = 64
# Lengths to try: the shortest, the longest and the shortest last piece (at 9.5 pieces of the first stage), and an odd
# one at which the second stage is in pieces too. Longer ones would cost every command some seconds; a test has them.
_SAMPLES_TO_TRY = (MIN_SAMPLES, 38911, 38913, 51235)


@torch.no_grad()
def speed_up(tokenizer: boson.HiggsAudioTokenizer, mode: EncodeMode = BOSON_MODE) -> dict[str, bool]:
    """All that serves this way. Boson's encode, called as ever, then takes less time on a CPU in fp32.

    Returns, by name, whether a faster form was found to have Boson's bits on this processor; one that has not is off.
    """
    fold_weight_norm(tokenizer)
    forms = _fit_the_cache(tokenizer) if mode.device == "cpu" else {}
    skip_discarded_run(tokenizer)
    return forms


def _fit_the_cache(tokenizer: boson.HiggsAudioTokenizer) -> dict[str, bool]:
    hubert = tokenizer.semantic_model
    noise = 0.1 * torch.randn(1, max(_SAMPLES_TO_TRY), generator=torch.Generator().manual_seed(0))
    forms = {"acoustic encoder": _use_if_equal(tokenizer.encoder, in_pieces(tokenizer.encoder), noise[None])}
    if hubert.config.feat_extract_norm == "group" and hubert.config.feat_extract_activation == "gelu":
        extractor = hubert.feature_extractor
        forms["HuBERT's convolutions"] = _use_if_equal(extractor, extraction_in_pieces(extractor), noise)
    if hubert.config.hidden_act == "gelu":
        for layer in hubert.encoder.layers:
            activate_in_place(layer.feed_forward)
    return forms


def _use_if_equal(module: torch.nn.Module, forward: Callable, noise: torch.Tensor) -> bool:
    """Let `forward` take the module's place for MIN_SAMPLES or more, if it has its bits at all lengths tried."""
    plain = module.forward
    examples = (noise[..., :length] for length in _SAMPLES_TO_TRY)
    equal = all(torch.equal(forward(example), plain(example)) for example in examples)
    if equal:
        module.forward = lambda x: forward(x) if x.shape[-1] >= MIN_SAMPLES else plain(x)
    return equal


def fold_weight_norm(tokenizer: boson.HiggsAudioTokenizer) -> None:
    """Compute the weights of convolutions once; Boson computes them at every call."""
    for module in tokenizer.encoder.modules():
        if hasattr(module, "weight_g"):
            torch.nn.utils.remove_weight_norm(module)
    position = tokenizer.semantic_model.encoder.pos_conv_embed.conv
    torch.nn.utils.parametrize.remove_parametrizations(position, "weight")


def skip_discarded_run(tokenizer: boson.HiggsAudioTokenizer) -> None:
    """Save the run of the acoustic encoder that Boson's encode throws away for about two files in three.

    Boson runs it, compares the number of frames with HuBERT's, and where they differ runs it again on padded
    audio. The number of frames is arithmetic, so a run that will be discarded returns zeros of its shape.
    """
    run = tokenizer.encoder.forward
    convolutions = _convolutions(tokenizer.encoder)
    semantic_frames: list[int] = []  # set as HuBERT's branch ends, taken by the run that follows it

    def forward(x: torch.Tensor) -> torch.Tensor:
        frames = x.shape[-1]
        for conv in convolutions:
            frames = _num_frames(conv, frames)
        if semantic_frames and semantic_frames.pop() != frames:
            return x.new_zeros(x.shape[0], convolutions[-1].out_channels, frames)
        return run(x)

    tokenizer.encoder_semantic.register_forward_hook(
        lambda module, inputs, output: semantic_frames.append(output.shape[-1])
    )
    tokenizer.encoder.forward = forward


def in_pieces(encoder: torch.nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """The acoustic encoder's forward, each block on pieces that fit the cache, Snake and residuals in place.

    A whole file has 64 channels of 24,000 samples a second, 6 MB: every pass over them would go to memory.
    Pieces overlap by what the zero padding at their ends spoils.
    """
    first, *blocks, snake, last = encoder.block
    stages = [[first, *blocks[0].block], *([*block.block] for block in blocks[1:])]

    def forward(x: torch.Tensor) -> torch.Tensor:
        for stage in stages:
            x = _stage_in_pieces(stage, x)
        return last(_snake(snake, x))

    return forward


def _stage_in_pieces(stage: list[torch.nn.Module], x: torch.Tensor) -> torch.Tensor:
    """[1, channels, frames] of a stage; its last module is its only convolution with a stride."""
    down = stage[-1]
    stride = down.stride[0]
    padding = sum(conv.padding[0] for part in stage[:-1] for conv in _convolutions(part))
    edge = math.ceil((padding + down.kernel_size[0]) / stride)  # output frames that see a piece's end
    num_in = x.shape[-1]
    num_out = _num_frames(down, num_in)
    out = x.new_empty(1, down.out_channels, num_out)
    for begin, end in _pieces(num_out, PIECE_FRAMES // stride):
        start = max(begin - edge, 0)
        stop = num_in if end == num_out else (end + edge) * stride
        piece = _run_stage(stage, x[..., start * stride : stop])
        out[..., begin:end] = piece[..., begin - start : end - start]
    return out


def _run_stage(stage: list[torch.nn.Module], x: torch.Tensor) -> torch.Tensor:
    for part in stage:
        if isinstance(part, torch.nn.Conv1d):
            x = part(x)
        elif hasattr(part, "alpha"):
            x = _snake(part, x)
        else:
            snake, wide, snake_after, narrow = part.block
            x = narrow(_snake(snake_after, wide(_snake(snake, x)))).add_(x)
    return x


def _snake(module: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """x + sin(alpha x)^2 / (alpha + 1e-9), as Boson's dac.nn.layers.snake, in one new tensor instead of five."""
    inverse = (module.alpha + 1e-9).reciprocal()
    return torch.mul(x, module.alpha).sin_().square_().mul_(inverse).add_(x)


def extraction_in_pieces(extractor: torch.nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """HuBERT's convolutions on pieces of time; the norm over all of it, after the first, on statistics taken before.

    The first convolution runs twice, which is cheaper than keeping its output: 512 channels at 3,200 frames a second.
    """
    first, *others = extractor.conv_layers
    num_channels, stride = first.conv.out_channels, math.prod(layer.conv.stride[0] for layer in others)

    def forward(wave: torch.Tensor) -> torch.Tensor:
        wave = wave[:, None]
        parts = [_norm_over_time(first, wave, part) for part in torch.arange(num_channels).split(_CHANNELS_AT_A_TIME)]
        scale, shift = (torch.cat(values)[:, None] for values in zip(*parts, strict=True))
        num_out = wave.shape[-1]
        for layer in extractor.conv_layers:
            num_out = _num_frames(layer.conv, num_out)
        out = wave.new_empty(1, others[-1].conv.out_channels, num_out)
        for begin, end in _pieces(num_out, PIECE_FRAMES // stride):
            needed = end  # frames of each layer's input, from the last layer to the first
            for layer in reversed(extractor.conv_layers):
                needed = (needed - 1) * layer.conv.stride[0] + layer.conv.kernel_size[0]
            piece = first.conv(wave[..., begin * stride * first.conv.stride[0] : needed])
            piece = torch.ops.aten.gelu_(torch.addcmul(shift, piece, scale))
            for layer in others:
                piece = torch.ops.aten.gelu_(layer.conv(piece))
            out[..., begin:end] = piece
        return out

    return forward


def _norm_over_time(
    layer: torch.nn.Module, wave: torch.Tensor, channels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(scale, shift) of some channels, with which torch's group norm of one channel a group is x * scale + shift."""
    conv, norm = layer.conv, layer.layer_norm
    bias = None if conv.bias is None else conv.bias[channels]
    x = F.conv1d(wave, conv.weight[channels], bias, conv.stride)
    _, mean, rstd = torch.native_group_norm(x, None, None, 1, x.shape[1], x.shape[2], x.shape[1], norm.eps)
    scale = rstd[0] * norm.weight[channels]
    return scale, torch.addcmul(norm.bias[channels], scale, mean[0], value=-1)


def activate_in_place(feed_forward: torch.nn.Module) -> None:
    """GELU over its own input, where HuBERT takes new memory for 3,072 channels at each layer."""
    up, down = feed_forward.intermediate_dense, feed_forward.output_dense
    feed_forward.forward = lambda x: down(torch.ops.aten.gelu_(up(x)))


def _pieces(frames: int, step: int) -> list[tuple[int, int]]:
    """(begin, end) of pieces of `step` frames, the last of half to three halves: few frames get other kernels."""
    borders = [step * number for number in range(max(round(frames / step), 1))]
    return list(zip(borders, [*borders[1:], frames], strict=True))


def _convolutions(module: torch.nn.Module) -> list[torch.nn.Conv1d]:
    return [part for part in module.modules() if isinstance(part, torch.nn.Conv1d)]


def _num_frames(conv: torch.nn.Conv1d, frames: int) -> int:
    """Frames that a convolution makes of `frames` (the formula of torch.nn.Conv1d)."""
    (kernel,), (stride,), (pad,), (dilation,) = conv.kernel_size, conv.stride, conv.padding, conv.dilation
    return (frames + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
