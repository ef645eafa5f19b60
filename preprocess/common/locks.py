"""Locks on files. The kernel frees a lock when the process that holds it ends, even if it is killed."""

import contextlib
import errno
import fcntl
import time
from collections.abc import Iterator
from pathlib import Path

from preprocess.common.errors import InputError, system_reason

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
    """Hold a lock on the file `path` (made if missing) while the block runs.

    action: what the user can do about a file system without locks, for the InputError that this raises.
    taken: the error to raise if another process still holds the lock after `patience_sec`. None waits without end.
    shared: others may hold the lock too, if they also ask for a shared one.
    of_process: a lock of this process alone, by fcntl. The other kind, by flock, is also held by processes forked
        later, which may outlive a killed parent by seconds.
    """
    lock = fcntl.lockf if of_process else fcntl.flock
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    give_up = time.monotonic() + patience_sec
    with open(path, "a") as file:  # NFS locks only files that are open for writing
        while True:
            try:
                lock(file, kind | fcntl.LOCK_NB if taken else kind)
                break
            except OSError as error:
                if error.errno in _NO_LOCKS:
                    raise InputError(
                        str(path.parent),
                        f"a file system without locks ({system_reason(error)})",
                        "one with locks, which keep two processes from writing the same files",
                        f"{action} (Lustre has locks when mounted with -o flock, NFS from version 4 on.)",
                    ) from error
                if not taken or error.errno not in (errno.EAGAIN, errno.EACCES):  # lockf may raise EACCES
                    raise
                if time.monotonic() > give_up:
                    raise taken from error
            time.sleep(_POLL_SEC)
        yield
