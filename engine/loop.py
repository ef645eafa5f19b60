"""The training loop, in the order things happen: batch, forward, losses, backward, step, log, evaluate, save."""

import math
import sys
import time
from collections.abc import Iterator
from typing import NoReturn

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
from engine.base.watchdog import Watchdog
from engine.batch.loader import WaitClock, check_shared_memory, load_packs
from engine.batch.stream import Stream
from engine.checkpoint import checkpoint
from engine.checkpoint.progress import Progress
from engine.job import Job
from engine.model.forward import to_device
from engine.model.losses import LossSums, weighted_loss
from engine.monitor import balance
from engine.monitor.environment import device_name
from engine.monitor.metrics import RunLog, step_line, step_metrics, sum_over_ranks
from engine.monitor.throughput import Window
from engine.plan.plan import Pack, Step, describe_epoch_start, locate_step
from engine.speak.model_card import model_card
from engine.validation import validate, validate_pending
from preprocess.common.errors import InputError, join_some
from preprocess.common.files import replace_link


def train(engine: DeepSpeedEngine, job: Job, progress: Progress, launcher: Launcher, watchdog: Watchdog) -> Progress:
    """Progress after training from `progress.step` to the end of the recipe, or until a stop was requested.

    All ranks call this. `launcher`: if it is gone, that is a request to stop too.
    """
    run = job.recipe.run
    log = RunLog(job.out, progress.step, run.monitors, progress.pending_evaluation)
    packs, num_workers = _packs_of_this_rank(job, progress.step), job.recipe.batch.loader_workers
    clock = WaitClock(load_packs(job.reader, packs, num_workers, pin_memory=engine.device.type == "cuda"))
    stop = StopRequest(launcher)
    if progress.step < job.total_steps:
        check_shared_memory(job.reader, job.plan.step(progress.step).packs[0], num_workers)
    bar = tqdm(
        total=job.total_steps,
        initial=progress.step,
        unit="step",
        disable=dist.get_rank() != 0 or not sys.stderr.isatty(),  # in a log file the lines of log_every are enough
        mininterval=5,
        leave=False,
    )
    ffns = balance.ffn_masters(zero.gather_masters(engine))
    if no_balance := balance.describe_untrained(ffns):
        print_rank0(no_balance)
    engine.train()
    window = Window()
    begins_with_adapter = progress.step == 0 and bool(progress.lineage)
    progress.pending_evaluation = bool(job.validation) and (progress.pending_evaluation or begins_with_adapter)
    if progress.pending_evaluation:
        validate_pending(engine, job, log, progress, stop, watchdog)
    while progress.step < job.total_steps and not progress.pending_evaluation:
        epoch, number = locate_step(job.plan, progress.step)
        step = job.plan.epoch(epoch).step(number)
        if number == 0 < epoch:  # announce_run has described the first epoch
            print_rank0(describe_epoch_start(epoch, job.plan.epoch(epoch)))
        lr = learning_rate(progress.step, job.total_steps, job.recipe.optimizer)
        started = time.perf_counter()
        sums, flops = train_step(engine, clock, step, progress.step, lr, job.recipe, watchdog)
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
            improved = validate(engine, job, log, progress, stop, watchdog)

        watchdog.at(f"the end of step {progress.step}")
        stopping = stop.agreed()
        if improved or stopping or progress.step % run.save_every == 0 or progress.step == job.total_steps:
            with watchdog.alone(f"the save after step {progress.step}", works=dist.get_rank() == 0):
                masters = save_checkpoint(engine, job, progress, is_best=improved or not job.validation)
            _log_balance(log, progress.step, ffns, masters)
            ffns = balance.ffn_masters(masters)
        if stopping:
            break
    bar.close()
    stop.close()
    return progress


