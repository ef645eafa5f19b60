"""One run of training, from start to end."""

import torch
import torch.distributed as dist
from deepspeed import DeepSpeedEngine

from engine.base import zero
from engine.base.console import print_rank0
from engine.base.launcher import Launcher
from engine.base.recipe import save_recipe
from engine.base.run_record import write_run
from engine.base.watchdog import Watchdog
from engine.batch.loader import loader_workers
from engine.checkpoint.progress import Progress
from engine.checkpoint.resume import find_start, hold_run_folder, restore_engine
from engine.job import Job
from engine.loop import learning_rate, train
from engine.model.forward import LossModel
from engine.model.lora import add_lora, describe_lora
from engine.model.weights import load_base, weight_dtype
from engine.monitor.environment import describe_environment
from engine.monitor.metrics import METRICS_FILE, move_metrics_aside, steps_logged
from engine.plan.plan import describe_plan
from preprocess.common.errors import InputError
from preprocess.common.files import write_json
from preprocess.common.json_file import JsonObject
from preprocess.common.shell import shell_line


def train_job(job: Job, mode: str, allow_change: list[str], init_adapter: str | None, launcher: Launcher) -> None:
    """Run the job to its end, or until it is asked to stop; called on every rank. A finished run loads no model.

    mode, allow_change, init_adapter: see find_start. Raises InputError.
    """
    with hold_run_folder(job.out), Watchdog(job.recipe.run.hang_timeout_sec) as watchdog:
        with watchdog.alone("the search for a checkpoint", works=dist.get_rank() == 0):
            start = find_start(job, mode, allow_change, init_adapter)
        if start.checkpoint is None:
            _begin_at_step_0(job, mode)
        progress = start.progress
        if progress.step < job.total_steps or progress.pending_evaluation:
            with watchdog.alone("loading the model"):
                engine = build_engine(job)
                restore_engine(engine, start)
            announce_run(job, progress, engine.config)
            with loader_workers():
                progress = train(engine, job, progress, launcher, watchdog)
            engine.destroy()
    if progress.step < job.total_steps or progress.pending_evaluation:
        saved = "saved; the same command resumes" if progress.step else "nothing to save yet"
        print_rank0(f"stopped at step {progress.step} of {job.total_steps}, {saved}")
    else:
        finished = f"finished at step {progress.step} of {job.total_steps}. {_describe_next_actions(job)}"
        for line in finished.split("\n"):
            print_rank0(line)


def _begin_at_step_0(job: Job, mode: str) -> None:
    """Raise InputError where the metrics know of checkpoints and there is none; "fresh" moves the metrics aside.

    The first checkpoint comes with the first evaluation that is recorded, or after run.save_every steps.
    """
    logged = steps_logged(job.out)
    last = max(logged.get("train", [0]))
    if mode != "fresh" and last > min(job.recipe.run.save_every, *logged.get("validation", [last])):
        raise InputError(
            str(job.out / "checkpoints"),
            f"no checkpoint, though {METRICS_FILE} records steps up to {last}",
            "the checkpoints of this run, or a new folder",
            "Bring the folder back; or add --resume fresh to begin at step 0: the metrics then get another name.",
        )
    if mode == "fresh" and dist.get_rank() == 0:
        move_metrics_aside(job.out)


def _describe_next_actions(job: Job) -> str:
    """What can be done with a finished run: merge it, train it longer, begin another one with its weights."""
    run, total = job.recipe.run, job.total_steps
    longer = f"run.max_steps={2 * total}" if run.max_steps == total else f"run.epochs={2 * run.epochs}"
    rates = [learning_rate(total, steps, job.recipe.optimizer) for steps in (total, 2 * total)]
    best = job.out / "checkpoints" / "best"
    merge = shell_line("python", "-m", "launch.merge", "--checkpoint", best, "--out", "merged/")
    init = shell_line("--init-adapter", job.out)
    return (
        f"Merge the best: {merge}\n"
        f"Two ways to continue: the same command with {longer} trains longer (the cosine then spans all steps: the "
        f"learning rate, {rates[0]:.2e} now, goes on from {rates[1]:.2e}); {init} with another "
        "--out begins a new run with its weights; optimizer and schedule are then fresh."
    )


def build_engine(job: Job) -> DeepSpeedEngine:
    """The base model with fresh LoRA weights, the same on every rank, under DeepSpeed."""
    run = job.recipe.run
    torch.manual_seed(run.seed)
    if run.deterministic:
        torch.use_deterministic_algorithms(True)
    base = load_base(job.reader.model_folder, weight_dtype(run.precision))
    adapted = add_lora(base, job.recipe.lora, job.recipe.conditioning)
    model = LossModel(adapted, job.recipe.batch.checkpointed_layers, job.recipe.loss)
    print_rank0(describe_lora(adapted))
    return zero.initialize_engine(model, zero.fit_buckets(job.deepspeed_config, model))


def announce_run(job: Job, progress: Progress, deepspeed_config: JsonObject) -> None:
    """Print the arithmetic of a step, and write what the run uses into its folder, with every "auto" resolved."""
    num_packs, summary = job.recipe.batch.packs_per_step, job.summary
    world_size = job.facts["world_size"]
    arithmetic = {
        "packs_per_step": num_packs,
        "accumulation": num_packs // world_size,
        "validation_packs": len(job.validation),
        "plan": summary,
    }
    for corpus in job.reader.corpora.corpora:
        for note in corpus.notes():
            print_rank0(note)
    print_rank0(describe_plan(summary))
    print_rank0(
        f"{num_packs} packs per step = {world_size} ranks x {arithmetic['accumulation']} accumulated; "
        f"{summary['samples_per_step']['mean']:.1f} samples and {summary['tokens_per_step']['mean']:,.0f} tokens "
        f"per step; {job.total_steps} steps in all, {progress.step} done"
    )
    if job.recipe.optimizer.warmup_steps >= job.total_steps:
        print_rank0(
            f"warning: optimizer.warmup_steps={job.recipe.optimizer.warmup_steps} is not below the "
            f"{job.total_steps} steps of the run: the learning rate never reaches optimizer.lr"
        )
    if not job.validation:
        print_rank0("The corpus has no validation split: `best` will be the last checkpoint.")
    elif not job.swapped_validation and job.recipe.run.evaluate_conditioning:
        print_rank0(
            "The conditioning gain is not measured: it needs two validation speakers with drawn references (those "
            "that a manifest names do not count). Hold out more voices (preprocess.shard --val-speakers) to see "
            "whether the model uses the reference."
        )
    if dist.get_rank() == 0:
        job.out.mkdir(parents=True, exist_ok=True)
        save_recipe(job.recipe, job.out / "recipe.yaml")
        write_json(job.out / "deepspeed.json", deepspeed_config)
        environment = describe_environment(zero.rank_device(), job.recipe.run.precision, job.recipe.forward)
        write_run(job.out, {**job.facts, **job.places, "lineage": progress.lineage, **arithmetic, **environment})
    dist.barrier()
