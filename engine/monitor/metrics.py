"""What a run tells: metrics.jsonl (one line a logged step, none twice, none missing after a resume), the console,
and TensorBoard, CSV or W&B through DeepSpeed's monitor; the first two forget after a resume what comes again, W&B
begins a run of its own. Rank 0 alone writes."""

import json
import os
from pathlib import Path

import torch
import torch.distributed as dist
from deepspeed.monitor.config import get_monitor_config
from deepspeed.monitor.monitor import MonitorMaster

from engine.base.recipe import Loss
from engine.model.losses import LossSums, codebook_weights, weighted_loss
from engine.plan.plan import Step
from preprocess.common.files import write_atomically

METRICS_FILE = "metrics.jsonl"


def sum_over_ranks(sums: LossSums) -> LossSums:
    """The sums of all ranks, in float64; a collective of one call."""
    sizes = [value.numel() for value in sums]
    flat = torch.cat([value.detach().double().reshape(-1) for value in sums])
    if dist.is_initialized():
        dist.all_reduce(flat)
    parts = flat.split(sizes)
    return LossSums(*(part.view(value.shape) for part, value in zip(parts, sums, strict=True)))


def loss_metrics(sums: LossSums, num_starts: int, text_count: int, audio_count: int) -> dict[str, float]:
    """Losses in nats a labelled position and accuracies, from sums over all ranks.

    num_starts: trained audios; text_count: labelled text positions; audio_count: labelled positions of each codebook.
    `start` is the accuracy at <|audio_out_bos|>, `stop` that at the other text labels: <|audio_eos|> and <|eot_id|>,
    and the words of trained turns where conversations are kept as written.
    """
    audio = (sums.audio / audio_count).tolist()
    metrics = {"loss_text": float(sums.text) / text_count, "loss_audio": sum(audio) / len(audio)}
    metrics |= {f"loss_audio_{codebook}": value for codebook, value in enumerate(audio)}
    metrics["accuracy_start"] = float(sums.start_correct) / num_starts
    metrics["accuracy_stop"] = float(sums.text_correct - sums.start_correct) / max(1, text_count - num_starts)
    metrics["accuracy_audio"] = float(sums.audio_correct.sum()) / (audio_count * len(audio))
    return metrics


def step_metrics(sums: LossSums, step: Step, loss: Loss) -> dict[str, float]:
    """`loss_metrics` of a training step and `loss`, what its gradient is of; from sums over all ranks."""
    weights = codebook_weights(loss, len(sums.audio)).to(sums.audio.device)
    total = weighted_loss(sums, step.text_count, step.audio_count, loss, weights, step.num_contrasted)
    metrics = {"loss": float(total)}
    if loss.consistency_weight > 0:
        metrics["loss_consistency"] = float(sums.consistency) / max(1, step.num_contrasted)
    return metrics | loss_metrics(sums, step.audio_count - step.audio_frames, step.text_count, step.audio_count)


def step_line(step: int, total_steps: int, metrics: dict[str, float]) -> str:
    """The console's line of a training step, from its metrics and rates."""
    return (
        f"step {step}/{total_steps}: {describe_losses(metrics)}, gradient norm {metrics['grad_norm']:.3f}, "
        f"lr {metrics['lr']:.2e}, {metrics['tokens_per_sec']:,.0f} tokens/s, "
        f"waited {metrics['data_wait_share']:.1%} for data"
    )


def describe_losses(metrics: dict[str, float]) -> str:
    """Losses and accuracies, as training and validation print them."""
    return (
        f"audio loss {metrics['loss_audio']:.4f}, text loss {metrics['loss_text']:.4f}, right: "
        f"audio {metrics['accuracy_audio']:.1%}, start {metrics['accuracy_start']:.1%}, "
        f"stop {metrics['accuracy_stop']:.1%}"
        + (f", conditioning gain {metrics['conditioning_gain']:+.4f}" if "conditioning_gain" in metrics else "")
    )


class RunLog:
    """The record of a run in its folder, continued after global step `start_step`: what a killed run wrote of later
    ones goes, and the validation of that step where it `pending_evaluation`."""

    def __init__(self, out: Path, start_step: int, monitors: list[str], pending_evaluation: bool = False) -> None:
        self.path = out / METRICS_FILE
        self._monitor = None
        if dist.get_rank() != 0:
            return
        first_step = start_step + 1 if start_step else 0  # a run that starts anew writes of step 0 too
        pending = (start_step, "validation") if pending_evaluation else None
        lines = self.path.read_text().splitlines() if self.path.is_file() else []
        kept = [line for line in lines if (of := _step_and_kind(line))[0] < first_step and of != pending]
        write_atomically(self.path, "".join(line + "\n" for line in kept).encode())
        if monitors:
            files = {"output_path": str(out), "job_name": "logs"}
            settings = {name: {"enabled": True, **({} if name == "wandb" else files)} for name in monitors}
            self._monitor = MonitorMaster(get_monitor_config(settings))
            _drop_later_events(self._monitor, first_step)

    def write(self, step: int, metrics: dict[str, float], kind: str) -> None:
        """Append the metrics of global step `step`; `kind` is train, validation or balance."""
        if dist.get_rank() != 0:
            return
        with open(self.path, "a") as file:
            file.write(json.dumps({"step": step, "kind": kind, **metrics}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if self._monitor is not None:
            self._monitor.write_events([(f"{kind}/{name}", value, step) for name, value in metrics.items()])


def _step_and_kind(line: str) -> tuple[float, str]:
    """The step and kind of a line; a line cut by a crash has none and sorts behind all."""
    try:
        entry = json.loads(line)
        return entry["step"], entry["kind"]
    except (json.JSONDecodeError, KeyError):
        return float("inf"), ""


def _drop_later_events(monitor: MonitorMaster, first_step: int) -> None:
    """Take from TensorBoard and the CSV files what they hold of `first_step` and later."""
    if monitor.tb_monitor is not None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        log_dir = monitor.tb_monitor.summary_writer.log_dir
        monitor.tb_monitor.summary_writer.close()
        monitor.tb_monitor.summary_writer = SummaryWriter(log_dir, purge_step=first_step)
    if monitor.csv_monitor is not None:
        for path in Path(monitor.csv_monitor.log_dir).glob("*.csv"):
            header, *rows = path.read_text().splitlines() or [""]
            kept = [row for row in rows if _csv_step(row) < first_step]
            if kept:
                write_atomically(path, "".join(line + "\n" for line in [header, *kept]).encode())
                monitor.csv_monitor.filenames.append(path.stem)  # those that have a header
            else:
                path.unlink()


def _csv_step(row: str) -> float:
    """The step of a row; one that a crash cut before its comma, or a header, sorts behind all."""
    step, comma, _ = row.partition(",")
    return int(step) if comma and step.isdigit() else float("inf")
