"""Locks on files, which the kernel frees when their holder ends, however it ends."""

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from preprocess.common.errors import InputError

_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}
_POLL_SEC = 0.05


@contextlib.contextmanager
def locked(
    path: Path,
    action: str,
    *,
    taken: InputError | None = None,
    patience_sec: float = 0.0,
    shared: bool = False,
    of_process: bool = False,
) -> Iterator[None]:
    """Hold a lock on the file `path`, made where there is none.

    action: what to do where the file system has no locks, which is an InputError.
    taken: the error to raise where another holds the lock, `patience_sec` later still. Without one: wait for it.
    shared: a lock that others may share.
    of_process: a lock of this process alone. Processes forked from here hold another lock too, for as long as they
        live; they may outlive a killed parent by seconds.
    """
    lock = fcntl.lockf if of_process else fcntl.flock
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    give_up = time.monotonic() + patience_sec
    with open(path, "a") as file:  # NFS locks only what is open for writing
        while True:
            try:
                lock(file, kind | fcntl.LOCK_NB if taken else kind)
                break
            except OSError as error:
                if error.errno in _NO_LOCKS:
                    raise _missing_locks(path.parent, error, action) from error
                if not taken or error.errno not in (errno.EAGAIN, errno.EACCES):  # lockf may say EACCES
                    raise
                if time.monotonic() > give_up:
                    raise taken from error
            time.sleep(_POLL_SEC)
        yield


def _missing_locks(folder: Path, error: OSError, action: str) -> InputError:
    return InputError(
        str(folder),
        f"a file system without locks ({os.strerror(error.errno).lower()})",
        "one with them: they keep two processes from writing the same files",
        f"{action} (Lustre has locks when mounted with -o flock, NFS from version 4 on.)",
    )
