"""The training loop: batch, forward, losses, backward, step, log, evaluate, save. In the order things happen."""

import math
import time
from collections.abc import Iterator

import numpy as np
import torch
import torch.distributed as dist
from deepspeed import DeepSpeedEngine
from tqdm import tqdm

from engine.base import zero
from engine.base.console import print_rank0
from engine.base.launcher import Launcher
from engine.base.ranks import packs_of_rank
from engine.base.recipe import Optimizer, Recipe
from engine.base.stop import StopRequest
from engine.batch.loader import WaitClock, load_packs
from engine.batch.stream import Stream
from engine.checkpoint import checkpoint
from engine.checkpoint.progress import Progress
from engine.job import Job
from engine.model.forward import to_device
from engine.model.losses import LossSums, weighted_loss
from engine.monitor import balance
from engine.monitor.metrics import RunLog, step_line, step_metrics, sum_over_ranks
from engine.monitor.throughput import Window
from engine.plan.plan import Pack, Step, describe_start, locate
from engine.validation import validate, validate_pending
from preprocess.common.errors import InputError
from preprocess.common.files import replace_link


def train(engine: DeepSpeedEngine, job: Job, progress: Progress, launcher: Launcher) -> Progress:
    """Train from `progress.step` to the end of the recipe, or until asked to stop; collective over all ranks.

    A `launcher` that is gone asks too.
    """
    run = job.recipe.run
    log = RunLog(job.out, progress.step, run.monitors, progress.pending_evaluation)
    clock = WaitClock(
        load_packs(
            job.reader,
            _packs_of_this_rank(job, progress.step),
            job.recipe.batch.loader_workers,
            pin_memory=engine.device.type == "cuda",
        )
    )
    stop = StopRequest(launcher)
    bar = tqdm(
        total=job.total_steps,
        initial=progress.step,
        unit="step",
        disable=dist.get_rank() != 0,
        mininterval=5,
        leave=False,
    )
    ffns = balance.ffn_masters(zero.gather_masters(engine))
    if untrained := balance.describe_untrained(ffns):
        print_rank0(untrained)
    engine.train()
    window = Window()
    begun_with_weights = progress.step == 0 and bool(progress.lineage)  # another run's
    progress.pending_evaluation = bool(job.validation) and (progress.pending_evaluation or begun_with_weights)
    if progress.pending_evaluation:
        validate_pending(engine, job, log, progress, stop)
    while progress.step < job.total_steps and not progress.pending_evaluation:
        epoch, number = locate(job.plan, progress.step)
        step = job.plan.epoch(epoch).step(number)
        if number == 0 < epoch:  # the first was announced with the plan
            print_rank0(describe_start(epoch, job.plan.epoch(epoch)))
        lr = learning_rate(progress.step, job.total_steps, job.recipe.optimizer)
        started = time.perf_counter()
        sums, flops = train_step(engine, clock, step, progress.step, lr, job.recipe)
        window.add(step, flops, time.perf_counter() - started)
        progress.step += 1
        bar.update()

        if progress.step % run.log_every == 0 or progress.step in (1, job.total_steps):
            metrics = step_metrics(sum_over_ranks(sums), step, job.recipe.loss)
            metrics |= {"grad_norm": float(engine.get_global_grad_norm()), "lr": lr}
            metrics |= window.rates(clock, job.reader.frame_rate_hz, engine.device)
            log.write(progress.step, metrics, "train")
            bar.clear()
            print_rank0(step_line(progress.step, job.total_steps, metrics))
            window = Window()
            clock.waited_sec = 0.0

        improved = False
        if job.validation and (progress.step % run.evaluate_every == 0 or progress.step == job.total_steps):
            improved = validate(engine, job, log, progress, stop)

        stopping = stop.agreed()
        if improved or stopping or progress.step % run.save_every == 0 or progress.step == job.total_steps:
            masters = save(engine, job, progress, is_best=improved or not job.validation)
            _watch_balance(log, progress.step, ffns, masters)
            ffns = balance.ffn_masters(masters)
        if stopping:
            break
    bar.close()
    stop.close()
    return progress


