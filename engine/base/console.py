"""Console output of a run, by rank 0 alone."""

import torch.distributed as dist

from preprocess.common.say import say


def print_rank0(line: str) -> None:
    """Print `line` at once on rank 0; do nothing on other ranks."""
    if not dist.is_initialized() or dist.get_rank() == 0:
        say(line)
