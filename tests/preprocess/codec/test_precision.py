"""bf16 is openly another way: refused where it can't be had, measured where it can, and never mixed with fp32."""

import numpy as np
import pytest
import torch

from preprocess.codec.load import encode_waveform, load_codec
from preprocess.codec.precision import BOSON_MODE, EncodeMode, check_mode
from preprocess.common.errors import InputError
from preprocess.corpus.shards import Corpus
from tests.preprocess.helpers import assert_parts, refused, shard


@pytest.fixture(scope="module")
def has_bf16():
    try:
        check_mode(EncodeMode("cpu", "bf16"))
    except InputError as error:
        pytest.skip(f"bf16 on this processor: {error.found}")


@pytest.fixture(scope="module")
def bf16_corpus(has_bf16, tmp_path_factory, speech_folder, model_folder, codec_folder, hubert_folder):
    """(folder, flags): `speech_corpus` with --precision bf16."""
    out = tmp_path_factory.mktemp("bf16") / "shards"
    given = {"model": model_folder, "audio_tokenizer": codec_folder, "hubert": hubert_folder, "out": out}
    given |= {"manifest": speech_folder / "corpus.jsonl", "workers": 2, "hours_per_shard": 0.006}
    assert shard(precision="bf16", **given) == 0
    return out, given


def test_the_agreement_with_fp32_is_that_of_the_first_clips(bf16_corpus, speech_corpus):
    ours, theirs = Corpus(bf16_corpus[0]), Corpus(speech_corpus)
    assert "precision_agreement" not in theirs.info
    places = [ours.index.column(name).to_pylist() for name in ("shard", "key")]
    assert places == [theirs.index.column(name).to_pylist() for name in ("shard", "key")]
    in_plan_order = sorted(range(len(places[0])), key=lambda row: (places[0][row], places[1][row]))
    pairs = [(ours.clip(row).codes, theirs.clip(row).codes) for row in in_plan_order[:8]]
    equal = np.concatenate([codes == expected for codes, expected in pairs], axis=1)
    said = ours.info["precision_agreement"]
    assert said == {
        "clips": 8,
        "frames": equal.shape[1],
        "equal_share_of_codebooks": [round(float(share), 4) for share in equal.mean(axis=1)],
    }
    assert 0.3 < np.mean(said["equal_share_of_codebooks"]) < 1, "as near as bf16 is, and not fp32"
    assert ours.info["settings"]["precision"] == "bf16"
    assert theirs.info["settings"]["precision"] == "fp32"


def test_a_run_in_another_precision_is_refused_on_the_same_folder_and_in_the_same_one_says_the_same(
    bf16_corpus, capsys
):
    out, given = bf16_corpus
    before = (out / "corpus.json").read_bytes()
    error = refused(**given)
    assert_parts(error, str(out), "settings.precision = 'fp32'", "settings.precision = 'bf16'", "same settings")
    assert shard(precision="bf16", **given) == 0
    said = capsys.readouterr().out
    assert "bf16 on cpu: codes equal to fp32 on the CPU, by codebook: " in said
    assert "(8 clips, " in said
    assert (out / "corpus.json").read_bytes() == before


def test_the_encoders_compute_in_bf16_and_the_nearest_code_is_sought_in_fp32(has_bf16, codec_folder, hubert_folder):
    codec, _ = load_codec(codec_folder, hubert_folder, EncodeMode("cpu", "bf16"))
    seen = {}
    modules = {
        "acoustic": codec.encoder.block[1].block[-1],
        "extractor": codec.semantic_model.feature_extractor.conv_layers[1].conv,
        "hubert": codec.semantic_model.encoder.layers[0].attention.q_proj,
        "before the codes": codec.fc_prior,
    }
    hooks = [
        module.register_forward_hook(lambda module, inputs, output, name=name: seen.update({name: output.dtype}))
        for name, module in modules.items()
    ]
    noise = np.random.default_rng(0).normal(0, 0.1, 50000).astype(np.float32)
    codes = encode_waveform(codec, noise, 24000)
    for hook in hooks:
        hook.remove()
    assert seen.pop("before the codes") == torch.float32
    assert set(seen) == {"acoustic", "extractor", "hubert"}
    assert set(seen.values()) == {torch.bfloat16}
    plain, _ = load_codec(codec_folder, hubert_folder, BOSON_MODE)
    assert codes.shape == encode_waveform(plain, noise, 24000).shape


def test_bf16_is_refused_on_a_processor_without_it(tmp_path):
    (tmp_path / "cpuinfo").write_text("flags\t\t: fpu avx2 avx512f avx512_bf16x\n")
    with pytest.raises(InputError) as caught:
        check_mode(EncodeMode("cpu", "bf16"), tmp_path / "cpuinfo")
    assert_parts(caught.value, "--precision bf16", "without avx512_bf16 and amx_bf16", "multiplies in bf16", "fp32")
    for flag in ("avx512_bf16", "amx_bf16"):
        (tmp_path / "cpuinfo").write_text(f"flags\t\t: fpu avx2 {flag} avx512f\n")
        check_mode(EncodeMode("cpu", "bf16"), tmp_path / "cpuinfo")


def test_tf32_is_refused_on_a_cpu_before_anything_is_read(tmp_path):
    nowhere = dict.fromkeys(("manifest", "model", "audio_tokenizer", "hubert", "out"), tmp_path / "nowhere")
    error = refused(precision="tf32", **nowhere)
    assert_parts(error, "--precision tf32", "--device cpu", "fp32 or bf16", "--device cuda")


@pytest.mark.skipif(torch.cuda.device_count() > 0, reason="this machine has a GPU")
def test_cuda_is_refused_where_torch_sees_no_gpu(tmp_path):
    nowhere = dict.fromkeys(("manifest", "model", "audio_tokenizer", "hubert", "out"), tmp_path / "nowhere")
    error = refused(device="cuda", **nowhere)
    assert_parts(error, "--device cuda", "no GPU that torch", "an NVIDIA GPU", "nvidia-smi")


def test_cuda_under_ray_is_refused(tmp_path):
    nowhere = dict.fromkeys(("manifest", "model", "audio_tokenizer", "hubert", "out"), tmp_path / "nowhere")
    error = refused(device="cuda", executor="ray", **nowhere)
    assert_parts(error, "command line", "--executor ray and --device cuda", "one of them", "--slice")


def test_codes_of_another_precision_are_not_reused(bf16_corpus, tmp_path):
    out, given = bf16_corpus
    error = refused(reuse=out, **{**given, "out": tmp_path / "out"})
    assert_parts(
        error, f"--reuse {out}", "--device cpu --precision bf16", "--device cpu --precision fp32", "encode afresh"
    )
