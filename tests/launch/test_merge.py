"""Merge: the merged folder is base + adapter as PEFT computes it, complete and loadable, or it is not there."""

import dataclasses
import json
import resource
import shutil

import pytest
import torch
from boson_multimodal.model.higgs_audio import HiggsAudioModel
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import engine.merge.folder
import engine.merge.weights
import engine.model.weight_files
from engine.base.recipe import Lora
from engine.merge.check import random_prompt
from engine.merge.folder import merge_checkpoint
from engine.model.weight_files import stored_tensors
from engine.model.weights import load_base
from engine.speak.voice_training import read_facts
from launch.demo.small_model import build_model
from launch.merge import main
from preprocess.common.errors import InputError
from preprocess.common.record import SEAL
from preprocess.corpus.base_model import read_base_model
from tests.fixtures.adapter import random_lora, save_checkpoint
from tests.fixtures.mutants import MERGE_MUTANTS, mutated
from tests.preprocess.helpers import assert_parts

ADAPTERS = {
    "attention": Lora(mode="attention", rank=4, alpha=8),
    "audio": Lora(mode="audio", rank=4, alpha=8),
    "full": Lora(mode="full", rank=4, alpha=2),
    "rslora": Lora(mode="full", rank=16, alpha=8, rslora=True),
    "dora": Lora(mode="full", rank=4, alpha=8, dora=True),
    "train_whole": Lora(mode="full", rank=4, alpha=8, train_whole=["audio_head"]),
}


@pytest.fixture(scope="module")
def full_checkpoint(tmp_path_factory, model_folder):
    """A checkpoint of mode full on `model_folder`. Tests that break it copy it."""
    model = random_lora(model_folder, ADAPTERS["full"])
    return save_checkpoint(tmp_path_factory.mktemp("full"), model_folder, model, "Speak like this.")


@pytest.fixture(scope="module")
def small_checkpoint(tmp_path_factory):
    """One of mode full on a base of two layers."""
    folder = tmp_path_factory.mktemp("small")
    base = build_model(folder / "base", num_layers=2, dual_ffn_layers=(0, 1), codebook_size=64)
    return save_checkpoint(folder / "run", base, random_lora(base, ADAPTERS["full"]))


@torch.no_grad()
def logits(model, prompt):
    output = model(**{field.name: getattr(prompt, field.name) for field in dataclasses.fields(prompt)})
    return output.logits, output.audio_logits


def read_weights(folder):
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def refusal(*arguments, **keywords):
    """The InputError of a merge that must not write anything."""
    with pytest.raises(InputError) as caught:
        merge_checkpoint(*arguments, **keywords)
    out = arguments[2]
    assert not out.exists()
    assert not out.with_name(f".{out.name}.partial").exists()
    return caught.value


def test_a_folder_that_can_not_be_written_is_named(tmp_path, full_checkpoint):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # of a file: the weights are larger
    try:
        error = refusal(full_checkpoint, None, tmp_path / "merged", verify="none")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert_parts(error, str(tmp_path), "file too large", "can be written, with free space", "another --out")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError) as caught:
        merge_checkpoint(full_checkpoint, None, tmp_path / "file" / "merged", verify="none")
    assert_parts(caught.value, str(tmp_path / "file"), "file", "can be written", "another --out")


@pytest.mark.parametrize("name", ADAPTERS)
def test_merged_model_equals_peft_with_and_without_its_own_merge(name, tmp_path, model_folder):
    model = random_lora(model_folder, ADAPTERS[name])
    folder = save_checkpoint(tmp_path / "run", model_folder, model)
    merge_checkpoint(folder, None, tmp_path / "merged", verify="none")

    prompt = random_prompt(model_folder)
    live = PeftModel.from_pretrained(load_base(model_folder, torch.float32), folder).eval()
    expected = logits(live.get_base_model(), prompt)
    found = logits(HiggsAudioModel.from_pretrained(tmp_path / "merged").eval(), prompt)
    untouched = logits(load_base(model_folder, torch.float32).eval(), prompt)
    for got, wanted, before in zip(found, expected, untouched, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=2e-5)
        assert (wanted - before).abs().max() > 0.01  # the adapter does something that could be lost

    whole = live.merge_and_unload().state_dict()
    for key, tensor in read_weights(tmp_path / "merged").items():
        assert torch.equal(tensor, whole[key]), key


