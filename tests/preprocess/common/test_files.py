"""A file or folder is there whole or not at all, and what can't be written is an error that a user can mend."""

import errno
import os
import resource

import pytest
import torch

from engine.checkpoint.checkpoint import write_checkpoint
from engine.checkpoint.resume import lock_run_folder
from preprocess.common.errors import InputError
from preprocess.common.files import (
    atomic_file,
    cached_sha256,
    finish_folder,
    replace_link,
    write_atomically,
    write_output,
)
from tests.fixtures.killed_saves import small_model
from tests.fixtures.state import STATE
from tests.preprocess.helpers import assert_parts


@pytest.fixture
def small_disk():
    """Files can't grow beyond 10,000 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_whose_writing_fails_keeps_its_old_bytes(tmp_path):
    path = tmp_path / "facts.json"
    write_atomically(path, b"old")
    with pytest.raises(TypeError), atomic_file(path) as file:
        file.writelines([b"new", None])
    assert path.read_bytes() == b"old"
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["facts.json"]


def test_a_folder_and_a_link_get_their_names_in_one_move(tmp_path):
    (tmp_path / "half" / "inner").mkdir(parents=True)
    (tmp_path / "half" / "inner" / "file").write_text("x")
    (tmp_path / "whole").mkdir()  # an empty folder may be there
    finish_folder(tmp_path / "half", tmp_path / "whole")
    for target in ("elsewhere", "whole"):
        replace_link(tmp_path / "latest", target)
    assert (tmp_path / "latest" / "inner" / "file").read_text() == "x"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["latest", "whole"]


def test_a_file_is_hashed_again_when_it_has_changed(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"one")
    first = cached_sha256(tmp_path / "a.wav")
    (tmp_path / "a.wav").write_bytes(b"another")
    assert cached_sha256(tmp_path / "a.wav") != first
    (tmp_path / "a.wav").write_bytes(b"one")
    os.utime(tmp_path / "a.wav", ns=(1, 1))
    assert cached_sha256(tmp_path / "a.wav") == first


def test_an_output_file_that_can_not_be_written_is_an_error_that_names_its_flag(tmp_path, small_disk):
    with pytest.raises(InputError) as caught:
        write_output(tmp_path / "new" / "out.wav", bytes(20_000))
    assert_parts(
        caught.value, str(tmp_path / "new"), "file too large", "can be written, with free space", "with --out"
    )
    assert not (tmp_path / "new" / "out.wav").exists()
    with pytest.raises(InputError) as caught:
        write_output(tmp_path / "new" / ".out.wav.partial" / "picture.png", b"x", "--image")  # a file, not a folder
    assert_parts(caught.value, "out.wav.partial", "file exists", "can be written", "with --image")


def test_a_run_folder_that_can_not_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError) as caught, lock_run_folder(tmp_path / "file" / "run"):
        pass
    assert_parts(caught.value, str(tmp_path / "file" / "run"), "not a directory", "can be written", "another --out")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.ENOENT], ids=errno.errorcode.get)
def test_what_can_not_be_written_in_mid_run_is_named_and_no_other_error_is(number, tmp_path):
    run, elsewhere = tmp_path / "run", str(tmp_path / "shards" / "shard-000000.tar")
    for name in (None, str(run / "metrics.jsonl")):
        with pytest.raises(InputError) as caught, lock_run_folder(run):
            raise OSError(number, os.strerror(number), name)
        assert_parts(caught.value, str(run), os.strerror(number).lower(), "can be written", "resumes from the newest")
    with pytest.raises(OSError, match=elsewhere), lock_run_folder(run):
        raise OSError(number, os.strerror(number), elsewhere)


def test_a_checkpoint_that_finds_no_room_is_named_and_the_one_before_stays(tmp_path, request):
    """safetensors writes without Python's files."""
    model, root = small_model(), tmp_path / "checkpoints"
    shapes = {f"model.{name}": weight.shape for name, weight in model.named_parameters() if weight.requires_grad}

    def moments(num_moments):
        return {str(n): {name: torch.zeros(shape) for name, shape in shapes.items()} for n in range(num_moments)}

    (masters,) = moments(1).values()
    write_checkpoint(root, 1, model, masters, moments(2), STATE)
    request.getfixturevalue("small_disk")
    with pytest.raises(InputError) as caught, lock_run_folder(tmp_path):
        write_checkpoint(root, 2, model, masters, moments(20), STATE)
    assert_parts(
        caught.value, str(tmp_path), "file too large", "with free space", "resumes from the newest checkpoint"
    )
    assert os.readlink(root / "latest") == "step-000001"
    assert not (root / "step-000002").exists()
