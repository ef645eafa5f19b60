"""Teacher-forced losses and accuracies on the validation split, and whether the model listens to the reference."""

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from deepspeed import DeepSpeedEngine

from engine.base.stop import StopRequest
from engine.batch.loader import PackReader, load_packs
from engine.model.forward import to_device
from engine.model.losses import LossSums
from engine.monitor.metrics import loss_metrics, sum_over_ranks
from engine.plan.plan import Pack, Sample
from engine.plan.swapped import samples_of_packs


def evaluate(
    engine: DeepSpeedEngine,
    reader: PackReader,
    packs: Sequence[Pack],
    swapped: Sequence[Pack],
    num_workers: int,
    stop: StopRequest,
) -> dict[str, float] | None:
    """Losses and accuracies over `packs`, the same on every rank; rank r of W computes packs r, r+W, ...

    None, on every rank, where `stop` came before all packs were done: it is asked before each.
    Losses are plain cross-entropies, whatever label smoothing or consistency training adds.
    swapped: the packs by `swap_references`, in which case there is also `conditioning_gain`: the audio loss of the
    swapped samples with another speaker's reference minus that with their own. [] leaves it out.
    """
    sums = _sum_losses(engine, reader, packs, num_workers, stop)
    if sums is None:
        return None
    samples = samples_of_packs(packs)
    num_trained, text_count = (sum(getattr(s, name) for s in samples) for name in ("num_trained", "text_labels"))
    metrics = loss_metrics(sums, num_trained, text_count, _audio_count(samples))
    if swapped:
        others = _sum_losses(engine, reader, swapped, num_workers, stop)
        if others is None:
            return None
        difference = others.audio - sums.audio  # samples that keep their reference cancel out
        changed = [new for old, new in zip(samples, samples_of_packs(swapped), strict=True) if new != old]
        metrics["conditioning_gain"] = float(difference.mean()) / _audio_count(changed)
    return metrics


@torch.no_grad()
def _sum_losses(
    engine: DeepSpeedEngine, reader: PackReader, packs: Sequence[Pack], num_workers: int, stop: StopRequest
) -> LossSums | None:
    """Sums over all packs, the same on every rank; None where `stop` came first."""
    mine = packs[dist.get_rank() :: dist.get_world_size()]
    sums = LossSums.zeros(reader.config.audio_num_codebooks, engine.device)
    engine.eval()
    num_workers = min(num_workers, len(mine))
    loaded_packs = load_packs(reader, mine, num_workers, pin_memory=engine.device.type == "cuda")
    stopping = False
    for _ in range(math.ceil(len(packs) / dist.get_world_size())):  # every rank asks as often, with a pack or without
        stopping = stop.agreed()
        if stopping:
            break
        loaded = next(loaded_packs, None)
        if loaded is not None:
            sums = sums.plus(engine.module(to_device(loaded.batch, engine.device)))
    engine.train()
    return None if stopping else sum_over_ranks(sums)


def _audio_count(samples: Sequence[Sample]) -> int:
    return sum(sample.audio_labels for sample in samples)
