"""Files whose two channels differ: perhaps a speaker on each, and training would get both mixed."""

from collections.abc import Iterator

import pyarrow.compute as pc

from preprocess.corpus.shards import Corpus

DIFFERENT_FROM = 0.1  # RMS of the difference, over that of the louder channel
PICK_ONE = "their mean was encoded; a row's `channel` (0 for the first) picks one"
_NUM_EXAMPLES = 3


def find_two_channels(corpus: Corpus) -> tuple[int, list[str]]:
    """(number of recordings whose channels differ, a few of them by their source and by how much)."""
    index = corpus.index
    differ = pc.greater(index.column("channel_difference"), DIFFERENT_FROM).fill_null(False)
    rows = pc.indices_nonzero(pc.and_(differ, pc.is_null(index.column("derived_from")))).to_pylist()
    examples = []
    for row in rows[:_NUM_EXAMPLES]:
        meta = corpus.meta(row)
        examples.append(f"{meta['source']} ({meta['quality']['channel_difference']:.2f} of the louder one)")
    return len(rows), examples


def channel_lines(corpus: Corpus) -> Iterator[str]:
    """Lines to print; none where no channels differ."""
    count, examples = find_two_channels(corpus)
    if count:
        yield f"channels: {count} clips have two that differ; {PICK_ONE}: {', '.join(examples)}"
