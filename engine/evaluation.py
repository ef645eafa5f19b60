"""Teacher-forced losses and accuracies on the validation split."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from deepspeed import DeepSpeedEngine

from engine.forward import to_device
from engine.loader import PackReader, load_packs
from engine.losses import LossSums
from engine.metrics import loss_metrics, sum_over_ranks
from engine.plan import LayoutCost, Pack


@torch.no_grad()
def evaluate(
    engine: DeepSpeedEngine, reader: PackReader, packs: Sequence[Pack], cost: LayoutCost, num_workers: int
) -> dict[str, float]:
    """Losses and accuracies over `packs`, the same on every rank; rank r of W computes packs r, r+W, ..."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    mine = packs[rank::world_size]
    sums = LossSums.zeros(reader.config.audio_num_codebooks, engine.device)
    engine.eval()
    num_workers = min(num_workers, len(mine))
    for loaded in load_packs(reader, mine, num_workers, pin_memory=engine.device.type == "cuda"):
        sums = sums.plus(engine.module(to_device(loaded.batch, engine.device)))
    engine.train()
    num_samples = sum(len(pack.samples) for pack in packs)
    frames = sum(
        int(reader.corpus.index.column("frames")[sample.target].as_py()) for pack in packs for sample in pack.samples
    )
    # Each codebook is labelled at the target's frames and at the end of the stream.
    return loss_metrics(sum_over_ranks(sums), num_samples, num_samples * cost.text_labels, frames + num_samples)
