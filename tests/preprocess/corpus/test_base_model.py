"""A base model's folder is read, or refused with an InputError: whatever its files hold."""

import inspect
import json
import os
import shutil

import pytest
from boson_multimodal.model.higgs_audio import HiggsAudioConfig
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.demo.small_model import SPECIAL_TOKENS
from preprocess.common.errors import InputError
from preprocess.corpus.base_model import BaseModel, check_codec_fits, read_base_model
from tests.preprocess.helpers import assert_parts

FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
VALUES = [None, True, 0, -1, 3, 1.5, 10**30, float("nan"), "", "x", "higgs", [], [1], ["a"], [[]], {}, {"a": 1}]
MODEL_FOLDER = "config.json of a Higgs Audio v2 model folder"
# What the model's constructor reads besides what transformers' PretrainedConfig reads.
KEYS = [name for name in inspect.signature(HiggsAudioConfig.__init__).parameters if name not in ("self", "kwargs")]


@pytest.fixture
def folder(tmp_path, model_folder):
    """The model's JSON files; nothing here reads weights."""
    for path in model_folder.glob("*.json"):
        shutil.copy(path, tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory, model_folder):
    """As `folder`, for tests that put back what they change."""
    folder = tmp_path_factory.mktemp("model_files")
    for path in model_folder.glob("*.json"):
        shutil.copy(path, folder)
    return folder


def refusal(folder, flag="--model") -> InputError:
    with pytest.raises(InputError) as caught:
        read_base_model(folder, flag)
    return caught.value


def read_or_error(folder) -> BaseModel | InputError:
    read_base_model.cache_clear()
    try:
        return read_base_model(folder)
    except InputError as error:
        return error


def change_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def places(value, place=()):
    """The keys and numbers that lead to each part of a JSON value; of a long list to its first parts."""
    yield place
    if isinstance(value, dict | list):
        parts = value.items() if isinstance(value, dict) else enumerate(value[:3])
        for name, part in parts:
            yield from places(part, (*place, name))


def put(value, place, new):
    """`value` with `new` in one place of it."""
    if not place:
        return new
    copy = value.copy()
    copy[place[0]] = put(copy[place[0]] if len(place) > 1 else None, place[1:], new)
    return copy


@st.composite
def changed_file(draw, originals):
    """(name, bytes) of one file with a value replaced, a key added, its end cut off, or some bytes changed."""
    name = draw(st.sampled_from(FILES))
    data = originals[name]
    how = draw(st.sampled_from(["value", "value", "key", "cut", "bytes"]))
    if how == "value" or (how == "key" and name != "config.json"):
        value = json.loads(data)
        place = draw(st.sampled_from(list(places(value))))
        return name, json.dumps(put(value, place, draw(st.sampled_from(VALUES)))).encode()
    if how == "key":
        added = {draw(st.sampled_from(KEYS)): draw(st.sampled_from(VALUES))}
        return name, json.dumps({**json.loads(data), **added}).encode()
    if how == "cut":
        return name, data[: draw(st.integers(0, len(data) - 1))]
    spoilt = bytearray(data)
    for number in draw(st.lists(st.integers(0, len(data) - 1), min_size=1, max_size=3)):
        spoilt[number] = draw(st.integers(0, 255))
    return name, bytes(spoilt)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_folder_is_read_or_refused_whatever_its_files_hold(shared_folder, data):
    originals = {name: (shared_folder / name).read_bytes() for name in FILES}
    name, changed = data.draw(changed_file(originals))
    (shared_folder / name).write_bytes(changed)
    try:
        read = read_or_error(shared_folder)
    finally:
        (shared_folder / name).write_bytes(originals[name])
    if isinstance(read, InputError):
        assert read.where.startswith(str(shared_folder))
        assert all([read.found, read.expected])
        assert "with --model" in read.action
    else:
        assert [type(read.config.audio_num_codebooks), type(read.config.audio_codebook_size)] == [int, int]
        assert set(read.special_tokens) <= {*SPECIAL_TOKENS, *read.tokenizer.get_vocab()}
        assert read.num_tokens("صباح<|AUDIO_OUT|>") > 1


