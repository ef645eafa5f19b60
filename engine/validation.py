"""Validation as a run meets it: logged, the best loss kept, and owed where a stop came before its end."""

import math

import torch.distributed as dist
from deepspeed import DeepSpeedEngine

from engine.base.console import print_rank0
from engine.base.stop import StopRequest
from engine.checkpoint import checkpoint
from engine.checkpoint.progress import Progress
from engine.job import Job
from engine.monitor.evaluation import evaluate
from engine.monitor.metrics import RunLog, describe_losses
from preprocess.common.errors import InputError
from preprocess.common.files import replace_link


def validate(engine: DeepSpeedEngine, job: Job, log: RunLog, progress: Progress, stop: StopRequest) -> bool:
    """Log the losses on the validation split; True where the audio loss is the run's lowest, which `progress` takes.

    A stop in the middle leaves nothing but the debt in `progress`.
    """
    workers, step = job.recipe.batch.loader_workers, progress.step
    metrics = evaluate(engine, job.reader, job.validation, job.swapped_validation, workers, stop)
    progress.pending_evaluation = metrics is None
    if metrics is None:
        print_rank0(f"asked to stop: validation after step {step} is left for when the run goes on")
        return False
    log.write(step, metrics, "validation")
    print_rank0(f"validation after step {step}: {describe_losses(metrics)}")
    if metrics.get("conditioning_gain", 1) <= 0 and step > job.recipe.optimizer.warmup_steps:
        print_rank0("warning: the conditioning gain is not positive: the model does not use the reference")
    if not math.isfinite(metrics["loss_audio"] + metrics["loss_text"]):
        _stop_at_non_finite(step)
    loss = metrics["loss_audio"]
    improved = step > 0 and (progress.best_loss is None or loss < progress.best_loss)
    if improved:
        progress.best_loss, progress.best_step = loss, step
    return improved


def validate_pending(engine: DeepSpeedEngine, job: Job, log: RunLog, progress: Progress, stop: StopRequest) -> None:
    """Evaluate before the first step; the checkpoint that the run goes on from, if any, learns what came of it."""
    improved = validate(engine, job, log, progress, stop)
    if dist.get_rank() == 0 and progress.step > 0 and not progress.pending_evaluation:
        root = job.out / "checkpoints"
        folder = checkpoint.step_folder(root, progress.step)
        checkpoint.update_state(folder, progress.record())
        if improved:
            replace_link(root / "best", folder.name)
            print_rank0(f"{folder} is the best so far")


def _stop_at_non_finite(step: int) -> None:
    raise InputError(
        f"validation after step {step}",
        "a loss that is not finite",
        "finite numbers",
        "Lower optimizer.lr and start the same command again: it resumes from the last checkpoint.",
    )
