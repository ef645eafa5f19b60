"""What a run prints, on rank 0."""

import torch.distributed as dist


def print_rank0(line: str) -> None:
    """Print on rank 0, at once."""
    if not dist.is_initialized() or dist.get_rank() == 0:
        print(line, flush=True)
