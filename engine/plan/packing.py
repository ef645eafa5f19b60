"""Samples of known length -> packs under a token budget -> steps of equally many packs.

Packs are dealt, not filled one after another. A window's samples come longest first: the longer half go each to
the pack with the most room, so that every pack gets its share of long ones and the ranks of a step equal work
(first-fit and best-fit make packs of like lengths); the shorter half go where they leave the least room, which
fills the packs. All windows are dealt at once: one numpy operation for the k-th longest sample of each.
"""

import numpy as np

from preprocess.common.errors import InputError

# Packs dealt together: at 8,192 tokens a pack a window is some 2,000 speech samples.
_PACKS_PER_WINDOW = 128
# Share of the budget that a window's samples take. Nearer to 1, more samples find no room and wait for the next
# round, where short ones meet short ones; lower, slots stay empty. bench/plan.py prints the fill.
_TARGET_FILL = 0.996


def pack_samples(tokens: np.ndarray, max_tokens: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Packs of the samples 0..N-1, each sample in one pack, in random order: (samples [N], pack_offsets [P + 1]).

    tokens: [N], the length of each sample, at most `max_tokens`.
    Pack p holds `samples[pack_offsets[p] : pack_offsets[p + 1]]`, at least one, sorted.
    """
    pack_of = np.empty(len(tokens), dtype=np.int32)
    waiting, num_packs = rng.permutation(len(tokens)), 0
    while len(waiting):
        pack = _deal(tokens[waiting], max_tokens)
        placed = pack >= 0
        pack_of[waiting[placed]] = num_packs + pack[placed]
        num_packs += int(pack.max()) + 1
        waiting = waiting[~placed]  # fewer each round: the longest of a window finds an empty pack
    pack_of = rng.permutation(num_packs)[pack_of]
    samples = np.argsort(pack_of, kind="stable")
    sizes = np.bincount(pack_of, minlength=num_packs)
    return samples.astype(np.int32), _offsets(sizes[sizes > 0])


def _deal(tokens: np.ndarray, max_tokens: int) -> np.ndarray:
    """Pack [N] of each sample, -1 where it found no room. Windows follow the order given."""
    target_tokens = max(1, int(_TARGET_FILL * max_tokens))
    begins = np.cumsum(tokens, dtype=np.int64)
    num_packs = -(-int(begins[-1]) // target_tokens)
    begins -= tokens
    window = (begins // (_PACKS_PER_WINDOW * target_tokens)).astype(np.int32)
    num_windows = int(window[-1]) + 1
    # Stable, because the order of equal keys would otherwise depend on the processor's vector instructions.
    longest_first = np.argsort(window * (max_tokens + 1) + max_tokens - tokens, kind="stable")
    sizes = np.bincount(window, minlength=num_windows)
    place = np.arange(len(tokens), dtype=np.int32)
    place -= np.repeat((np.cumsum(sizes) - sizes).astype(np.int32), sizes)

    # Row k holds the k-th longest sample of each window; windows with fewer samples end in lengths of 0.
    lengths = np.zeros((int(sizes.max()), num_windows), dtype=np.int32)
    lengths[place, window] = tokens[longest_first]
    packs = np.empty(lengths.shape, dtype=np.int32)
    room = np.zeros(num_windows * _PACKS_PER_WINDOW, dtype=np.int32)
    room[:num_packs] = max_tokens
    room = room.reshape(num_windows, _PACKS_PER_WINDOW)
    windows = np.arange(num_windows)
    for k, length in enumerate(lengths):
        if k < len(lengths) // 2:
            pack = room.argmax(axis=1)
        else:
            pack = np.where(room >= length[:, None], room, max_tokens + 1).argmin(axis=1)
        fits = room[windows, pack] >= length
        room[windows, pack] -= np.where(fits, length, 0)
        packs[k] = np.where(fits, windows * _PACKS_PER_WINDOW + pack, -1)

    result = np.empty(len(tokens), dtype=np.int32)
    result[longest_first] = packs[place, window]
    return result


def complete_last_step(
    samples: np.ndarray, pack_offsets: np.ndarray, packs_per_step: int
) -> tuple[np.ndarray, np.ndarray]:
    """The same samples in a number of packs that `packs_per_step` divides, none of them empty.

    Packs of the last step are split, those with most samples first; where the last step has fewer samples than
    packs, the last two steps (or more) share theirs. A pack is only ever split, so none outgrows its budget.
    Raises InputError where the samples are too few for that.
    """
    num_packs = len(pack_offsets) - 1
    num_steps = -(-num_packs // packs_per_step)
    if num_packs == num_steps * packs_per_step:
        return samples, pack_offsets
    for shared_steps in range(1, num_steps + 1):
        first_pack = (num_steps - shared_steps) * packs_per_step
        if len(samples) - pack_offsets[first_pack] >= shared_steps * packs_per_step:
            break
    else:
        raise InputError(
            "plan",
            f"{len(samples)} samples in {num_packs} packs",
            f"at least {num_steps * packs_per_step} samples, to put one into each of {packs_per_step} packs a step",
            "Raise max_tokens, so that packs hold more samples, or choose a packs_per_step that divides "
            f"{num_packs}.",
        )
    packs = np.split(
        samples[pack_offsets[first_pack] :], pack_offsets[first_pack + 1 : -1] - pack_offsets[first_pack]
    )
    while len(packs) < shared_steps * packs_per_step:
        largest = packs.pop(int(np.argmax([len(pack) for pack in packs])))
        packs += [largest[::2], largest[1::2]]
    packs.sort(key=len)
    packs = [pack for step in range(shared_steps) for pack in packs[step::shared_steps]]
    sizes = np.concatenate([np.diff(pack_offsets[: first_pack + 1]), [len(pack) for pack in packs]])
    return np.concatenate([samples[: pack_offsets[first_pack]], *packs]), _offsets(sizes)


def _offsets(sizes: np.ndarray) -> np.ndarray:
    """[n] sizes -> [n + 1] offsets."""
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
