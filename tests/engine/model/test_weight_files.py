"""A base's index and the headers of its weight files: anything in them is what the files hold, or an InputError."""

import json
import pickle  # noqa: S403 - only to make what must not be read
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from engine.model.fingerprint import base_fingerprint
from engine.model.weight_files import WEIGHTS_FILE, WEIGHTS_INDEX_FILE, read_header, stored_tensors, weight_files
from engine.model.weights import load_base
from preprocess.common.errors import InputError
from preprocess.corpus.base_model import read_base_model
from tests.fixtures.strange import made_strange

PARTS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.fixture(scope="module")
def split_folder(tmp_path_factory, model_folder):
    """The base with its weights in two files and an index."""
    folder = tmp_path_factory.mktemp("weights") / "split"
    shutil.copytree(model_folder, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    tensors = {name: tensor for path in weight_files(model_folder) for name, tensor in load_file(path).items()}
    names = sorted(tensors)
    for part, share in zip(PARTS, (names[::2], names[1::2]), strict=True):
        save_file({name: tensors[name] for name in share}, folder / part, {"format": "pt"})
    weight_map = {name: PARTS[number % 2] for number, name in enumerate(names)}
    (folder / WEIGHTS_INDEX_FILE).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return folder


def stored(folder, flag="--model"):
    return stored_tensors(read_base_model(folder, flag), flag)


def outcome(work):
    """What `work` gives, or "refused" for an InputError that says where and what to do."""
    try:
        return work()
    except InputError as error:
        says_all = error.where and "Name the model's folder with --base" in error.action
        return "refused" if says_all else error


def test_split_weights_are_those_of_one_file(split_folder, model_folder):
    assert weight_files(split_folder) == [split_folder / part for part in PARTS]
    shapes = [{name: each.shape for name, each in stored(at).items()} for at in (split_folder, model_folder)]
    assert shapes[0] == shapes[1]
    states = [load_base(folder, torch.float32).state_dict() for folder in (split_folder, model_folder)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@given(st.data())
def test_any_index_names_files_of_the_folder_or_is_refused(split_folder, tmp_path_factory, data):
    index = json.loads((split_folder / WEIGHTS_INDEX_FILE).read_text())
    index["weight_map"] = dict(list(index["weight_map"].items())[:3])
    folder = tmp_path_factory.mktemp("index")
    for part in PARTS:
        (folder / part).symlink_to(split_folder / part)
    text = json.dumps(data.draw(made_strange(index)))
    (folder / WEIGHTS_INDEX_FILE).write_text(text)
    found = outcome(lambda: weight_files(folder, "--base"))
    assert found == "refused" or {path.parent for path in found} == {folder}


@pytest.mark.parametrize(
    "name",
    [
        "../split/model-00001-of-00002.safetensors",
        "/etc/x.safetensors",
        "a/b.safetensors",
        ".safetensors",
        "x.bin",
        "..",
        "a\0.safetensors",
        "a\n.safetensors",
        3,
        None,
        [],
    ],
)
def test_a_name_in_the_index_is_no_path(name, split_folder, tmp_path):
    folder = shutil.copytree(split_folder, tmp_path / "split")
    index = json.loads((folder / WEIGHTS_INDEX_FILE).read_text())
    index["weight_map"] |= {next(iter(index["weight_map"])): name}
    (folder / WEIGHTS_INDEX_FILE).write_text(json.dumps(index))
    for work in (weight_files, stored, lambda *given: load_base(given[0], torch.float32, given[1])):
        with pytest.raises(InputError) as caught:
            work(folder, "--base")
        assert caught.value.where == f"{folder / WEIGHTS_INDEX_FILE}: weight_map"
        assert repr(name) in caught.value.found


@given(place=st.floats(0, 1, exclude_max=True), bits=st.integers(1, 255), cut=st.booleans(), in_header=st.booleans())
def test_a_damaged_weight_file_is_refused_or_another_base(
    place, bits, cut, in_header, split_folder, tmp_path_factory
):
    folder = tmp_path_factory.mktemp("damaged")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", PARTS[1], WEIGHTS_INDEX_FILE):
        (folder / name).symlink_to(split_folder / name)
    data = bytearray((split_folder / PARTS[0]).read_bytes())
    header_bytes = int.from_bytes(data[:8], "little")
    at = int(place * (8 + header_bytes if in_header else len(data)))
    if cut:
        del data[at:]
    else:
        data[at] ^= bits
    (folder / PARTS[0]).write_bytes(data)
    tensors = outcome(lambda: stored(folder, "--base"))
    fingerprint = outcome(lambda: base_fingerprint(folder, "--base"))
    assert (tensors == "refused") == (fingerprint == "refused")
    assert tensors == "refused" or not cut
    if tensors == "refused":
        return
    described = [
        {name: (each.dtype, each.shape) for name, each in of.items()} for of in (tensors, stored(split_folder))
    ]
    in_a_tensor = any(piece.begin <= at < piece.end for tensor in tensors.values() for piece in tensor.pieces)
    same = fingerprint == base_fingerprint(split_folder)
    assert same == (not in_a_tensor and described[0] == described[1])


def test_a_header_of_any_length_takes_no_memory(tmp_path):
    (tmp_path / WEIGHTS_FILE).write_bytes((1 << 60).to_bytes(8, "little") + b"{}")
    with pytest.raises(InputError, match="no safetensors file"):
        read_header(tmp_path / WEIGHTS_FILE)


class Spy:
    """Makes the file `path` when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_pickled_weights_are_refused_unread(split_folder, tmp_path):
    folder = shutil.copytree(split_folder, tmp_path / "base", ignore=shutil.ignore_patterns("model*"))
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Spy(tmp_path / "ran")))
    with pytest.raises(InputError, match=r"no model.safetensors and no model.safetensors.index.json"):
        load_base(folder, torch.float32)
    assert not (tmp_path / "ran").exists()
