"""transformers 5's own codec gives the codes of Boson's, padded as Boson pads, from the folder of either layout."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from launch.demo.small_codec import RELEASED_SIZE, build_codec
from preprocess.codec.load import encode_waveform, load_codec
from tests.fixtures.native_codec import build_native_codec, vary_alphas
from tests.fixtures.second_opinion import run_transformers_5

pytestmark = pytest.mark.export
LENGTHS = (13_441, 14_400, 14_881, 24_000, 30_007, 47_999)


# With other ratios Boson trims what its padding leaves too long; transformers' class stops there.
SHAPES = {
    "small": {"ratios": RELEASED_SIZE["ratios"], "codebook_dim": 16},
    "released": {**RELEASED_SIZE, "codebook_dim": 64},
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_transformers_own_codec_gives_the_same_codes_and_sound(shape, tmp_path, hubert_folder):
    codec = build_codec(tmp_path / "boson", hubert_folder, **shape)
    vary_alphas(codec)
    native = build_native_codec(codec, hubert_folder, tmp_path / "native")
    tokenizer, facts = load_codec(codec, hubert_folder)
    noise = np.random.default_rng(0).normal(0, 0.1, max(LENGTHS)).astype(np.float32)
    waves = {str(length): torch.from_numpy(noise[:length].copy()) for length in LENGTHS}
    expected = {name: encode_waveform(tokenizer, wave.numpy(), facts.sample_rate_hz) for name, wave in waves.items()}
    codes = torch.from_numpy(expected["24000"].astype(np.int64))
    save_file({**waves, "codes": codes}, tmp_path / "waves.safetensors")
    run_transformers_5("codec", native, tmp_path)
    found = load_file(tmp_path / "codes.safetensors")
    different = {name: int((found[name].numpy() != codes).sum()) for name, codes in expected.items()}
    assert different == dict.fromkeys(expected, 0)
    with torch.no_grad():
        sound = torch.from_numpy(tokenizer.decode(codes[None])[0, 0])
    assert torch.allclose(found["codes"], sound, atol=1e-4)
    assert sound.abs().max() > 1e-2
