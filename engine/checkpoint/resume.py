"""Where a run begins: at step 0, at its newest undamaged checkpoint, or from another run's weights.

Rank 0 decides, before any model is loaded, so that a refusal or a finished run is reported at once; all ranks follow.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from deepspeed import DeepSpeedEngine

from engine.base import zero
from engine.base.console import print_rank0
from engine.base.zero import trainable_parameters
from engine.checkpoint import checkpoint
from engine.checkpoint.identity import find_free_changes, refuse_other_run, refuse_unknown_changes, shorten_value
from engine.checkpoint.init_adapter import check_adapter, place_of
from engine.checkpoint.progress import Progress
from engine.job import Job
from preprocess.common.errors import InputError, explain_write_errors
from preprocess.common.files import replace_link
from preprocess.common.json_file import JsonObject
from preprocess.common.locks import locked

T = TypeVar("T")


@dataclass
class Start:
    """Where a run begins: from all of `checkpoint`, from the weights of `adapter`, or fresh if both are None."""

    progress: Progress = field(default_factory=Progress)
    checkpoint: Path | None = None
    adapter: Path | None = None


@contextlib.contextmanager
def hold_run_folder(out: Path) -> Iterator[None]:
    """Keep other runs out of the run folder while the block runs; rank 0 holds the lock.

    Raises InputError, on every rank, if another run holds the folder, or it can't be locked or written.
    """
    with contextlib.ExitStack() as held:
        _on_rank0(lambda: held.enter_context(lock_run_folder(out)))
        yield


@contextlib.contextmanager
def lock_run_folder(out: Path) -> Iterator[None]:
    """Lock the run folder while the block runs, for this process but not its loader workers, which may outlive it.

    Raises InputError if another run holds the folder, or it can't be locked or, until the block ends, be written.
    """
    taken = InputError(
        str(out),
        "another run that is writing here",
        "one run per folder",
        "Stop it (python -m launch.stop), wait for it, or give another --out.",
    )
    no_locks = "Give an --out on another file system, such as a local disk."
    no_space = "Free space or name another --out; the same command resumes from the newest checkpoint."
    with explain_write_errors(out, no_space):
        out.mkdir(parents=True, exist_ok=True)
        with locked(out / ".lock", no_locks, taken=taken, of_process=True):
            yield


def _on_rank0(function: Callable[[], T]) -> T:
    """What `function` returns on rank 0, on every rank. If it raises an InputError, every rank raises that."""
    group = dist.new_group(backend="gloo")  # on CPU: no GPU is in use yet
    results: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            results = [function()]
        except InputError as error:
            results = [error]
    dist.broadcast_object_list(results, src=0, group=group)
    dist.destroy_process_group(group)
    if isinstance(results[0], InputError):
        raise results[0]
    result: T = results[0]
    return result


def find_start(
    job: Job, mode: str = "auto", allow_change: Sequence[str] = (), init_adapter: str | None = None
) -> Start:
    """Where this run begins, the same on every rank.

    mode: "auto" resumes if there is a checkpoint, "fresh" refuses to. allow_change: facts of the identity that may
    differ from the checkpoint's. init_adapter: run folder, checkpoint or PEFT adapter with the weights from which a
    run without a checkpoint begins. Raises InputError if a checkpoint or adapter does not fit the job.
    """
    return _on_rank0(lambda: _find_start(job, mode, allow_change, init_adapter))


def _find_start(job: Job, mode: str, allow_change: Sequence[str], init_adapter: str | None) -> Start:
    root = job.out / "checkpoints"
    refuse_unknown_changes(allow_change, job.facts["identity"])
    if mode == "fresh" and (existing := checkpoint.list_checkpoints(root)):
        raise InputError(
            str(root),
            f"{len(existing)} checkpoints with --resume fresh",
            "none: a fresh run never overwrites another",
            "Give another --out, or leave --resume out to continue from the newest one.",
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
    begun_with = lineage[0].get("init_adapter") if lineage else None
    if init_adapter is not None and begun_with != place_of(init_adapter, job):
        raise InputError(
            str(newest),
            f"a run that did not begin with --init-adapter {init_adapter}",
            "a run folder without checkpoints, or the flags with which this run began",
            "Give another --out for the new run, or leave --init-adapter out to resume this one.",
        )
    allowed = refuse_other_run(newest, state["identity"], job.facts["identity"], allow_change)
    if allowed and state["step"] >= job.total_steps:  # the change has made steps larger and fewer
        raise InputError(
            str(newest),
            f"step {state['step']} done, of {job.total_steps} in all with "
            f"{', '.join(change.name for change in allowed)} as this command says",
            "steps left to train",
            "Raise run.epochs or run.max_steps, or leave out the change and --allow-change.",
        )
    print_rank0(f"resuming from {newest}, the newest checkpoint whose files have the recorded sha256")
    changes = [*allowed, *find_free_changes(state, job.facts)]
    for name, was, now in changes:
        values = f"was {shorten_value(was)} and is {shorten_value(now)}"
        print_rank0(f"changed at step {state['step']}: {name} {values} from here on")
    if allowed:
        print_rank0("samples come in another order from here on; some of this epoch come twice, some not at all")
    if state["total_steps"] != job.total_steps:
        print_rank0(
            f"the run now has {job.total_steps} steps instead of {state['total_steps']}: "
            "the learning rate follows the cosine of the new length from here on",
        )
    lineage += [{"step": state["step"], "changed": name, "was": was, "now": now} for name, was, now in changes]
    return Start(_progress(root, newest, {**state, "lineage": lineage}), checkpoint=newest)


def _progress(root: Path, newest: Path, state: JsonObject) -> Progress:
    """Progress by checkpoint `newest`. Sets `latest` and `best` again: a kill may have come before they were set."""
    replace_link(root / "latest", newest.name)
    progress = Progress(state["step"], state["lineage"], state["validation"])
    progress.pending_evaluation = state["pending_evaluation"]
    # If the best checkpoint is damaged, the next older one names the best up to then.
    for folder in reversed(checkpoint.list_checkpoints(root)):
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


def restore_engine(engine: DeepSpeedEngine, start: Start) -> None:
    """Load the weights and optimizer state that `start` names into the engine; each rank reads the files."""
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
    zero.restore_state(engine, masters, moments, start.progress.step)