def test_the_whole_folder_is_read_once(folder):
    base = read_base_model(folder)
    assert read_base_model(folder) is base
    assert (base.config.audio_num_codebooks, base.config.audio_codebook_size) == (8, 1024)
    assert set(SPECIAL_TOKENS) == set(base.special_tokens)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "broken JSON (Expecting value: line 1 column 1"),
        (b'{"model_type": "higgs', "broken JSON (Unterminated string"),
        (b"\x80\x02}q", "broken JSON ('utf-8' codec can't decode byte 0x80"),
        ('{"model_type": "higgs_audio"}'.encode("utf-16"), "broken JSON ('utf-8' codec can't decode"),
        (b"[" * 10_000 + b"]" * 10_000, "broken JSON (maximum recursion depth"),
        (b"9" * 5000, "broken JSON (Exceeds the limit"),
        (b"[]", "JSON of type list, not an object"),
        (b"7", "JSON of type int, not an object"),
        (b"null", "JSON of type NoneType, not an object"),
    ],
)
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_a_file_that_holds_no_json_object_is_refused(name, data, found, folder):
    (folder / name).write_bytes(data)
    expected = MODEL_FOLDER if name == "config.json" else "the tokenizer's files beside the model's"
    assert_parts(refusal(folder), str(folder / name), found, expected, "with --model. Download")


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "tokenizer.json"])
def test_what_is_no_file_is_refused(name, folder):
    (folder / name).unlink()
    error = refusal(folder)
    assert error.where == str(folder)
    assert_parts(error, str(folder), f"no {name}", "files" if "token" in name else MODEL_FOLDER, "Download")
    (folder / name).symlink_to("nowhere")
    assert_parts(refusal(folder), str(folder), f"no {name}", "", "Download")
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert_parts(refusal(folder), str(folder / name), "no regular file", "", "Download")
    (folder / name).unlink()
    (folder / name).mkdir()
    assert_parts(refusal(folder), str(folder / name), "a folder", "", "Download")


def test_what_is_no_folder_is_refused(folder):
    assert_parts(refusal(folder / "none"), str(folder / "none"), "no such folder", MODEL_FOLDER, "Download")
    file = folder / "config.json"
    error = refusal(file, "--base")
    assert error.where == str(file)
    assert_parts(error, str(file), "a file, not a folder", MODEL_FOLDER, "folder with --base. Download")


def test_a_folder_that_may_not_be_read_is_refused(folder):
    folder.chmod(0)
    user = os.geteuid()
    try:
        if user == 0:  # root reads all
            os.seteuid(65534)
        error = refusal(folder)
    finally:
        os.seteuid(user)
        folder.chmod(0o700)
    assert_parts(error, str(folder / "config.json"), "permission denied", MODEL_FOLDER, "Download")


def test_all_values_of_wrong_types_are_named_at_once(folder):
    text = json.loads((folder / "config.json").read_text())["text_config"]
    change_config(
        folder,
        audio_num_codebooks="8",
        audio_dual_ffn_layers=[0, "1"],
        skip_audio_tower=1,
        audio_encoder_config=7,
        text_config={**text, "hidden_size": None, "rope_theta": "x", "eos_token_id": [1, 2], "attention_dropout": 0},
    )
    error = refusal(folder)
    assert error.where == str(folder / "config.json")
    assert error.found == (
        "audio_dual_ffn_layers [0, '1']; audio_encoder_config 7; audio_num_codebooks '8'; skip_audio_tower 1; "
        "text_config.hidden_size None; text_config.rope_theta 'x'"
    )
    assert error.expected == (
        "list for audio_dual_ffn_layers; dict for audio_encoder_config; int for audio_num_codebooks; "
        "bool for skip_audio_tower; int for text_config.hidden_size; float for text_config.rope_theta"
    )


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"model_type": "llama"}, "model_type 'llama'"),
        ({"model_type": "higgs_audio_v2"}, "no num_hidden_layers"),
        ({"model_type": ["x"] * 99}, "model_type ['x', 'x'"),
        ({"audio_adapter_type": "tower"}, "refuses (Invalid audio adapter type: tower)"),
        ({"torch_dtype": "float99"}, "refuses (module 'torch' has no attribute 'float99')"),
        ({"text_config": {"model_type": "no_such"}}, "refuses ('no_such')"),
        ({"text_config": {"model_type": "gpt2"}}, "text_config.model_type 'gpt2'"),
        ({"audio_encoder_config": {"model_type": "whisper"}}, "audio_encoder_config.model_type 'whisper'"),
    ],
)
def test_values_that_make_no_higgs_audio_config_are_refused(values, found, folder):
    change_config(folder, **values)
    error = refusal(folder)
    assert_parts(error, str(folder / "config.json"), found, "", "Download")
    assert len(error.found) < 120


