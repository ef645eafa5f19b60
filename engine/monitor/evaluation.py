"""Teacher-forced losses and accuracies on the validation split, and the conditioning gain."""

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from deepspeed import DeepSpeedEngine

from engine.base.stop import StopRequest
from engine.base.watchdog import Watchdog
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
    watchdog: Watchdog,
) -> dict[str, float] | None:
    """{metric: value} over all `packs`, the same on every rank; rank r of W computes packs r, r + W, ...

    Returns None on every rank if a stop was requested before all packs were done; `stop` is asked before each.
    Losses are plain cross-entropies in nats, whatever training adds to them.
    swapped: the packs from `swap_references`. If given, there is also `conditioning_gain`: the audio loss of the
    samples whose references were swapped, with another speaker's reference minus with their own.
    """
    sums = _sum_losses(engine, reader, packs, num_workers, stop, watchdog)
    if sums is None:
        return None
    samples = samples_of_packs(packs)
    num_trained, text_count = (sum(getattr(s, name) for s in samples) for name in ("num_trained", "text_labels"))
    metrics = loss_metrics(sums, num_trained, text_count, _audio_count(samples))
    if swapped:
        others = _sum_losses(engine, reader, swapped, num_workers, stop, watchdog)
        if others is None:
            return None
        difference = others.audio - sums.audio  # samples with the same references in both cancel out
        changed = [new for old, new in zip(samples, samples_of_packs(swapped), strict=True) if new != old]
        metrics["conditioning_gain"] = float(difference.mean()) / _audio_count(changed)
    return metrics


@torch.no_grad()
def _sum_losses(
    engine: DeepSpeedEngine,
    reader: PackReader,
    packs: Sequence[Pack],
    num_workers: int,
    stop: StopRequest,
    watchdog: Watchdog,
) -> LossSums | None:
    """Sums over all packs and ranks, the same on every rank; None if a stop was requested first."""
    mine = packs[dist.get_rank() :: dist.get_world_size()]
    sums = LossSums.zeros(reader.config.audio_num_codebooks, engine.device)
    engine.eval()
    loaded_packs = load_packs(reader, mine, min(num_workers, len(mine)), pin_memory=engine.device.type == "cuda")
    # Every rank asks equally often, also one that has a pack less.
    for number in range(math.ceil(len(packs) / dist.get_world_size())):
        watchdog.at(f"evaluation, pack {number + 1} of this rank")
        if stop.agreed():
            engine.train()
            return None
        with watchdog.alone(f"the wait for the data of the evaluation, pack {number + 1} of this rank"):
            loaded = next(loaded_packs, None)
        if loaded is not None:
            sums = sums.plus(engine.module(to_device(loaded.batch, engine.device)))
    engine.train()
    return sum_over_ranks(sums)


def _audio_count(samples: Sequence[Sample]) -> int:
    return sum(sample.audio_labels for sample in samples)
