"""Validation within a run: logged, with the best loss remembered; a stop leaves it pending for the resumed run."""

import math

import torch.distributed as dist
from deepspeed import DeepSpeedEngine

from engine.base.console import print_rank0
from engine.base.stop import StopRequest
from engine.base.watchdog import Watchdog
from engine.checkpoint import checkpoint
from engine.checkpoint.progress import Progress
from engine.job import Job
from engine.monitor.evaluation import evaluate
from engine.monitor.metrics import RunLog, describe_losses
from preprocess.common.errors import InputError
from preprocess.common.files import replace_link


def validate(
    engine: DeepSpeedEngine, job: Job, log: RunLog, progress: Progress, stop: StopRequest, watchdog: Watchdog
) -> bool:
    """Evaluate the validation split and log the result; return whether its audio loss is the run's lowest so far.

    Updates the best loss in `progress`. If a stop is requested meanwhile, nothing is logged, `progress` marks the
    evaluation as pending, and the result is False. Raises InputError if a loss is not finite.
    """
    workers, step = job.recipe.batch.loader_workers, progress.step
    metrics = evaluate(engine, job.reader, job.validation, job.swapped_validation, workers, stop, watchdog)
    progress.pending_evaluation = metrics is None
    if metrics is None:
        print_rank0(f"asked to stop: the resumed run will do the validation after step {step}")
        return False
    log.write(step, metrics, "validation")
    print_rank0(f"validation after step {step}: {describe_losses(metrics)}")
    if metrics.get("conditioning_gain", 1) <= 0 and step > job.recipe.optimizer.warmup_steps:
        print_rank0("warning: the conditioning gain is not positive: the model does not use the reference")
    loss = metrics["loss_audio"]
    if not math.isfinite(loss + metrics["loss_text"]):
        raise InputError(
            f"validation after step {step}",
            "a loss that is not finite",
            "finite numbers",
            "Lower optimizer.lr and start the same command again: it resumes from the last checkpoint.",
        )
    told = ("loss_audio", "loss_text", "conditioning_gain")
    progress.validation = {"step": step} | {name: value for name, value in metrics.items() if name in told}
    improved = step > 0 and (progress.best_loss is None or loss < progress.best_loss)
    if improved:
        progress.best_loss, progress.best_step = loss, step
    return improved


def validate_pending(
    engine: DeepSpeedEngine, job: Job, log: RunLog, progress: Progress, stop: StopRequest, watchdog: Watchdog
) -> None:
    """Do a pending evaluation before the first step, and record its result in the checkpoint of that step, if any."""
    improved = validate(engine, job, log, progress, stop, watchdog)
    if dist.get_rank() == 0 and progress.step > 0 and not progress.pending_evaluation:
        root = job.out / "checkpoints"
        folder = checkpoint.step_folder(root, progress.step)
        found = progress.record()
        del found["lineage"]  # the changes of this start count from the next checkpoint on, as its recipe does
        checkpoint.update_state(folder, found)
        if improved:
            replace_link(root / "best", folder.name)
            print_rank0(f"{folder} is the best so far")
