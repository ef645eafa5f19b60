"""Where a run begins: at step 0, at its newest whole checkpoint, or from another run's weights.

Rank 0 decides, before any model is loaded, so that a refusal or a finished run is said at once; all ranks follow.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from deepspeed import DeepSpeedEngine

from engine.base import zero
from engine.base.console import print_rank0
from engine.base.zero import trainable_parameters
from engine.checkpoint import checkpoint
from engine.checkpoint.identity import other_changes, refuse_other_run, refuse_unknown_changes, shorten
from engine.checkpoint.init_adapter import check_adapter
from engine.checkpoint.progress import Progress
from engine.job import Job
from preprocess.common.errors import InputError, explain_write_errors
from preprocess.common.files import replace_link
from preprocess.common.locks import locked


@dataclass
class Start:
    """Where a run begins. checkpoint: to restore whole. adapter: to take the weights of. Neither: fresh weights."""

    progress: Progress = field(default_factory=Progress)
    checkpoint: Path | None = None
    adapter: Path | None = None


@contextlib.contextmanager
def hold_run_folder(out: Path) -> Iterator[None]:
    """Hold the run folder for this run: rank 0 does.

    Raises InputError, on every rank, where another run holds the folder, or it can't be locked or written.
    """
    with contextlib.ExitStack() as held:
        _on_rank0(lambda: held.enter_context(lock_run_folder(out)))
        yield


@contextlib.contextmanager
def lock_run_folder(out: Path) -> Iterator[None]:
    """Hold the run folder for this process alone: loader workers may outlive a killed rank by seconds.

    Raises InputError where another run holds it, it can't be locked, or, until the block ends, can't be written.
    """
    taken = InputError(
        str(out),
        "another run that is writing here",
        "one run a folder",
        "Stop it (python -m launch.stop), wait for it, or give another --out.",
    )
    no_locks = "Give an --out on another file system: a local disk will do."
    kept = "Free space or name another --out; the same command resumes from the newest checkpoint."
    with explain_write_errors(out, kept):
        out.mkdir(parents=True, exist_ok=True)
        with locked(out / ".lock", no_locks, taken=taken, of_process=True):
            yield


def _on_rank0(function: Callable[[], Any]) -> Any:
    """What `function` returns on rank 0, on every rank; an InputError of it is raised on every rank."""
    group = dist.new_group(backend="gloo")  # on CPU: no GPU is touched yet
    answer = [None]
    if dist.get_rank() == 0:
        try:
            answer = [function()]
        except InputError as error:
            answer = [error]
    dist.broadcast_object_list(answer, src=0, group=group)
    dist.destroy_process_group(group)
    if isinstance(answer[0], InputError):
        raise answer[0]
    return answer[0]


def find_start(
    job: Job, mode: str = "auto", allow_change: Sequence[str] = (), init_adapter: str | None = None
) -> Start:
    """Where this run begins, the same on every rank.

    mode: auto resumes where there is a checkpoint, fresh refuses one. allow_change: names of an identity's facts that
    may differ from the checkpoint's. init_adapter: run folder, checkpoint or PEFT adapter whose weights a run without
    checkpoint begins with. Raises InputError where what is found does not fit the job.
    """
    return _on_rank0(lambda: _find_start(job, mode, allow_change, init_adapter))


def _find_start(job: Job, mode: str, allow_change: Sequence[str], init_adapter: str | None) -> Start:
    root = job.out / "checkpoints"
    refuse_unknown_changes(allow_change, job.facts["identity"])
    if mode == "fresh" and checkpoint.list_checkpoints(root):
        raise InputError(
            str(root),
            f"{len(checkpoint.list_checkpoints(root))} checkpoints with --resume fresh",
            "none: a fresh run never writes over another",
            "Give another --out, or leave --resume out to go on from the newest one.",
        )
    newest = checkpoint.find_newest(root, print_rank0)
    if newest is None:
        print_rank0(f"no checkpoint in {root} yet: starting at step 0")
        if init_adapter is None:
            return Start()
        adapter, origin = check_adapter(init_adapter, job)
        return Start(Progress(lineage=[origin]), adapter=adapter)
    state = checkpoint.read_state(newest)
    lineage = state["lineage"]
    origin = lineage[0].get("init_adapter") if lineage else None
    if init_adapter is not None and origin != str(Path(init_adapter).absolute()):
        raise InputError(
            str(newest),
            f"a run that did not begin with --init-adapter {init_adapter}",
            "a run folder without checkpoints, or the flags that this run was begun with",
            "Give another --out for the new run, or leave --init-adapter out to resume this one.",
        )
    allowed = refuse_other_run(newest, state["identity"], job.facts["identity"], allow_change)
    if allowed and state["step"] >= job.total_steps:  # fewer steps than before, and each of them larger
        raise InputError(
            str(newest),
            f"step {state['step']} done, of {job.total_steps} in all with "
            f"{', '.join(what for what, _, _ in allowed)} as this command says",
            "steps left to train",
            "Raise run.epochs or run.max_steps beyond what is done, or leave the change and --allow-change out.",
        )
    print(f"resuming from {newest}, the newest checkpoint whose files have their hashes")
    changes = [*allowed, *other_changes(state, job.facts)]
    for name, was, now in changes:
        print_rank0(f"changed at step {state['step']}: {name} was {shorten(was)} and is {shorten(now)} from here on")
    if allowed:
        print_rank0("the samples come in another order from here on; some of this epoch come twice, some not at all")
    if state["total_steps"] != job.total_steps:
        print_rank0(
            f"the run has {job.total_steps} steps and had {state['total_steps']}: "
            "the learning rate follows the cosine of the new length from here on",
        )
    lineage += [{"step": state["step"], "changed": name, "was": was, "now": now} for name, was, now in changes]
    return Start(_progress(root, newest, {**state, "lineage": lineage}), checkpoint=newest)


def _progress(root: Path, newest: Path, state: dict) -> Progress:
    """Where the run stands; `latest` and `best` are made to say so, which a kill may have come between."""
    replace_link(root / "latest", newest.name)
    progress = Progress(state["step"], state["lineage"], pending_evaluation=state["pending_evaluation"])
    for folder in reversed(checkpoint.list_checkpoints(root)):  # an older one knows the best before
        if folder > newest or (folder != newest and checkpoint.find_problem(folder) is not None):
            continue
        earlier = checkpoint.read_state(folder)
        if earlier["best_step"] is None:
            break
        best = checkpoint.step_folder(root, earlier["best_step"])
        problem = None if best == newest else checkpoint.find_problem(best)
        if problem is None:
            replace_link(root / "best", best.name)
            return replace(progress, best_loss=earlier["best_loss"], best_step=earlier["best_step"])
        print_rank0(f"{best}, the best as of {folder.name}, is passed over: {problem}")
    return progress


def restore(engine: DeepSpeedEngine, start: Start) -> None:
    """Give the engine the state that `start` names; each rank reads it."""
    source = start.checkpoint or start.adapter
    if source is None:
        return
    model, names = engine.module.model, [name for name, _ in trainable_parameters(engine.module)]
    masters = checkpoint.load_masters(source, model, names)
    if start.checkpoint:
        moments = checkpoint.load_moments(source, model, names)
    else:
        zeros = {name: torch.zeros_like(master) for name, master in masters.items()}
        moments = dict.fromkeys(zero.MOMENTS, zeros)
    zero.restore(engine, masters, moments, start.progress.step)
