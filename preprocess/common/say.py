"""What a command prints: lines in which no text of a stranger can move the cursor, colour, hide or add anything."""

import os
import re
import sys

# Control characters, invisible direction overrides and isolates, line and paragraph separators, halves of surrogate
# pairs. Arabic needs the marks U+200C to U+200F and U+061C, which stay.
_UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
_UNSEEN_IN_LINES = re.compile(_UNSEEN.pattern.replace(r"\x00-\x1f", r"\x00-\x09\x0b-\x1f"))


def visible(text: str, keep_lines: bool = False) -> str:
    """The text with such characters as escapes: "\\x1b[2J". keep_lines: newlines stay, those of our own texts."""
    pattern = _UNSEEN_IN_LINES if keep_lines else _UNSEEN
    return pattern.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def say(line: object = "", *, error: bool = False) -> None:
    """Print one line at once, to stderr if it is an `error`."""
    _print(visible(str(line)), error)


def say_lines(text: str, *, error: bool = False) -> None:
    """Print the lines of a text of our own."""
    _print(visible(text, keep_lines=True), error)


def _print(text: str, error: bool) -> None:
    """Print the text. Where it can't be written, nobody can be told, and work goes on."""
    stream = sys.stderr if error else sys.stdout
    try:
        print(text, file=stream, flush=True)
    except BrokenPipeError:  # who read has gone: what follows goes nowhere, or each line and Python's exit would fail
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    except OSError:  # the disk with the log is full: it may have room again for a later line
        return
