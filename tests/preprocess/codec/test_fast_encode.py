"""The faster encode has the bits of Boson's, on the released codec's layer sizes; what has not is not used."""

import numpy as np
import pytest
import torch
from boson_multimodal.audio_processing import higgs_audio_tokenizer as boson
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import HubertConfig

from launch.demo.small_codec import RELEASED_SIZE, build_codec, build_hubert
from preprocess.codec import fast_encode
from preprocess.codec.load import _load, encode_waveform, hubert_from
from preprocess.codec.precision import BOSON_MODE
from preprocess.console import show_encoder

SAMPLE_RATE_HZ = 24000
# Left to Boson, at the border, and in pieces, odd ones among them; each layer has its own pieces.
NUM_SAMPLES = (700, 1988, 8097, 23362, 35999, 36000, 48019, 61234, 100003, 246001)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """(Boson's tokenizer, ours), the released layers' sizes, two of HuBERT's twelve transformer layers."""
    folder = tmp_path_factory.mktemp("released_size")
    build_hubert(folder / "hubert", config=HubertConfig(num_hidden_layers=2))
    build_codec(folder / "codec", folder / "hubert", **RELEASED_SIZE)
    with hubert_from(folder / "hubert"):
        theirs = boson.load_higgs_audio_tokenizer(str(folder / "codec"), device="cpu")
    ours, _ = _load.__wrapped__(folder / "codec", folder / "hubert", BOSON_MODE)  # too large to stay in the cache
    return theirs, ours


def features_and_codes(tokenizer, wave: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
    """What reaches the quantizer, and what leaves it."""
    seen = []
    hook = tokenizer.quantizer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    codes = encode_waveform(tokenizer, wave, SAMPLE_RATE_HZ)
    hook.remove()
    return seen[0], codes


@settings(max_examples=12, deadline=None)
@given(num_samples=st.integers(700, 90_000))
def test_every_bit_before_the_quantizer_is_bosons_at_any_length(num_samples, pair):
    assert_bits_are_bosons(num_samples, pair)


@pytest.mark.parametrize("num_samples", NUM_SAMPLES)
def test_every_bit_before_the_quantizer_is_bosons(num_samples, pair):
    assert_bits_are_bosons(num_samples, pair)


def assert_bits_are_bosons(num_samples, pair):
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
        assert torch.equal(fast_encode._snake(snake, x), snake(x))
        snake.alpha.fill_(1)


def test_the_faster_forms_are_in_use(pair):
    """All with AVX-512. Without it the acoustic encoder in pieces may have other bits; in place it has none."""
    _, ours = pair
    forms = ours.faster_forms
    assert all(forms.values()) or torch.backends.cpu.get_cpu_capability() != "AVX512"
    assert forms["acoustic encoder in pieces"] or forms["acoustic encoder in place"]


@torch.no_grad()
@pytest.mark.parametrize("num_samples", [8097, 36000, 61234, 480_001])
def test_the_acoustic_encoder_in_place_has_bosons_bits(num_samples, pair):
    """What a processor gets on which pieces have other bits, at lengths beyond those that the guard tries too."""
    assert torch.equal(*acoustic_frames(pair, num_samples, in_pieces=False))


pieces_have_the_bits = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX512", reason="pieces may have other bits, and are off"
)


@torch.no_grad()
@pieces_have_the_bits
@pytest.mark.parametrize(("number", "num_lengths"), enumerate([60, 20, 12, 3, 1]))
def test_a_stage_in_pieces_has_the_bits_of_the_whole_at_lengths_drawn(number, num_lengths, pair):
    """Lengths of two pieces and of three; a later stage, which costs more, gets fewer of them."""
    stage = fast_encode._stages(pair[1].encoder)[number]
    channels = 1 if number == 0 else stage[-1].in_channels
    for frames in np.random.default_rng(number).integers(6145, 14337, num_lengths):
        x = torch.randn(1, channels, frames, generator=torch.Generator().manual_seed(int(frames)))
        whole, pieces = fast_encode._run_stage(stage, x), fast_encode._stage_in_pieces(stage, x)
        assert torch.equal(whole, pieces), frames


@torch.no_grad()
@pieces_have_the_bits
def test_hubert_s_convolutions_in_pieces_have_the_bits_of_the_whole_at_lengths_drawn(pair):
    theirs, ours = (tokenizer.semantic_model.feature_extractor for tokenizer in pair)
    in_pieces = fast_encode.feature_extractor_in_pieces(ours)
    for num_samples in np.random.default_rng(0).integers(36_000, 80_000, 24):
        wave = 0.1 * torch.randn(1, num_samples, generator=torch.Generator().manual_seed(int(num_samples)))
        assert torch.equal(in_pieces(wave), theirs(wave)), num_samples


@torch.no_grad()
@pieces_have_the_bits
@pytest.mark.parametrize("num_samples", [36288, 36961, 37632, 39043, 39266, 39649, 39939, 480_000, 480_033, 720_000])
def test_the_acoustic_encoder_in_pieces_has_bosons_bits(num_samples, pair):
    """At lengths at which a convolution with a stride has other bits in pieces, and at 30 s."""
    assert torch.equal(*acoustic_frames(pair, num_samples, in_pieces=True))


def acoustic_frames(pair, num_samples, in_pieces):
    """Ours, from a form that no guard has tried, and Boson's."""
    theirs, ours = pair
    wave = 0.1 * torch.randn(1, 1, num_samples, generator=torch.Generator().manual_seed(0))
    return fast_encode.acoustic_encoder(ours.encoder, in_pieces)(wave), theirs.encoder(wave)


@torch.no_grad()
@pytest.mark.parametrize("odd_length", fast_encode._SAMPLES_TO_TRY)
def test_a_form_that_rounds_otherwise_at_one_length_is_not_used(odd_length):
    module, noise = torch.nn.Softsign(), torch.randn(1, max(fast_encode._SAMPLES_TO_TRY))

    def other(x):
        return module.forward(x) * (1 + 2e-7 * (x.shape[-1] == odd_length))

    assert not fast_encode._use_if_equal(module, other, noise)
    assert "forward" not in vars(module)


def test_what_is_off_on_this_processor_is_said(capsys):
    show_encoder({"acoustic encoder": True, "HuBERT's convolutions": False})
    on, off = capsys.readouterr().out.splitlines()
    assert on == "encoder: faster than Boson's, with the same bits: acoustic encoder"
    assert off == "  not used, for other bits on this processor: HuBERT's convolutions"