def train_step(
    engine: DeepSpeedEngine, clock: WaitClock, step: Step, number: int, lr: float, recipe: Recipe
) -> tuple[LossSums, float]:
    """One global step: this rank's packs forward and backward, then the update.

    What comes back is of this rank's packs: their loss sums, and their FLOPs (0 with forward=boson, whose padded
    batch has no rule).

    DeepSpeed divides by its accumulation M / W and averages over W ranks, so each pack's loss, already divided by
    the counts of the whole step, is multiplied by M: what remains is the gradient of the step's loss.
    """
    num_packs = len(step.packs)
    zero.set_lr(engine, lr)
    weights = engine.module.codebook_weights
    sums, flops = LossSums.zeros(len(weights), engine.device), 0.0
    broken: list[tuple[int, torch.Tensor, list[str]]] = []
    for pack_number in packs_of_rank(num_packs, dist.get_rank(), dist.get_world_size()):
        loaded = clock.next()
        if isinstance(loaded.batch, Stream):
            flops += engine.module.flop_rates.of_pack(loaded.batch)
        _seed_pack(recipe.run.seed, number, pack_number)
        pack_sums = engine(to_device(loaded.batch, engine.device))
        loss = weighted_loss(pack_sums, step.text_count, step.audio_count, recipe.loss, weights, step.num_contrasted)
        engine.backward(num_packs * loss)
        engine.step()
        sums = sums.plus(pack_sums)
        broken.append((pack_number, loss.detach().isfinite(), loaded.keys))
    if not engine.was_step_applied():
        _stop_at_non_finite(number, broken)
    return sums, flops


def learning_rate(step: int, total_steps: int, optimizer: Optimizer) -> float:
    """Learning rate of global step `step` (from 0): linear warm-up, then cosine to `final_lr_share` of the peak."""
    if step < optimizer.warmup_steps:
        return optimizer.lr * (step + 1) / optimizer.warmup_steps
    progress = (step - optimizer.warmup_steps) / max(1, total_steps - optimizer.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return optimizer.lr * (optimizer.final_lr_share + (1 - optimizer.final_lr_share) * cosine)


def save(engine: DeepSpeedEngine, job: Job, progress: Progress, is_best: bool) -> dict[str, torch.Tensor]:
    """Gather the fp32 state on all ranks, write it on rank 0, wait for it everywhere. The masters come back."""
    masters, moments = zero.gather_masters(engine), zero.gather_moments(engine)
    if dist.get_rank() == 0:
        root = job.out / "checkpoints"
        state = {**job.facts, **progress.record()}
        folder = checkpoint.save(root, progress.step, engine.module.model, masters, moments, state)
        if is_best:
            replace_link(root / "best", folder.name)
        checkpoint.prune(root, job.recipe.run.keep_checkpoints, folder)
        print_rank0(f"saved {folder}{' (best so far)' if is_best else ''}")
    dist.barrier()
    return masters


def _watch_balance(log: RunLog, step: int, before: balance.Masters, now: balance.Masters) -> None:
    """Report how far each FFN of the DualFFN layers moved since the last save, where both train."""
    ratios = balance.ffn_update_ratios(before, now) if dist.get_rank() == 0 else {}
    if ratios:
        log.write(step, balance.balance_metrics(ratios), "balance")
        print_rank0(balance.describe_balance(ratios))


def _packs_of_this_rank(job: Job, start_step: int) -> Iterator[Pack]:
    mine = packs_of_rank(job.plan.packs_per_step, dist.get_rank(), dist.get_world_size())
    for number in range(start_step, job.total_steps):
        packs = job.plan.step(number).packs
        yield from (packs[pack] for pack in mine)


def _seed_pack(seed: int, step: int, pack: int) -> None:
    """Dropout depends on (seed, step, pack) alone, so neither resume nor world size changes it."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, pack]).generate_state(1, np.uint64)[0] >> 1))


def _stop_at_non_finite(number: int, packs: list[tuple[int, torch.Tensor, list[str]]]) -> None:
    """Raise on every rank, naming the packs whose loss is not finite; the update was skipped everywhere."""
    mine = [(pack, keys) for pack, finite, keys in packs if not bool(finite)]
    everyone: list = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    named = [f"pack {pack} (clips {', '.join(keys)})" for part in everyone for pack, keys in part]
    raise InputError(
        f"global step {number + 1}",
        f"a loss that is not finite in {'; '.join(named)}" if named else "finite losses but a gradient that is not",
        "finite numbers",
        "The update was not applied. Look at the clips with the corpus's failures.jsonl, lower optimizer.lr, "
        "and start the same command again: it resumes from the last checkpoint.",
    )
