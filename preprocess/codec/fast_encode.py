"""Boson's encode on one CPU core, faster, with the same bits.

Each function changes one part of a loaded tokenizer in place. A form that computes in another order than Boson's
module is first compared with it on noise of several lengths, and used only if it gives identical floats on this
processor. A difference in the last bit would change one code in some ten thousand, because a code is the nearest of
1,024 entries (bench/LOG.md).
"""

import math

import torch
import torch.nn.functional as F
from boson_multimodal.audio_processing.higgs_audio_tokenizer import HiggsAudioTokenizer

from preprocess.codec.precision import BOSON_MODE, EncodeMode, Forward, UntypedModule

# Frames per piece at a layer's input: 64 to 512 channels of them stay in a core's cache.
PIECE_FRAMES = 4096
# Shorter files run through Boson's own code: there is little to gain, and kernels for few frames differ.
MIN_SAMPLES = 36000
_CHANNELS_AT_A_TIME = 64
# Lengths to compare: the shortest, the longest and the shortest last piece (at 9.5 pieces of the first stage), and an
# odd length at which the second stage has pieces too. Longer ones would cost every command seconds; a test has them.
_SAMPLES_TO_TRY = (MIN_SAMPLES, 38911, 38913, 51235)


@torch.no_grad()
def speed_up_tokenizer(tokenizer: HiggsAudioTokenizer, mode: EncodeMode = BOSON_MODE) -> dict[str, bool]:
    """Apply everything here that suits the mode; the tokenizer is then called as before.

    Returns {name of a faster form: whether it is on}. A form is on if it has Boson's bits on this processor.
    """
    fold_weight_norm(tokenizer)
    forms = _use_faster_forms(tokenizer) if mode.device == "cpu" else {}
    skip_discarded_run(tokenizer)
    return forms


def _use_faster_forms(tokenizer: HiggsAudioTokenizer) -> dict[str, bool]:
    encoder, hubert = tokenizer.encoder, tokenizer.semantic_model
    noise = 0.1 * torch.randn(1, max(_SAMPLES_TO_TRY), generator=torch.Generator().manual_seed(0))
    forms = {"acoustic encoder in pieces": _use_if_equal(encoder, acoustic_encoder(encoder, True), noise[None])}
    if not forms["acoustic encoder in pieces"]:
        forms["acoustic encoder in place"] = _use_if_equal(encoder, acoustic_encoder(encoder, False), noise[None])
    if hubert.config.feat_extract_norm == "group" and hubert.config.feat_extract_activation == "gelu":
        extractor = hubert.feature_extractor
        forms["HuBERT's convolutions"] = _use_if_equal(extractor, feature_extractor_in_pieces(extractor), noise)
    if hubert.config.hidden_act == "gelu":
        for layer in hubert.encoder.layers:
            apply_gelu_in_place(layer.feed_forward)
    return forms


def _use_if_equal(module: UntypedModule, forward: Forward, noise: torch.Tensor) -> bool:
    """Replace the module's forward from MIN_SAMPLES on, if `forward` gives the same bits at all lengths compared."""
    plain = module.forward
    equal = all(torch.equal(forward(noise[..., :n]), plain(noise[..., :n])) for n in _SAMPLES_TO_TRY)
    if equal:
        module.forward = lambda x: forward(x) if x.shape[-1] >= MIN_SAMPLES else plain(x)
    return equal


def fold_weight_norm(tokenizer: HiggsAudioTokenizer) -> None:
    """Compute the convolutions' normalised weights once; Boson recomputes them at every call."""
    for module in tokenizer.encoder.modules():
        if hasattr(module, "weight_g"):
            torch.nn.utils.remove_weight_norm(module)
    position = tokenizer.semantic_model.encoder.pos_conv_embed.conv
    torch.nn.utils.parametrize.remove_parametrizations(position, "weight")


def skip_discarded_run(tokenizer: HiggsAudioTokenizer) -> None:
    """Skip the run of the acoustic encoder whose output Boson's encode discards for about two files in three.

    Boson runs the encoder, compares its number of frames with HuBERT's, and if they differ runs it again on padded
    audio. The number of frames follows from the number of samples, so a run that would be discarded returns zeros of
    the right shape instead.
    """
    run: Forward = tokenizer.encoder.forward
    convolutions = _convolutions(tokenizer.encoder)
    semantic_frames: list[int] = []  # set when HuBERT's branch ends, taken by the next run of the encoder

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


def acoustic_encoder(encoder: UntypedModule, in_pieces: bool) -> Forward:
    """The acoustic encoder's forward, Snake and residuals in place, and if `in_pieces` each block on pieces of time.

    Pieces fit the cache: one second of a file has 64 channels of 24,000 samples, 6 MB, so every pass over a whole
    file would go to memory. Neighbouring pieces overlap: the frames that zero padding spoils at an end of one are
    taken from the other.
    """
    stages, (snake, last) = _stages(encoder), encoder.block[-2:]
    run = _stage_in_pieces if in_pieces else _run_stage

    def forward(x: torch.Tensor) -> torch.Tensor:
        for stage in stages:
            x = run(stage, x)
        return _run_stage([snake, last], x)

    return forward


