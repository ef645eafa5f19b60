"""One corpus made by several runs of the command, on machines that share a file system.

    python -m preprocess.shard ... --slice 0/8      ...      python -m preprocess.shard ... --slice 7/8

Every slice computes the same plan of the whole corpus and makes its own share of the shards. The slice that finds
all of them finished writes index and corpus.json; `--finalize` writes them if the last slice died before it could.
"""

from dataclasses import dataclass
from typing import TypeVar

from preprocess.common.errors import InputError

T = TypeVar("T")


@dataclass(frozen=True)
class Slice:
    """One of `count` slices; `number` counts from 0."""

    number: int
    count: int

    def select(self, specs: list[T]) -> list[T]:
        """Every count-th shard, so that each slice has shards from the whole corpus."""
        return specs[self.number :: self.count]

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


def parse_slice(text: str | None) -> Slice | None:
    """The slice that `i/n` names, i from 0 to n - 1; None for None. Raises InputError for other text."""
    if text is None:
        return None
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise InputError(
            "--slice",
            repr(text),
            "i/n with i from 0 to n - 1",
            "In a Slurm array of 8 (--array=0-7): --slice $SLURM_ARRAY_TASK_ID/8.",
        )
    return Slice(int(number), int(count))
