"""Teacher-forced losses and accuracies on the validation split, and whether the model listens to the reference."""

import dataclasses
import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

import torch
import torch.distributed as dist
from deepspeed import DeepSpeedEngine

from engine.forward import to_device
from engine.loader import PackReader, load_packs
from engine.losses import LossSums
from engine.metrics import loss_metrics, sum_over_ranks
from engine.plan import Pack, Sample
from engine.stop import StopRequest


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
    samples = _samples(packs)
    num_trained, text_count = (sum(getattr(s, name) for s in samples) for name in ("num_trained", "text_labels"))
    metrics = loss_metrics(sums, num_trained, text_count, _audio_count(samples))
    if swapped:
        others = _sum_losses(engine, reader, swapped, num_workers, stop)
        if others is None:
            return None
        difference = others.audio - sums.audio  # samples that keep their reference cancel out
        changed = [new for old, new in zip(samples, _samples(swapped), strict=True) if new != old]
        metrics["conditioning_gain"] = float(difference.mean()) / _audio_count(changed)
    return metrics


def swap_references(packs: Sequence[Pack]) -> list[Pack]:
    """The packs with every drawn reference replaced by another speaker's, always the same one.

    [] where fewer than two speakers have a drawn reference. `num_tokens` stays that of the samples' own references.
    """
    drawn = [sample for sample in _samples(packs) if sample.dialogue < 0 and sample.references]
    drawn.sort(key=lambda sample: (sample.speaker, sample.target))
    speakers = [sample.speaker for sample in drawn]
    if len(set(speakers)) < 2:
        return []
    others = {}
    for speaker in set(speakers):
        begin, end = bisect_left(speakers, speaker), bisect_right(speakers, speaker)
        rest = drawn[end:] + drawn[:begin]  # from the next speaker on, so that all of them serve
        for place, sample in enumerate(drawn[begin:end]):
            others[sample] = dataclasses.replace(sample, references=rest[place % len(rest)].references)
    return [Pack(tuple(others.get(sample, sample) for sample in pack.samples)) for pack in packs]


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


def _samples(packs: Sequence[Pack]) -> list[Sample]:
    return [sample for pack in packs for sample in pack.samples]


def _audio_count(samples: Sequence[Sample]) -> int:
    return sum(sample.audio_labels for sample in samples)