def test_the_projector_of_an_audio_tower_is_merged_and_verified_and_the_serve_engine_is_warned_of(tmp_path, capsys):
    base = build_model(tmp_path / "base", audio_tower=True)
    model = random_lora(base, ADAPTERS["full"], conditioning="both")
    state = {"recipe": {"conditioning": "both"}}
    checkpoint = save_checkpoint(tmp_path / "run", base, model, more=state)
    assert main(["--checkpoint", str(checkpoint), "--out", str(tmp_path / "merged")]) == 0
    before, after = read_weights(base), read_weights(tmp_path / "merged")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert "audio_encoder_proj.linear.weight" in changed
    assert not [name for name in changed if name.startswith("audio_tower")]
    assert "HiggsAudioServeEngine does not pass" in capsys.readouterr().out


def test_another_shape_of_model_merges_too(tmp_path, other_model_folder):
    folder = save_checkpoint(tmp_path, other_model_folder, random_lora(other_model_folder, ADAPTERS["audio"]))
    merge_checkpoint(folder, None, tmp_path / "merged")
    assert (tmp_path / "merged" / "model.safetensors").is_file()


def test_bf16_base_is_computed_in_fp32_and_rounded_once(tmp_path):
    base = build_model(tmp_path / "base", dtype=torch.bfloat16)
    folder = save_checkpoint(tmp_path, base, random_lora(base, ADAPTERS["dora"]))
    merge_checkpoint(folder, None, tmp_path / "merged")

    live = PeftModel.from_pretrained(load_base(base, torch.float32), folder)
    adapted = {name.replace(".base_layer", "") for name in live.get_base_model().state_dict() if "base_layer" in name}
    expected, before = live.merge_and_unload().state_dict(), read_weights(base)
    merged = read_weights(tmp_path / "merged")
    assert merged.keys() == before.keys()
    for name, tensor in merged.items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, expected[name].bfloat16()), name
        assert torch.equal(tensor, before[name]) == (name not in adapted), name


def test_fp32_merge_of_a_bf16_base_keeps_changes_that_bf16_rounds_away(tmp_path, capsys):
    base = build_model(tmp_path / "base", dtype=torch.bfloat16)
    folder = save_checkpoint(tmp_path, base, random_lora(base, ADAPTERS["full"], scale=0.003))
    merge_checkpoint(folder, None, tmp_path / "bf16")
    assert "warning: rounding loses much of so small a change; --dtype fp32 keeps it" in capsys.readouterr().out

    merge_checkpoint(folder, None, tmp_path / "fp32", dtype=torch.float32)
    printed = capsys.readouterr().out
    assert "of the adapter's effect, 100.0% is kept" in printed
    assert "warning" not in printed
    assert {tensor.dtype for tensor in read_weights(tmp_path / "fp32").values()} == {torch.float32}
    assert HiggsAudioModel.from_pretrained(tmp_path / "fp32", torch_dtype="auto").dtype == torch.float32


