"""The one error that a user can mend, with four required parts, and how a command ends on it or on a signal."""

import contextlib
import errno
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from traceback import format_exception
from types import FrameType
from typing import Any

from preprocess.common.say import say, say_lines, visible

# errno of what a user can mend: a full, read-only or forbidden disk, or a path that can't be made.
_WRITE_ERRORS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.EEXIST, errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG),
}


_NO_NAMES = {errno.ENAMETOOLONG, errno.ELOOP}  # of what no file can be called, wherever it was given

UNEXPECTED = "unexpected_error"
_PARTS = ("status", "reason", "where", "found", "expected", "action")  # of a Rejected


class InputError(ValueError):
    """Input that can't be used: where it is, what was found, what was expected, what to do next.

    >>> print(InputError("recipe.yaml: steps.lr", "'fast'", "a number above 0", "Set steps.lr=2e-4."))
    recipe.yaml: steps.lr: found 'fast'; expected a number above 0. Set steps.lr=2e-4.
    """

    def __init__(self, where: str, found: str, expected: str, action: str) -> None:
        self.where, self.found = visible(where), visible(found)  # a name or a value may be a stranger's
        self.expected, self.action = visible(expected, keep_lines=True), visible(action, keep_lines=True)
        super().__init__(f"{self.where}: found {self.found}; expected {self.expected}. {self.action}")

    def __reduce__(self) -> tuple[Any, ...]:
        return InputError, (self.where, self.found, self.expected, self.action)


class Rejected(InputError):
    """One manifest row or clip that is left out of the shards; the others continue.

    `status` is "failed" (it can't be used), "screened" (a filter of --screening dropped it) or "merged" (another row
    is the same); `reason` is the word under which it is counted. traceback: of an exception that nobody foresaw.
    """

    def __init__(
        self, status: str, reason: str, where: str, found: str, expected: str, action: str, traceback: str = ""
    ) -> None:
        assert status in ("failed", "screened", "merged"), status
        self.status, self.reason, self.traceback = status, reason, traceback
        super().__init__(where, found, expected, action)

    def __reduce__(self) -> tuple[Any, ...]:
        return Rejected, (*(getattr(self, name) for name in _PARTS), self.traceback)

    def at(self, where: str, reason: str | None = None) -> "Rejected":
        """The same finding at another place: for example of a row, because its clip was rejected."""
        parts = self.found, self.expected, self.action
        return Rejected(self.status, reason or self.reason, where, *parts, self.traceback)

    def record(self) -> dict[str, str]:
        """A line of failures.jsonl; a traceback where there is one."""
        names = (*_PARTS, "traceback") if self.traceback else _PARTS
        return {name: getattr(self, name) for name in names}


@contextlib.contextmanager
def costs_its_item(where: str) -> Iterator[None]:
    """Inside, an exception that nobody foresaw becomes a Rejected of the item `where`, with its traceback.

    The failure budget stops a run in which everything raises. An InputError, and so a Rejected, stays as it is.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        action = "Look at the file. If it is whole, report this with the traceback in failures.jsonl."
        parts = f"{type(error).__name__}: {first_line(error)}", "audio that can be worked on", action
        raise Rejected("failed", UNEXPECTED, where, *parts, "".join(format_exception(error))) from error


def first_line(error: BaseException) -> str:
    """First line of an error's text, or the name of its class if it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def system_reason(error: OSError) -> str:
    """The operating system's text for an error, in lower case: "no space left on device"."""
    return (error.strerror or str(error)).lower()


def join_some(names: Iterable[str], most: int = 40) -> str:
    """Names joined by commas, at most `most` of them: "a, b and 7 more"."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


@contextlib.contextmanager
def explain_model_errors(
    folder: Path | str, action: str, what: str = "a model that can't be loaded"
) -> Iterator[None]:
    """Inside, an error from a model's code becomes an InputError about `folder`, unless memory or CUDA failed."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # Boson, transformers and torch raise errors of every kind
        no_memory = isinstance(error, RuntimeError) and re.search("CUDA|out of memory|can't allocate", str(error))
        if no_memory or isinstance(error, MemoryError | TimeoutError):
            raise
        found = f"{what} ({type(error).__name__}: {first_line(error)})"
        raise InputError(
            str(folder), found, "config and weights of one model, as they were downloaded", action
        ) from error


@contextlib.contextmanager
def explain_write_errors(folder: Path, action: str) -> Iterator[None]:
    """Inside, an OSError that means `folder` can't be written (full, read-only, gone...) becomes an InputError."""
    try:
        yield
    except OSError as error:
        if error.errno not in _WRITE_ERRORS or not _concerns(folder, error.filename):
            raise
        raise InputError(
            str(folder),
            f"{system_reason(error)} ({error.filename or 'while writing'})",
            "a folder that can be written, with free space",
            action,
        ) from error


def _concerns(folder: Path, name: str | Path | None) -> bool:
    """Whether an error about the file `name` concerns `folder`: the file is in it or above it, or not named."""
    path, folder = Path(name or folder).absolute(), folder.absolute()
    return path.is_relative_to(folder) or folder.is_relative_to(path)


def exit_on_input_error(main: Callable[[], int | None]) -> None:
    """Run a command's `main` and exit with its return value (None is 0), or with 2 and the text of an InputError.

    A KeyboardInterrupt prints one line, "stopped" and its notes (what is kept, what to do next), and exits as shells
    report a signal: 128 + its number, so 130 for Ctrl-C. Any other exception is our bug and keeps its traceback.
    """
    try:
        sys.exit(main() or 0)
    except InputError as error:
        say_lines(f"error: {error}", error=True)
        sys.exit(2)
    except OSError as error:
        if error.errno not in _NO_NAMES:
            raise
        parts = str(error.filename), system_reason(error), "the name of a file or a folder", "Correct it."
        say_lines(f"error: {InputError(*parts)}", error=True)
        sys.exit(2)
    except KeyboardInterrupt as stop:
        say("; ".join(["stopped", *getattr(stop, "__notes__", [])]), error=True)
        sys.exit(128 + (stop.args[0] if stop.args else signal.SIGINT))


def stop_on_signals() -> None:
    """From now on Ctrl-C and SIGTERM raise KeyboardInterrupt(signal number); the second one kills the process."""

    def stop(number: int, frame: FrameType | None) -> None:
        for known in (signal.SIGINT, signal.SIGTERM):
            signal.signal(known, signal.SIG_DFL)
        raise KeyboardInterrupt(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
