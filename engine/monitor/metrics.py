"""Metrics of a run: computed from loss sums, printed, and recorded in metrics.jsonl and DeepSpeed's monitors.

metrics.jsonl has one line per logged step and kind. A resumed run may log some steps again: their earlier records are
removed from metrics.jsonl, TensorBoard and CSV files; in W&B, a resumed run is a new run. Only rank 0 writes.
"""

import errno
import itertools
import json
import os
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from deepspeed.monitor.config import get_monitor_config
from deepspeed.monitor.monitor import MonitorMaster

from engine.base.console import print_rank0
from engine.base.recipe import Loss
from engine.model.losses import LossSums, codebook_weights, weighted_loss
from engine.plan.plan import Step
from preprocess.common.errors import first_line, system_reason
from preprocess.common.files import write_atomically

METRICS_FILE = "metrics.jsonl"
_WARN_EVERY_SEC = 60.0


def sum_over_ranks(sums: LossSums) -> LossSums:
    """The sums over all ranks, in float64; a collective with one all-reduce."""
    flat = torch.cat([value.detach().double().reshape(-1) for value in sums])
    if dist.is_initialized():
        dist.all_reduce(flat)
    parts = torch.split(flat, [value.numel() for value in sums])
    return LossSums(*(part.view(value.shape) for part, value in zip(parts, sums, strict=True)))


def loss_metrics(sums: LossSums, num_starts: int, text_count: int, audio_count: int) -> dict[str, float]:
    """{metric: value}: losses in nats per labelled position, and accuracies, from sums over all ranks.

    num_starts: trained audios; text_count: labelled text positions; audio_count: labelled positions of each codebook.
    accuracy_start is that at <|audio_out_bos|>, accuracy_stop that at all other text labels: <|audio_eos|>,
    <|eot_id|>, and the words of trained turns in an as-written corpus.
    """
    audio = (sums.audio / audio_count).tolist()
    metrics = {"loss_text": float(sums.text) / text_count, "loss_audio": sum(audio) / len(audio)}
    metrics |= {f"loss_audio_{codebook}": value for codebook, value in enumerate(audio)}
    metrics["accuracy_start"] = float(sums.start_correct) / num_starts
    metrics["accuracy_stop"] = float(sums.text_correct - sums.start_correct) / max(1, text_count - num_starts)
    metrics["accuracy_audio"] = float(sums.audio_correct.sum()) / (audio_count * len(audio))
    return metrics


def step_metrics(sums: LossSums, step: Step, loss: Loss) -> dict[str, float]:
    """{metric: value} of a training step from sums over all ranks: `loss`, which it minimises, and `loss_metrics`."""
    weights = codebook_weights(loss, len(sums.audio)).to(sums.audio.device)
    total = weighted_loss(sums, step.text_count, step.audio_count, loss, weights, step.num_contrasted)
    metrics = {"loss": float(total)}
    if loss.consistency_weight > 0:
        metrics["loss_consistency"] = float(sums.consistency) / max(1, step.num_contrasted)
    return metrics | loss_metrics(sums, step.audio_count - step.audio_frames, step.text_count, step.audio_count)


def step_line(step: int, total_steps: int, metrics: dict[str, float]) -> str:
    """The line that the console shows of a training step, from its metrics and rates."""
    return (
        f"step {step}/{total_steps}: {describe_losses(metrics)}, gradient norm {metrics['grad_norm']:.3f}, "
        f"lr {metrics['lr']:.2e}, {metrics['tokens_per_sec']:,.0f} tokens/s, "
        f"waited {metrics['data_wait_share']:.1%} for data"
    )


def describe_losses(metrics: dict[str, float]) -> str:
    """Losses and accuracies as text, for training and validation alike."""
    return (
        f"audio loss {metrics['loss_audio']:.4f}, text loss {metrics['loss_text']:.4f}, accuracy: "
        f"audio {metrics['accuracy_audio']:.1%}, start {metrics['accuracy_start']:.1%}, "
        f"stop {metrics['accuracy_stop']:.1%}"
        + (f", conditioning gain {metrics['conditioning_gain']:+.4f}" if "conditioning_gain" in metrics else "")
    )


