"""Samples of known length -> packs under a token budget -> steps of equally many packs.

Samples are assigned to packs in windows, a fixed number of packs at a time, longest sample first. Each of the longer
half goes to the pack with the most room: so every pack gets its share of long samples, and the ranks of a step have
equal work (first-fit and best-fit would put samples of like length together). Each of the shorter half goes to the
pack in which it leaves the least room, which fills the packs.
"""

import numpy as np

from engine.plan.arrays import Int32s, Int64s, Ints, group_offsets, places_in_groups
from preprocess.common.errors import InputError

# At 8,192 tokens per pack, a window of so many packs holds some 2,000 speech samples.
_PACKS_PER_WINDOW = 128
# Share of the budget that the samples of a window take. The nearer to 1, the more samples find no room and are left
# to the next round, where only short ones meet; the lower, the more room stays empty. bench/plan.py prints the fill.
_TARGET_FILL = 0.996


def pack_samples(tokens: Ints, max_tokens: int, rng: np.random.Generator) -> tuple[Int32s, Int64s]:
    """Packs of the samples 0..N-1, each sample in one pack, in random order: (samples [N], pack_offsets [P + 1]).

    tokens: [N], the length of each sample, at most `max_tokens`.
    Pack p holds `samples[pack_offsets[p] : pack_offsets[p + 1]]`, at least one, sorted.
    """
    pack_of = np.empty(len(tokens), dtype=np.int32)
    waiting, num_packs = rng.permutation(len(tokens)), 0
    while len(waiting):
        pack = _assign_packs(tokens[waiting], max_tokens)
        placed = pack >= 0
        pack_of[waiting[placed]] = num_packs + pack[placed]
        num_packs += int(pack.max()) + 1
        waiting = waiting[~placed]  # fewer each round: the longest sample of a window always finds an empty pack
    pack_of = rng.permutation(num_packs).astype(np.int32)[pack_of]
    samples = np.argsort(pack_of, kind="stable")
    sizes = np.bincount(pack_of, minlength=num_packs)
    return samples.astype(np.int32), group_offsets(sizes[sizes > 0])


def _assign_packs(tokens: Ints, max_tokens: int) -> Int32s:
    """int32 [N]: pack of each sample, -1 if no pack had room for it. A window is a run of consecutive samples.

    All windows are filled at the same time: numpy operation k places the k-th longest sample of every window.
    """
    target_tokens = max(1, int(_TARGET_FILL * max_tokens))
    ends = np.cumsum(tokens, dtype=np.int64)
    num_packs = -(-int(ends[-1]) // target_tokens)
    window = ((ends - tokens) // (_PACKS_PER_WINDOW * target_tokens)).astype(np.int32)
    num_windows = int(window[-1]) + 1
    # Stable, because the order of equal keys would otherwise depend on the processor's vector instructions.
    longest_first = np.argsort(window * (max_tokens + 1) + max_tokens - tokens, kind="stable")
    sizes = np.bincount(window, minlength=num_windows)
    place = places_in_groups(sizes)

    # Row k holds the k-th longest sample of each window; windows with fewer samples end in lengths of 0.
    lengths = np.zeros((int(sizes.max()), num_windows), dtype=np.int32)
    lengths[place, window] = tokens[longest_first]
    packs = np.empty(lengths.shape, dtype=np.int32)
    room = np.zeros((num_windows, _PACKS_PER_WINDOW), dtype=np.int32)
    room.flat[:num_packs] = max_tokens  # the last window may have fewer packs
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


def complete_last_step(samples: Int32s, pack_offsets: Int64s, packs_per_step: int) -> tuple[Int32s, Int64s]:
    """The same samples in a number of packs that `packs_per_step` divides, none of them empty.

    Packs of the last step are split, those with the most samples first. If the last step has fewer samples than
    packs, the last two steps (or more) are split and dealt out together. Packs are never joined, so none exceeds its
    token budget. Raises InputError if there are too few samples for that.
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
            f"at least {num_steps * packs_per_step} samples, one for each of the {packs_per_step} packs per step",
            "Raise batch.max_tokens, so that packs hold more samples, or choose a batch.packs_per_step that divides "
            f"{num_packs}.",
        )
    first_sample = pack_offsets[first_pack]
    packs = np.split(samples[first_sample:], pack_offsets[first_pack + 1 : -1] - first_sample)
    while len(packs) < shared_steps * packs_per_step:
        largest = packs.pop(int(np.argmax([len(pack) for pack in packs])))
        packs += [largest[::2], largest[1::2]]
    packs.sort(key=len)
    packs = [pack for step in range(shared_steps) for pack in packs[step::shared_steps]]
    sizes = np.concatenate([np.diff(pack_offsets[: first_pack + 1]), [len(pack) for pack in packs]])
    return np.concatenate([samples[:first_sample], *packs]), group_offsets(sizes)
