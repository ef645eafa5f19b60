"""How far a long loop is: a bar on a terminal; in a log file a plain line per minute, with nothing drawn over it."""

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

from tqdm import tqdm

from preprocess.common.say import say

T = TypeVar("T")
_LINE_EVERY_SEC = 60.0


class Advance(Protocol):
    """Say that `amount` more is done; a negative one takes some back. `note` is shown behind the numbers."""

    def __call__(self, amount: float = 1, note: str = "") -> None: ...


@contextlib.contextmanager
def show_progress(what: str, total: float, unit: str, decimals: int = 0) -> Iterator[Advance]:
    """The function that moves the bar, or that prints the lines, of work with `total` units, until the block ends.

    What takes less than a minute leaves no line in a log file; what takes longer ends on a line. All goes to stderr.
    """
    shown = _on_terminal if sys.stderr.isatty() else _in_lines
    with shown(what, total, unit, decimals) as advance:
        yield advance


def with_progress(items: Iterable[T], total: int, what: str, unit: str) -> Iterator[T]:
    """The items, of which there are `total`, one unit each."""
    with show_progress(what, total, unit) as advance:
        for item in items:
            yield item
            advance()


@contextlib.contextmanager
def _on_terminal(what: str, total: float, unit: str, decimals: int) -> Iterator[Advance]:
    numbers = f"{{n:,.{decimals}f}}/{{total:,.{decimals}f}} {unit}"
    bar_format = f"{{desc}}: {{percentage:3.0f}}%|{{bar}}| {numbers} [{{elapsed}}<{{remaining}}{{postfix}}]"
    with tqdm(total=total, desc=what, bar_format=bar_format, leave=False, disable=not total) as bar:

        def advance(amount: float = 1, note: str = "") -> None:
            bar.set_postfix_str(note, refresh=False)
            bar.update(min(amount, total - bar.n))  # there may be more to do than was expected

        yield advance


@contextlib.contextmanager
def _in_lines(what: str, total: float, unit: str, decimals: int) -> Iterator[Advance]:
    start = last_line_at = time.monotonic()
    done, last_note = 0.0, ""

    def advance(amount: float = 1, note: str = "") -> None:
        nonlocal done, last_note, last_line_at
        done, last_note = done + amount, note
        if time.monotonic() - last_line_at >= _LINE_EVERY_SEC:
            last_line_at = time.monotonic()
            print_line()

    def print_line() -> None:
        minutes = (time.monotonic() - start) / 60
        share = min(done / total, 1.0) if total else 1.0
        line = f"{what}: {share:.0%}, {done:,.{decimals}f} of {total:,.{decimals}f} {unit} in {minutes:.0f} min"
        say(f"{line}, {last_note}" if last_note else line, error=True)

    yield advance
    if last_line_at > start:
        print_line()
