"""The faster encode has the bits of Boson's, on the released codec's layer sizes; what has not is not used."""

import numpy as np
import pytest
import torch
from boson_multimodal.audio_processing import higgs_audio_tokenizer as boson
from transformers import HubertConfig

from launch.demo.small_codec import RELEASED_SIZE, build_codec, build_hubert
from preprocess.codec import fast_encode as codec_speed
from preprocess.codec.load import _load, encode, hubert_from
from preprocess.codec.mkl_blocks import MIN_FRAMES, add_in_blocks
from preprocess.codec.precision import BOSONS

SAMPLE_RATE_HZ = 24000
# Left to Boson, at the border, and in pieces, odd ones among them; each layer has its own pieces.
NUM_SAMPLES = (700, 1988, 8097, 23362, 35999, 36000, 48019, 61234, 100003)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """(Boson's tokenizer, ours), the released layers' sizes, two of HuBERT's twelve transformer layers."""
    folder = tmp_path_factory.mktemp("released_size")
    build_hubert(folder / "hubert", config=HubertConfig(num_hidden_layers=2))
    build_codec(folder / "codec", folder / "hubert", **RELEASED_SIZE)
    with hubert_from(folder / "hubert"):
        theirs = boson.load_higgs_audio_tokenizer(str(folder / "codec"), device="cpu")
    ours, _ = _load.__wrapped__(folder / "codec", folder / "hubert", BOSONS)  # too large to stay in the cache
    return theirs, ours


def features_and_codes(tokenizer, wave: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
    """What reaches the quantizer, and what leaves it."""
    seen = []
    hook = tokenizer.quantizer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    codes = encode(tokenizer, wave, SAMPLE_RATE_HZ)
    hook.remove()
    return seen[0], codes


@pytest.mark.parametrize("num_samples", NUM_SAMPLES)
def test_every_bit_before_the_quantizer_is_bosons(num_samples, pair):
    wave = np.random.default_rng(num_samples).normal(0, 0.1, num_samples).astype(np.float32)
    (expected, expected_codes), (features, codes) = (features_and_codes(tokenizer, wave) for tokenizer in pair)
    assert torch.equal(features, expected)
    assert np.array_equal(codes, expected_codes)


def test_snake_is_bosons_to_the_bit(pair):
    theirs, _ = pair
    snake = theirs.encoder.block[1].block[3]
    x = 3 * torch.randn(1, 64, 1000)
    with torch.no_grad():
        snake.alpha.copy_(torch.rand(1, 64, 1) + 0.5)  # untrained ones are all 1
        assert torch.equal(codec_speed._snake(snake, x), snake(x))
        snake.alpha.fill_(1)


def test_a_forward_with_another_rounding_is_not_used():
    linear = torch.nn.Linear(8, 8)
    plain, x = linear.forward, torch.randn(20, 8)
    codec_speed._use_if_equal(linear, lambda x: plain(x) * (1 + 2e-7), x)
    assert "forward" not in vars(linear)
    codec_speed._use_if_equal(linear, lambda x: plain(x) * 1.0, x)
    assert "forward" in vars(linear)


@torch.no_grad()
@pytest.mark.parametrize("num_frames", [1, MIN_FRAMES - 1, MIN_FRAMES, 77, 750])
@pytest.mark.parametrize(("num_in", "num_out"), [(768, 3072), (3072, 768), (700, 100)])
def test_a_linear_layer_in_blocks_has_the_bits_of_torchs(num_frames, num_in, num_out):
    linear = torch.nn.Linear(num_in, num_out)
    x = torch.randn(1, num_frames, num_in)
    expected = linear(x)
    add_in_blocks(linear)
    assert torch.equal(linear(x), expected)