def test_sharded_base_keeps_its_shards_names_order_and_metadata(tmp_path, model_folder):
    base = tmp_path / "base"
    shutil.copytree(model_folder, base, ignore=shutil.ignore_patterns("*.safetensors"))
    HiggsAudioModel.from_pretrained(model_folder).save_pretrained(base, max_shard_size="4MB")
    assert len(list(base.glob("*.safetensors"))) >= 3
    folder = save_checkpoint(tmp_path, base, random_lora(base, ADAPTERS["attention"]))
    merge_checkpoint(folder, None, tmp_path / "merged")

    changed = 0
    for shard in base.glob("*.safetensors"):
        with safe_open(shard, "pt") as before, safe_open(tmp_path / "merged" / shard.name, "pt") as after:
            assert after.offset_keys() == before.offset_keys()
            assert after.metadata() == before.metadata()
            changed += any("self_attn" in name for name in before.keys())  # noqa: SIM118
        same_bytes = shard.read_bytes() == (tmp_path / "merged" / shard.name).read_bytes()
        assert same_bytes == all("self_attn" not in name for name in load_file(shard))
    assert changed
    for name in ("model.safetensors.index.json", "config.json", "generation_config.json", "tokenizer.json"):
        assert (tmp_path / "merged" / name).read_bytes() == (base / name).read_bytes()
    _, loading = HiggsAudioModel.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not any(loading.values())

    merge_checkpoint(folder, None, tmp_path / "bf16", verify="none", dtype=torch.bfloat16)
    index = json.loads((tmp_path / "bf16" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(
        tensor.nbytes for tensor in read_weights(tmp_path / "bf16").values()
    )


def test_merged_folder_says_its_layout_and_where_it_comes_from(tmp_path, model_folder, full_checkpoint):
    merge_checkpoint(full_checkpoint, None, tmp_path / "merged", verify="none")
    state = json.loads((full_checkpoint / "state.json").read_text())
    assert state["layout"]["system_text"] == "Speak like this."
    facts = read_facts(tmp_path / "merged")
    assert facts.pop(SEAL)
    assert facts == {
        "layout": state["layout"],
        "speech": {"reference_sec": [100.0, 200.0], "sec_per_letter": 1.0},
        "training": {
            "base": {"id": None, "revision": None},
            **{key: state[key] for key in ("step", "total_steps", "validation", "data", "hardware")},
        },
        "adapter_sha256": state["sha256"]["adapter_model.safetensors"],
        "earlier_adapters": [],
        "base_fingerprint": state["identity"]["base_fingerprint"],
        "codec_fingerprint": "codec",
        "corpus_fingerprints": ["corpus"],
    }


def test_plain_peft_adapter_merges_when_its_base_is_named(tmp_path, model_folder, full_checkpoint):
    model = PeftModel.from_pretrained(load_base(model_folder, torch.float32), full_checkpoint)
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    error = refusal(tmp_path / "adapter", None, tmp_path / "merged")
    assert error.found == "no state.json"
    assert error.action == "Name the base model with --base, or give RUN/checkpoints/best."

    merge_checkpoint(tmp_path / "adapter", model_folder, tmp_path / "merged", verify="none")
    merge_checkpoint(full_checkpoint, None, tmp_path / "other", verify="none")
    other = read_weights(tmp_path / "other")
    assert all(torch.equal(tensor, other[name]) for name, tensor in read_weights(tmp_path / "merged").items())


def test_an_adapter_is_not_merged_twice_whatever_was_merged_between(tmp_path, model_folder, full_checkpoint):
    adapters = [tmp_path / "first", tmp_path / "second"]
    for adapter in adapters:
        model = PeftModel.from_pretrained(load_base(model_folder, torch.float32), full_checkpoint)
        for name, parameter in model.named_parameters():
            if adapter.name == "second" and "lora_B" in name:
                parameter.data *= 2
        model.save_pretrained(adapter, save_embedding_layers=False)
    bases = [model_folder, tmp_path / "one", tmp_path / "two"]
    for base, adapter, out in zip(bases, adapters, bases[1:], strict=False):
        merge_checkpoint(adapter, base, out, verify="none")
    assert len(read_facts(bases[2])["earlier_adapters"]) == 1
    for base, adapter in ((bases[1], adapters[0]), (bases[2], adapters[1]), (bases[2], adapters[0])):
        error = refusal(adapter, base, tmp_path / "twice")
        assert_parts(
            error, str(base), f"has {adapter.name} merged into it already", "a base without", "would be doubled"
        )
    assert not (tmp_path / "twice").exists()


@pytest.mark.parametrize("mutant", MERGE_MUTANTS)
@pytest.mark.parametrize(
    ("verify", "says"),
    [("layers", "differ from PEFT's live layer"), ("model", "merged logits differ from PEFT's own merge")],
)
def test_verification_refuses_a_wrong_merge_and_leaves_nothing(verify, says, mutant, tmp_path, full_checkpoint):
    with mutated(mutant), pytest.raises(RuntimeError, match=says):
        merge_checkpoint(full_checkpoint, None, tmp_path / "merged", verify)
    assert list(tmp_path.iterdir()) == []


def flip_a_bit(folder, name):
    """In the last number of a tensor of the written folder."""
    piece = stored_tensors(read_base_model(folder))[name].pieces[-1]
    data = bytearray(piece.path.read_bytes())
    data[piece.end - 1] ^= 1
    piece.path.write_bytes(data)


def swap(folder, name, other):
    """Two tensors of one shape, in the header."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, name: tensors[other], other: tensors[name]}, path, {"format": "pt"})


WRONG = {
    "a bit of a norm": lambda folder: flip_a_bit(folder, "norm.weight"),
    "a bit of an embedding": lambda folder: flip_a_bit(folder, "embed_tokens.weight"),
    "a bit of a merged tensor": lambda folder: flip_a_bit(folder, "layers.0.self_attn.q_proj.weight"),
    "layers swapped": lambda folder: swap(folder, "layers.0.mlp.up_proj.weight", "layers.1.mlp.up_proj.weight"),
}


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
@pytest.mark.parametrize("what", WRONG)
def test_what_was_written_is_read_again(what, dtype, tmp_path, monkeypatch, small_checkpoint):
    """A fault of the disk, or of the writer, between the merge and the check."""
    right = engine.merge.folder.write_weights

    def write_wrong(tensors, folder, *others):
        right(tensors, folder, *others)
        WRONG[what](folder)

    merge_checkpoint(small_checkpoint, None, tmp_path / "right", dtype=dtype)
    shutil.rmtree(tmp_path / "right")
    monkeypatch.setattr(engine.merge.folder, "write_weights", write_wrong)
    with pytest.raises(RuntimeError, match="is not what was to be written"):
        merge_checkpoint(small_checkpoint, None, tmp_path / "merged", dtype=dtype)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("lora", ["rslora", "dora", "train_whole", "attention"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_blocks_of_rows_give_the_bits_of_peft_s_merge_of_the_whole(lora, dtype, tmp_path, monkeypatch):
    """The last bit may differ where a processor multiplies odd sizes in another order: by a unit of the largest."""
    base = build_model(
        tmp_path / "base", hidden_size=72, num_layers=2, dual_ffn_layers=(0,), codebook_size=67, dtype=torch.bfloat16
    )
    model = random_lora(base, ADAPTERS[lora])
    checkpoint = save_checkpoint(tmp_path / "run", base, model)
    monkeypatch.setattr(engine.merge.weights, "_BLOCK_ROWS", 16)
    monkeypatch.setattr(engine.model.weight_files, "_BLOCK_BYTES", 3000)
    merge_checkpoint(checkpoint, None, tmp_path / "merged", dtype=dtype)
    found = read_weights(tmp_path / "merged")
    expected = dict(
        PeftModel.from_pretrained(load_base(base, torch.float32), checkpoint).merge_and_unload().named_parameters()
    )
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        rounded = expected[name].data.to(dtype).float()
        largest = float(rounded.abs().max())
        assert float((tensor.float() - rounded).abs().max()) <= 2 * torch.finfo(dtype).eps * largest, name
    changed = {
        name for name, tensor in read_weights(base).items() if not torch.equal(tensor.float(), found[name].float())
    }
    assert len(changed) > 5


def test_another_base_is_refused(tmp_path, full_checkpoint):
    other = build_model(tmp_path / "other", seed=5)
    error = refusal(full_checkpoint, other, tmp_path / "merged")
    assert error.where == str(other)
    assert error.found.startswith("a model with fingerprint ")
    assert error.expected.endswith("the base that step-000007 was trained on")
    assert "the base that step-000007 was trained on" in error.expected
    assert error.action == "Name that model's folder with --base."


def test_a_base_that_moved_is_asked_for(tmp_path, model_folder):
    base = shutil.copytree(model_folder, tmp_path / "base")
    folder = save_checkpoint(tmp_path, base, random_lora(base, ADAPTERS["attention"]))
    base.rename(tmp_path / "moved")
    error = refusal(folder, None, tmp_path / "merged")
    assert (error.where, error.found) == (str(base), "no such folder")
    assert error.expected == "config.json of a Higgs Audio v2 model folder"
    assert error.action.startswith(
        "Name the model's folder with --base. Download the model if it is missing or broken"
    )
    merge_checkpoint(folder, tmp_path / "moved", tmp_path / "merged", verify="none")


def test_adapter_tensors_that_the_base_has_no_place_for_are_named(tmp_path, other_model_folder, full_checkpoint):
    shutil.copytree(full_checkpoint, tmp_path / "adapter", ignore=shutil.ignore_patterns("state.json"))
    error = refusal(tmp_path / "adapter", other_model_folder, tmp_path / "merged")
    assert error.where == str(tmp_path / "adapter" / "adapter_model.safetensors")
    assert error.found.startswith("audio_decoder_proj.audio_lm_head.lora_A.weight [4, 96] for [264, 64]; ")
    assert error.found.endswith(" more")
    assert error.expected == f"an adapter whose every tensor belongs to {other_model_folder}"
    assert error.action == "Name the base model it was trained on with --base."


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (
            lambda tensors: tensors.update({"base_model.model.layers.9.extra": torch.ones(2)}),
            "layers.9.extra [2] for",
        ),
        (
            lambda tensors: [tensors.pop(name) for name in list(tensors) if "audio_mlp" in name],
            "nothing for layers.0.audio_mlp.down_proj.weight, which the adapter's config adapts",
        ),
        (
            lambda tensors: tensors.pop("base_model.model.layers.0.mlp.up_proj.lora_B.weight"),
            "parts lora_A.weight",
        ),
        (
            lambda tensors: tensors["base_model.model.layers.0.mlp.up_proj.lora_B.weight"].fill_(float("nan")),
            "NaN or infinity in base_model.model.layers.",
        ),
    ],
    ids=["one too many", "a layer too few", "half a layer", "nan"],
)
def test_an_adapter_that_is_not_whole_is_refused(change, found, tmp_path, model_folder, full_checkpoint):
    adapter = tmp_path / "adapter"
    shutil.copytree(full_checkpoint, adapter, ignore=shutil.ignore_patterns("state.json"))
    tensors = load_file(adapter / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, adapter / "adapter_model.safetensors")
    assert found in refusal(adapter, model_folder, tmp_path / "merged").found


@pytest.mark.parametrize("name", ["norm.weight", "layers.0.mlp.up_proj.weight"])
def test_nan_in_the_base_is_the_base_s_whether_it_is_adapted_or_not(name, tmp_path, model_folder, full_checkpoint):
    adapter = shutil.copytree(full_checkpoint, tmp_path / "adapter")
    (adapter / "state.json").unlink()  # a plain adapter: any base is taken
    base = shutil.copytree(model_folder, tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    tensors[name].view(-1)[-1] = torch.nan
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    error = refusal(adapter, base, tmp_path / "merged", verify="none")
    assert_parts(error, f"model.safetensors: {name}", "NaN or infinity", "finite weights", "--base")


def test_a_flipped_byte_in_the_checkpoint_is_refused(tmp_path, full_checkpoint):
    broken = shutil.copytree(full_checkpoint, tmp_path / "step-000007")
    data = bytearray((broken / "adapter_model.safetensors").read_bytes())
    data[-5] ^= 1
    (broken / "adapter_model.safetensors").write_bytes(data)
    error = refusal(broken, None, tmp_path / "merged")
    assert error.where == str(broken)
    assert error.found == "adapter_model.safetensors has another sha256 than state.json records"
    assert error.expected == "files with the sha256 of state.json"
    assert error.action == "Restore the checkpoint from a copy, or merge another step-N beside it."


def test_a_folder_with_something_in_it_is_not_overwritten(tmp_path, full_checkpoint):
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="found something there already; expected a folder that is new or empty"):
        merge_checkpoint(full_checkpoint, None, tmp_path / "merged")
    assert [path.name for path in (tmp_path / "merged").iterdir()] == ["mine.txt"]


def test_all_missing_flags_are_named_at_once():
    with pytest.raises(InputError, match=r"no --checkpoint, --out; expected all of them. For example: python -m"):
        main([])


def test_the_command_says_what_it_made_and_what_comes_next(tmp_path, capsys, full_checkpoint):
    assert main(["--checkpoint", str(full_checkpoint), "--out", str(tmp_path / "merged"), "--dtype", "bf16"]) == 0
    printed = capsys.readouterr().out
    assert f"{tmp_path / 'merged'}: the merged model, 0.00 GB of weights" in printed
    assert f"next: python -m launch.generate --model {tmp_path / 'merged'} " in printed