def train_step(
    engine: DeepSpeedEngine,
    clock: WaitClock,
    step: Step,
    number: int,
    lr: float,
    recipe: Recipe,
    watchdog: Watchdog,
) -> tuple[LossSums, float]:
    """(loss sums, FLOPs) of this rank's packs in global step `number`: forward, backward, then the update.

    FLOPs are 0 with forward=boson, whose padded batch has no count. Raises InputError if the loss or the gradient is
    not finite.

    Each pack's loss is already divided by the counts of the whole step of M packs. DeepSpeed divides by its
    accumulation M / W and averages over W ranks; multiplying by M leaves the gradient of the step's loss.
    """
    num_packs = len(step.packs)
    zero.set_lr(engine, lr)
    weights = engine.module.codebook_weights
    sums, flops, own_sec = LossSums.zeros(len(weights), engine.device), 0.0, 0.0
    pack_checks: list[tuple[int, torch.Tensor, list[str]]] = []  # (pack, is its loss finite, keys of its clips)
    for pack_number in packs_of_rank(num_packs, dist.get_rank(), dist.get_world_size()):
        began = time.perf_counter()
        with watchdog.alone(f"the wait for the data of step {number + 1}, pack {pack_number}"):
            loaded = clock.next()
        watchdog.at(f"step {number + 1}, pack {pack_number} (clips {join_some(loaded.keys)})")
        if isinstance(loaded.batch, Stream):
            flops += engine.module.flop_rates.of_pack(loaded.batch)
        _seed_pack(recipe.run.seed, number, pack_number)
        pack_sums = engine(to_device(loaded.batch, engine.device))
        own_sec += time.perf_counter() - began
        loss = weighted_loss(pack_sums, step.text_count, step.audio_count, recipe.loss, weights, step.num_contrasted)
        engine.backward(num_packs * loss)
        engine.step()
        sums = sums.plus(pack_sums)
        pack_checks.append((pack_number, loss.detach().isfinite(), loaded.keys))
    watchdog.at(f"the update of step {number + 1}", own_sec)
    if not engine.was_step_applied():
        _raise_not_finite(number, num_packs, pack_checks)
    return sums, flops


def learning_rate(step: int, total_steps: int, optimizer: Optimizer) -> float:
    """Learning rate of global step `step` (from 0): linear warm-up to `lr`, then cosine to `final_lr_share` of it."""
    if step < optimizer.warmup_steps:
        return optimizer.lr * (step + 1) / optimizer.warmup_steps
    progress = (step - optimizer.warmup_steps) / max(1, total_steps - optimizer.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return optimizer.lr * (optimizer.final_lr_share + (1 - optimizer.final_lr_share) * cosine)


def save_checkpoint(engine: DeepSpeedEngine, job: Job, progress: Progress, is_best: bool) -> dict[str, torch.Tensor]:
    """{parameter name: fp32 master weight}, as saved: all ranks gather the state, rank 0 writes it, the rest wait."""
    masters, moments = zero.gather_masters(engine), zero.gather_moments(engine)
    if dist.get_rank() == 0:
        root = job.out / "checkpoints"
        hardware = f"{dist.get_world_size()} x {device_name(engine.device)}"
        state = {**job.facts, **progress.record(), "hardware": hardware}
        training = {**state, "step": progress.step}
        card = model_card("adapter", training, state["recipe"], state["layout"]["system_text"])
        folder = checkpoint.write_checkpoint(root, progress.step, engine.module.model, masters, moments, state, card)
        if is_best:
            replace_link(root / "best", folder.name)
        checkpoint.prune_checkpoints(root, job.recipe.run.keep_checkpoints, folder)
        print_rank0(f"saved {folder}{' (best so far)' if is_best else ''}")
    dist.barrier()
    return masters


def _log_balance(log: RunLog, step: int, before: balance.Masters, now: balance.Masters) -> None:
    """Log the DualFFN balance since the last save, if LoRA trains both FFNs of any layer."""
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
    """Seed dropout by (seed, step, pack) only, so that neither a resume nor the world size changes it."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, pack]).generate_state(1, np.uint64)[0] >> 1))


def _raise_not_finite(
    number: int, num_packs: int, pack_checks: list[tuple[int, torch.Tensor, list[str]]]
) -> NoReturn:
    """Raise InputError on every rank, naming the packs of all ranks whose loss is not finite. No rank has updated."""
    mine = [f"pack {pack} (clips {', '.join(keys)})" for pack, is_finite, keys in pack_checks if not bool(is_finite)]
    of_ranks: list[list[str]] = [[]] * dist.get_world_size()
    dist.all_gather_object(of_ranks, mine)
    named = [pack for packs in of_ranks for pack in packs]
    found, suspects = "finite losses but a gradient that is not", "Lower optimizer.lr"
    if 1 < len(named) == num_packs:  # no clip is in all packs
        found = f"a loss that is not finite in all {num_packs} packs"
        suspects = "Not the clips but what all packs share: check the base model and its weights, lower optimizer.lr"
    elif named:
        found, suspects = f"a loss that is not finite in {'; '.join(named)}", "Check these clips, lower optimizer.lr"
    raise InputError(
        f"global step {number + 1}",
        found,
        "finite numbers",
        f"The update was not applied. {suspects}, and start the same command again: it resumes from the last "
        "checkpoint.",
    )