def _stages(encoder: UntypedModule) -> list[list[UntypedModule]]:
    """The modules of each stage, in order; the last of a stage is its only convolution with a stride."""
    first, *blocks, _, _ = encoder.block
    return [[first, *blocks[0].block], *([*block.block] for block in blocks[1:])]


def _stage_in_pieces(stage: list[UntypedModule], x: torch.Tensor) -> torch.Tensor:
    """A stage's output [1, channels, frames]. Its last module, its only convolution with a stride, runs on the whole.

    oneDNN takes another kernel for that one at some numbers of frames, so that pieces of it had other bits at one
    length in thirty (bench/LOG.md).
    """
    *parts, down = stage
    # Frames that depend on a piece's end.
    edge = sum(conv.padding[0] for part in parts for conv in _convolutions(part))
    frames = x.shape[-1]
    out = x.new_empty(1, down.in_channels, frames)
    for begin, end in _pieces(frames, PIECE_FRAMES):
        start = max(begin - edge, 0)
        piece = _run_stage(parts, x[..., start : end + edge])
        out[..., begin:end] = piece[..., begin - start : end - start]
    result: torch.Tensor = down(out)
    return result


def _run_stage(stage: list[UntypedModule], x: torch.Tensor) -> torch.Tensor:
    for part in stage:
        if isinstance(part, torch.nn.Conv1d):
            x = part(x)
        elif hasattr(part, "alpha"):
            x = _snake(part, x)
        else:
            snake, wide, snake_after, narrow = part.block
            x = narrow(_snake(snake_after, wide(_snake(snake, x)))).add_(x)
    return x


def _snake(module: UntypedModule, x: torch.Tensor) -> torch.Tensor:
    """x + sin(alpha x)^2 / (alpha + 1e-9), the formula of Boson's dac.nn.layers.snake; one new tensor, not five."""
    inverse = (module.alpha + 1e-9).reciprocal()
    return torch.mul(x, module.alpha).sin_().square_().mul_(inverse).add_(x)


def feature_extractor_in_pieces(extractor: UntypedModule) -> Forward:
    """HuBERT's convolutions on pieces of time.

    The norm after the first convolution needs the mean and variance of the whole file. So the first convolution runs
    twice: once for these statistics and once per piece, which is cheaper than keeping its output (512 channels of
    3,200 frames per second).
    """
    first, *others = extractor.conv_layers
    num_channels, stride = first.conv.out_channels, math.prod(layer.conv.stride[0] for layer in others)

    def forward(wave: torch.Tensor) -> torch.Tensor:
        wave = wave[:, None]
        groups = torch.split(torch.arange(num_channels), _CHANNELS_AT_A_TIME)
        parts = [_norm_over_time(first, wave, channels) for channels in groups]
        scale, shift = (torch.cat(values)[:, None] for values in zip(*parts, strict=True))
        num_out = wave.shape[-1]
        for layer in extractor.conv_layers:
            num_out = _num_frames(layer.conv, num_out)
        out = wave.new_empty(1, others[-1].conv.out_channels, num_out)
        for begin, end in _pieces(num_out, PIECE_FRAMES // stride):
            needed = end  # frames that a layer's input must have, from the last layer to the first
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
    layer: UntypedModule, wave: torch.Tensor, channels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(scale, shift), each [channels]: the layer's group norm (one channel per group) is x * scale + shift."""
    conv, norm = layer.conv, layer.layer_norm
    bias = None if conv.bias is None else conv.bias[channels]
    x = F.conv1d(wave, conv.weight[channels], bias, conv.stride)
    _, mean, rstd = torch.native_group_norm(x, None, None, 1, x.shape[1], x.shape[2], x.shape[1], norm.eps)
    scale = rstd[0] * norm.weight[channels]
    return scale, torch.addcmul(norm.bias[channels], scale, mean[0], value=-1)


def apply_gelu_in_place(feed_forward: UntypedModule) -> None:
    """Write GELU over its own input; HuBERT allocates 3,072 channels for it at each layer."""
    up, down = feed_forward.intermediate_dense, feed_forward.output_dense
    feed_forward.forward = lambda x: down(torch.ops.aten.gelu_(up(x)))


def _pieces(frames: int, step: int) -> list[tuple[int, int]]:
    """(begin, end) of pieces of `step` frames; the last has 0.5 to 1.5 steps: few frames get other kernels."""
    borders = [step * number for number in range(max(round(frames / step), 1))]
    return list(zip(borders, [*borders[1:], frames], strict=True))


def _convolutions(module: UntypedModule) -> list[UntypedModule]:
    return [part for part in module.modules() if isinstance(part, torch.nn.Conv1d)]


def _num_frames(conv: UntypedModule, frames: int) -> int:
    """Output frames of a Conv1d for `frames` at its input (formula: documentation of torch.nn.Conv1d)."""
    (kernel,), (stride,), (pad,), (dilation,) = conv.kernel_size, conv.stride, conv.padding, conv.dilation
    num_out: int = (frames + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
    return num_out
