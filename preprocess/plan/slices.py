"""One corpus made by several runs of the command, on as many machines as share a file system.

    python -m preprocess.shard ... --slice 0/8      ...      python -m preprocess.shard ... --slice 7/8

Every slice plans the whole corpus, which is a pure function, and makes its own share of the shards. The slice that
finds all of them finished writes index and corpus.json; `--finalize` does so where the last slice died before.
"""

from dataclasses import dataclass

from preprocess.common.errors import InputError


@dataclass(frozen=True)
class Slice:
    """Number `number` of `count`, from 0."""

    number: int
    count: int

    def select(self, specs: list) -> list:
        """Every count-th shard, so that all slices have shards of all speakers and lengths."""
        return specs[self.number :: self.count]

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


def parse_slice(text: str | None) -> Slice | None:
    """`i/n` with i from 0 to n - 1; None without one. Raises InputError."""
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
