"""How a command ends early: by the one error a user can mend, whose four parts can't be left out, or by a signal."""

import contextlib
import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

_WRITE_ERRORS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.EEXIST, errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG),
}


class InputError(ValueError):
    """What the user gave can't be used: where, what was found, what was expected, what to do next.

    >>> print(InputError("recipe.yaml: steps.lr", "'fast'", "a number above 0", "Set steps.lr=2e-4."))
    recipe.yaml: steps.lr: found 'fast'; expected a number above 0. Set steps.lr=2e-4.
    """

    def __init__(self, where: str, found: str, expected: str, action: str) -> None:
        self.where, self.found, self.expected, self.action = where, found, expected, action
        super().__init__(f"{where}: found {found}; expected {expected}. {action}")

    def __reduce__(self):
        return InputError, (self.where, self.found, self.expected, self.action)


class Rejected(InputError):
    """One manifest row or clip that is not in the shards, while the others go on.

    `status` is "failed" (it can't be used), "screened" (it could, and a filter says no) or "merged" (another row
    says the same); `reason` is a word to count by.
    """

    def __init__(self, status: str, reason: str, where: str, found: str, expected: str, action: str) -> None:
        assert status in ("failed", "screened", "merged"), status
        self.status, self.reason = status, reason
        super().__init__(where, found, expected, action)

    def __reduce__(self):
        return Rejected, (self.status, self.reason, self.where, self.found, self.expected, self.action)

    def at(self, where: str, reason: str | None = None) -> "Rejected":
        """The same finding, told of another place: a row whose clip was rejected, say."""
        return Rejected(self.status, reason or self.reason, where, self.found, self.expected, self.action)

    def record(self) -> dict[str, str]:
        """The fields of failures.jsonl."""
        names = ("status", "reason", "where", "found", "expected", "action")
        return {name: getattr(self, name) for name in names}


def first_line(error: BaseException) -> str:
    """What an error of another library says first, or its kind where it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)


@contextlib.contextmanager
def explain_write_errors(folder: Path, action: str) -> Iterator[None]:
    """Inside, an OSError that says `folder` can't be written (full, read-only, not ours, gone) is an InputError."""
    try:
        yield
    except OSError as error:
        if error.errno not in _WRITE_ERRORS or not _concerns(folder, error.filename):
            raise
        raise InputError(
            str(folder),
            f"{os.strerror(error.errno).lower()} ({error.filename or 'while writing'})",
            "a folder that can be written, with room",
            action,
        ) from error


def _concerns(folder: Path, name: str | Path | None) -> bool:
    """Whether a file is in `folder`, or is above it and kept it from being made; an error may name none."""
    path, folder = Path(name or folder).absolute(), folder.absolute()
    return path.is_relative_to(folder) or folder.is_relative_to(path)


def exit_on_input_error(main: Callable[[], int | None]) -> None:
    """Run a command's `main` and exit: its return value (None is 0), or 2 with the message of an InputError.

    A KeyboardInterrupt is a line too, with the notes it carries: what is kept, what to do. It exits as a shell tells
    of a signal: 128 and its number, 130 for Ctrl-C. Any other exception is a bug of ours and keeps its traceback.
    """
    try:
        sys.exit(main() or 0)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except KeyboardInterrupt as stop:
        print("; ".join(["stopped", *getattr(stop, "__notes__", [])]), file=sys.stderr, flush=True)
        sys.exit(128 + (stop.args[0] if stop.args else signal.SIGINT))


def stop_on_signals() -> None:
    """From now on Ctrl-C and SIGTERM raise KeyboardInterrupt(their number); a second one ends the process at once."""

    def stop(number: int, frame: FrameType | None) -> None:
        for known in (signal.SIGINT, signal.SIGTERM):
            signal.signal(known, signal.SIG_DFL)
        raise KeyboardInterrupt(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
