"""The training loop: batch, forward, losses, backward, step, log, evaluate, save. In the order things happen."""

import math
import time
from collections.abc import Iterator

import numpy as np
import torch
import torch.distributed as dist
from deepspeed import DeepSpeedEngine
from tqdm import tqdm

from engine import balance, checkpoint, zero
from engine.evaluation import evaluate
from engine.flops import peak_flops
from engine.forward import to_device
from engine.launcher import Launcher
from engine.loader import WaitClock, load_packs
from engine.losses import LossSums, weigh
from engine.metrics import RunLog, print_rank0, step_metrics, sum_over_ranks
from engine.plan import Pack, Step, describe_start, locate, packs_of_rank
from engine.recipe import Optimizer, Recipe
from engine.setup import Job, Progress
from engine.stop import StopRequest
from engine.stream import Stream
from preprocess.errors import InputError


def train(engine: DeepSpeedEngine, job: Job, progress: Progress, launcher: Launcher) -> Progress:
    """Train from `progress.step` to the end of the recipe, or until asked to stop; collective over all ranks.

    A `launcher` that is gone asks too.
    """
    run = job.recipe.run
    log = RunLog(job.out, progress.step, run.monitors, progress.owes_evaluation)
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
    engine.train()
    window = _Window()
    begun_with_weights = progress.step == 0 and bool(job.facts["lineage"])  # another run's
    progress.owes_evaluation = bool(job.validation) and (progress.owes_evaluation or begun_with_weights)
    if progress.owes_evaluation:
        _validate_owed(engine, job, log, progress, stop)
    while progress.step < job.total_steps and not progress.owes_evaluation:
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
            print_rank0(_line(progress.step, job.total_steps, metrics))
            window = _Window()
            clock.waited_sec = 0.0

        improved = False
        if job.validation and (progress.step % run.evaluate_every == 0 or progress.step == job.total_steps):
            improved = _validate(engine, job, log, progress, stop)

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
        loss = weigh(pack_sums, step.text_count, step.audio_count, recipe.loss, weights, step.num_contrasted)
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
            checkpoint.point(root, "best", folder)
        checkpoint.prune(root, job.recipe.run.keep_checkpoints, folder)
        print_rank0(f"saved {folder}{' (best so far)' if is_best else ''}")
    dist.barrier()
    return masters


def _watch_balance(log: RunLog, step: int, before: balance.Masters, now: balance.Masters) -> None:
    """Report how far each FFN of the DualFFN layers moved since the last save, where both train."""
    ratios = balance.text_over_audio(before, now) if dist.get_rank() == 0 else {}
    if ratios:
        log.write(step, balance.metrics(ratios), "balance")
        print_rank0(balance.describe(ratios))


def _validate(engine: DeepSpeedEngine, job: Job, log: RunLog, progress: Progress, stop: StopRequest) -> bool:
    """Log the losses on the validation split; True where the audio loss is the run's lowest, which `progress` takes.

    A stop in the middle leaves nothing but the debt in `progress`.
    """
    workers, step = job.recipe.batch.loader_workers, progress.step
    metrics = evaluate(engine, job.reader, job.validation, job.swapped_validation, workers, stop)
    progress.owes_evaluation = metrics is None
    if metrics is None:
        print_rank0(f"asked to stop: validation after step {step} is left for when the run goes on")
        return False
    log.write(step, metrics, "validation")
    print_rank0(f"validation after step {step}: {_short(metrics)}")
    if metrics.get("conditioning_gain", 1) <= 0 and step > job.recipe.optimizer.warmup_steps:
        print_rank0("warning: the conditioning gain is not positive: the model does not use the reference")
    if not math.isfinite(metrics["loss_audio"] + metrics["loss_text"]):
        _stop_at_non_finite_validation(step)
    loss = metrics["loss_audio"]
    improved = step > 0 and (progress.best_loss is None or loss < progress.best_loss)
    if improved:
        progress.best_loss, progress.best_step = loss, step
    return improved


def _validate_owed(engine: DeepSpeedEngine, job: Job, log: RunLog, progress: Progress, stop: StopRequest) -> None:
    """Evaluate before the first step; the checkpoint that the run goes on from, if any, learns what came of it."""
    improved = _validate(engine, job, log, progress, stop)
    if dist.get_rank() == 0 and progress.step > 0 and not progress.owes_evaluation:
        root = job.out / "checkpoints"
        folder = checkpoint.folder_of(root, progress.step)
        checkpoint.amend(folder, progress.record())
        if improved:
            checkpoint.point(root, "best", folder)
            print_rank0(f"{folder} is the best so far")


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


def _stop_at_non_finite_validation(step: int) -> None:
    raise InputError(
        f"validation after step {step}",
        "a loss that is not finite",
        "finite numbers",
        "Lower optimizer.lr and start the same command again: it resumes from the last checkpoint.",
    )


class _Window:
    """Throughput of the training steps since the last log line, evaluation and saving left out."""

    def __init__(self) -> None:
        self.elapsed_sec = self.flops = 0.0
        self.tokens = self.frames = self.steps = 0

    def add(self, step: Step, flops: float, elapsed_sec: float) -> None:
        self.elapsed_sec += elapsed_sec
        self.flops += flops
        self.tokens += step.num_tokens
        self.frames += step.audio_frames
        self.steps += 1

    def rates(self, clock: WaitClock, frame_rate_hz: float, device: torch.device) -> dict[str, float]:
        """Tokens and audio of all ranks; TFLOP/s, MFU and memory of rank 0's device."""
        memory_bytes = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
        rates = {
            "step_sec": self.elapsed_sec / self.steps,
            "tokens_per_sec": self.tokens / self.elapsed_sec,
            "audio_sec_per_sec": self.frames / frame_rate_hz / self.elapsed_sec,
            "data_wait_share": clock.waited_sec / self.elapsed_sec,
            "memory_peak_gb": memory_bytes / 1e9,
        }
        if self.flops:
            rates["tflops_per_sec"] = self.flops / self.elapsed_sec / 1e12
            peak = peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
            if peak:
                rates["mfu"] = self.flops / self.elapsed_sec / peak
        return rates


def _line(step: int, total_steps: int, metrics: dict[str, float]) -> str:
    return (
        f"step {step}/{total_steps}: {_short(metrics)}, gradient norm {metrics['grad_norm']:.3f}, "
        f"lr {metrics['lr']:.2e}, {metrics['tokens_per_sec']:,.0f} tokens/s, "
        f"waited {metrics['data_wait_share']:.1%} for data"
    )


def _short(metrics: dict[str, float]) -> str:
    return (
        f"audio loss {metrics['loss_audio']:.4f}, text loss {metrics['loss_text']:.4f}, right: "
        f"audio {metrics['accuracy_audio']:.1%}, start {metrics['accuracy_start']:.1%}, "
        f"stop {metrics['accuracy_stop']:.1%}"
        + (f", conditioning gain {metrics['conditioning_gain']:+.4f}" if "conditioning_gain" in metrics else "")
    )
