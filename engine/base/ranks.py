"""How the packs of a global step are shared among the ranks."""

from preprocess.common.errors import InputError


def packs_of_rank(packs_per_step: int, rank: int, world_size: int) -> range:
    """Numbers of the packs of a global step that `rank` trains on: rank, rank + world_size, ...

    Raises InputError if the world size does not divide the packs.
    """
    if packs_per_step % world_size:
        possible = [str(w) for w in range(1, packs_per_step + 1) if packs_per_step % w == 0]
        raise InputError(
            "world size",
            f"{world_size} ranks",
            f"{', '.join(possible)}: a number that divides batch.packs_per_step={packs_per_step}",
            "Start one of these numbers of ranks (deepspeed --num_gpus N), or set batch.packs_per_step to a "
            f"multiple of {world_size}.",
        )
    return range(rank, packs_per_step, world_size)
