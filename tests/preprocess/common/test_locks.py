"""On a file system without locks each command ends at once, and says which flag names another folder."""

import errno
import fcntl
import os
from unittest import mock

import pytest

from engine.checkpoint.resume import lock_run_folder
from preprocess.common.errors import InputError
from preprocess.corpus.storage import Cache, RemoteFolder
from preprocess.encode.output_folder import hold_finish, hold_folder


def hold_run_folder(folder):
    with lock_run_folder(folder):
        pass


def begin_corpus(folder):
    with hold_folder(folder, {}):
        pass


def finish_corpus(folder):
    with hold_finish(folder):
        pass


def use_cache(folder):
    RemoteFolder("memory://nowhere", Cache(folder)).check([])


@pytest.mark.parametrize(
    ("use", "flag"),
    [(hold_run_folder, "--out"), (begin_corpus, "--out"), (finish_corpus, "--out"), (use_cache, "--cache")],
)
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS], ids=errno.errorcode.get)
def test_a_file_system_without_locks_is_named_with_the_flag_for_another(use, flag, number, tmp_path):
    missing = mock.Mock(side_effect=OSError(number, os.strerror(number)))
    with (
        mock.patch.multiple(fcntl, flock=missing, lockf=missing),
        pytest.raises(InputError) as caught,
    ):
        use(tmp_path)
    assert caught.value.where == str(tmp_path)
    assert caught.value.found == f"a file system without locks ({os.strerror(number).lower()})"
    assert "writing the same files" in caught.value.expected
    assert flag in caught.value.action
    use(tmp_path)  # where there are locks


def test_another_error_of_a_lock_is_not_taken_for_a_missing_one(tmp_path):
    broken = mock.Mock(side_effect=OSError(errno.EIO, os.strerror(errno.EIO)))
    with mock.patch.object(fcntl, "flock", broken), pytest.raises(OSError, match="Input/output error"):
        use_cache(tmp_path)