@pytest.mark.parametrize("token", ["<|AUDIO|>", "<|AUDIO_OUT|>"])
def test_a_tokenizer_of_another_model_is_refused(token, folder):
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace(token, "<|reserved_9|>"))
    assert_parts(refusal(folder), str(path), f"{token} as token", "the tokenizer of this model", "Download")


def changed_tokenizer(folder, change):
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    change(tokenizer)
    path.write_text(json.dumps(tokenizer))
    return path


def test_a_token_beyond_the_embeddings_is_refused(folder):
    """On a GPU its lookup would be a device assert."""
    number = json.loads((folder / "config.json").read_text())["text_config"]["vocab_size"]
    token = {"id": number, "content": "<|more|>", "single_word": False, "lstrip": False, "rstrip": False}
    token |= {"normalized": False, "special": True}
    path = changed_tokenizer(folder, lambda tokenizer: tokenizer["added_tokens"].append(token))
    assert_parts(refusal(folder), str(path), f"as number {number}", f"numbers below {number}", "Download")


def test_a_tokenizer_that_draws_its_merges_is_refused(folder):
    path = changed_tokenizer(folder, lambda tokenizer: tokenizer["model"].update(dropout=0.5))
    assert_parts(refusal(folder), str(path), "BPE with dropout", "without dropout", "Download")


def test_a_tokenizer_without_a_fast_class_is_refused(folder):
    (folder / "special_tokens_map.json").unlink()
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}')
    error = refusal(folder)
    assert_parts(error, "tokenizer_config.json", "tokenizer_class ByT5Tokenizer", "reads tokenizer.json", "Download")


def test_code_in_the_folder_never_runs_and_nobody_is_asked(folder, monkeypatch):
    """Boson's engine leaves trust_remote_code unset: transformers would ask on the terminal, whatever we do here."""
    asked = []
    monkeypatch.setattr("builtins.input", lambda *question: asked.append(question) or "y")
    mark = folder / "it_ran"
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w')\n")
    config, path = folder / "config.json", folder / "tokenizer_config.json"
    whole = config.read_text()
    change_config(folder, auto_map={"AutoConfig": "evil.C", "AutoTokenizer": ["evil.T", "evil.T"]})
    assert_parts(refusal(folder), str(config), "code that would run", "as it was downloaded", "Download")
    config.write_text(whole)
    code = {"auto_map": {"AutoTokenizer": ["evil.T", "evil.T"]}}
    for stored in ({**json.loads(path.read_text()), **code}, {**code, "tokenizer_class": "EvilTokenizer"}):
        path.write_text(json.dumps(stored))
        assert_parts(refusal(folder), str(path), "code that would run", "as it was downloaded", "Download")
    assert asked == []
    assert not mark.exists()


@pytest.mark.parametrize(
    ("file", "key"),
    [("config.json", "configuration_files")]
    + [("tokenizer_config.json", key) for key in ("tokenizer_file", "normalizer_file", "fast_tokenizer_files")]
    + [("special_tokens_map.json", "tokenizer_file")],
)
def test_a_folder_that_names_other_files_to_read_is_refused(file, key, folder, tmp_path_factory):
    """transformers follows such names, out of the folder too."""
    other = tmp_path_factory.mktemp("other") / "tokenizer.1.0.json"
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = sorted(vocabulary, key=vocabulary.get)[:2]
    vocabulary |= {first: vocabulary[second], second: vocabulary[first]}
    other.write_text(json.dumps(tokenizer))
    path = folder / file
    whole = json.loads(path.read_text())
    path.write_text(json.dumps({**whole, key: [str(other)] if key.endswith("files") else str(other)}))
    assert_parts(refusal(folder), str(path), f"{key} = ", "no names of files", "Download")


def test_an_adapter_in_place_of_a_model_is_refused(folder, tmp_path_factory):
    """transformers would load the base that it names, which may be any folder."""
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path_factory)}))
    assert_parts(refusal(folder), str(folder), "adapter_config.json", "a whole model", "launch.merge")


def test_a_codec_of_another_shape_is_refused(folder):
    base = read_base_model(folder)
    check_codec_fits(base, "codec", 8, 1024)
    for shape in ((8, 1023), (9, 1024)):
        with pytest.raises(InputError) as caught:
            check_codec_fits(base, "codec", *shape)
        found, expected = f"{shape[0]} codebooks of {shape[1]} codes", "8 codebooks of 1024 codes, as"
        assert_parts(caught.value, "codec", found, expected, "--audio-tokenizer")
