"""Arrays of numbers, and groups of different sizes that lie side by side in one array."""

from typing import Any

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]
Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]
Ints = npt.NDArray[np.integer[Any]]


def group_offsets(sizes: npt.ArrayLike) -> Int64s:
    """int64 [G + 1]: where each group begins and where the last one ends, of G groups side by side."""
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def places_in_groups(sizes: Ints) -> Int32s:
    """int32 [sum of sizes]: place of each item in its group, as [0, 1, 0, 1, 2] for sizes [2, 3]."""
    places = np.arange(sizes.sum(), dtype=np.int32)
    places -= np.repeat(group_offsets(sizes)[:-1].astype(np.int32), sizes)
    return places