class RunLog:
    """The records of a run in folder `out`, which continues after global step `start_step`.

    Removes what a killed run recorded of later steps and, with `pending_evaluation`, the validation of `start_step`.
    """

    def __init__(self, out: Path, start_step: int, monitors: Sequence[str], pending_evaluation: bool = False) -> None:
        self.path = out / METRICS_FILE
        self._monitor = None
        self._unwritten, self._warned = b"", -_WARN_EVERY_SEC
        if dist.get_rank() != 0:
            return
        first_step = start_step + 1 if start_step else 0  # a new run may record step 0 too
        pending = (start_step, "validation") if pending_evaluation else None
        lines = self.path.read_text(errors="replace").split("\n") if self.path.is_file() else []
        kept = [line for line in lines if (found := _step_and_kind(line))[0] < first_step and found != pending]
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
        self._unwritten += json.dumps({"step": step, "kind": kind, **metrics}).encode() + b"\n"
        try:
            _append(self.path, self._unwritten)
            self._unwritten = b""
        except OSError as error:
            self._warn(self.path, f"{system_reason(error)}; its lines are kept until it can")
        try:
            if self._monitor is not None:
                self._monitor.write_events([(f"{kind}/{name}", value, step) for name, value in metrics.items()])
        except Exception as error:  # TensorBoard and W&B raise errors of every kind
            self._warn("a monitor of run.monitors", first_line(error))

    def _warn(self, what: object, why: str) -> None:
        """Say, once a minute, that a log can't be written: that is no reason to end a run."""
        if time.monotonic() - self._warned > _WARN_EVERY_SEC:
            self._warned = time.monotonic()
            print_rank0(f"warning: {what} can't be written ({why}); the training goes on")


def _append(path: Path, data: bytes) -> None:
    """Append all of the data to a file, on disk, or nothing. Raises OSError."""
    with open(path, "ab", buffering=0) as file:
        size = file.tell()
        try:
            written = file.write(data)
            os.fsync(file.fileno())
        except OSError:
            file.truncate(size)
            raise
        if written < len(data):  # the disk is full
            file.truncate(size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def steps_logged(out: Path) -> dict[str, list[int]]:
    """{kind: its steps} of what metrics.jsonl in the run folder `out` holds; {} without one."""
    path, found = out / METRICS_FILE, defaultdict(list)
    for line in path.read_text(errors="replace").split("\n") if path.is_file() else []:
        step, kind = _step_and_kind(line)
        if kind:
            found[kind].append(int(step))
    return found


def move_metrics_aside(out: Path) -> None:
    """Give the metrics of an earlier run in `out` a name of their own: metrics.1.jsonl, metrics.2.jsonl..."""
    path = out / METRICS_FILE
    if path.is_file():
        free = next(n for n in itertools.count(1) if not path.with_suffix(f".{n}.jsonl").exists())
        path.rename(path.with_suffix(f".{free}.jsonl"))


def _step_and_kind(line: str) -> tuple[float, str]:
    """Step and kind of a line; (infinity, "") if a crash cut the line short, or something else damaged it."""
    try:
        entry = json.loads(line)
        step, kind = entry["step"], entry["kind"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return float("inf"), ""
    return (step, kind) if type(step) is int and isinstance(kind, str) else (float("inf"), "")


def _drop_later_events(monitor: MonitorMaster, first_step: int) -> None:
    """Remove from TensorBoard and the CSV files what they have of `first_step` and later steps."""
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
                monitor.csv_monitor.filenames.append(path.stem)  # DeepSpeed then writes no second header
            else:
                path.unlink()


def _csv_step(row: str) -> float:
    """Step of a CSV row; infinity for a header, or if a crash cut the row before its comma."""
    step, comma, _ = row.partition(",")
    return int(step) if comma and step.isdecimal() else float("inf")
