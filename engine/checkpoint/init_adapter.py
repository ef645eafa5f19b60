"""Another run's weights to begin with: found, and checked against the job before any model is loaded."""

from pathlib import Path

from engine.base.console import print_rank0
from engine.checkpoint import checkpoint
from engine.checkpoint.identity import fact_name, flatten, shorten
from engine.job import Job
from preprocess.common.errors import InputError
from preprocess.common.files import sha256_file


def check_adapter(given: str, job: Job) -> tuple[Path, dict]:
    """(folder, lineage entry) of the run, checkpoint or PEFT adapter `given`; of a run its newest whole checkpoint.

    Raises InputError where base, codec or LoRA differ from the job's. A plain adapter says nothing of base and codec;
    that its tensors fit is seen when they are loaded.
    """
    folder = Path(given)
    if (folder / "checkpoints").is_dir():
        folder = checkpoint.find_newest(folder / "checkpoints", print_rank0) or folder
    folder = folder.resolve()
    config = _read_adapter_config(folder)
    state: dict = {}
    if (folder / checkpoint.STATE_FILE).exists():
        problem = checkpoint.find_problem(folder)
        if problem is not None:
            raise InputError(str(folder), problem, "a whole checkpoint", "Name another step-N beside it.")
        state = checkpoint.read_state(folder)
    lora = job.recipe.lora
    pairs = [
        ("lora.rank", config["r"], lora.rank),
        ("lora.alpha", config["lora_alpha"], lora.alpha),
        ("lora.rslora", config["use_rslora"], lora.rslora),
        ("lora.dora", config["use_dora"], lora.dora),
    ]
    if state:
        old, new = flatten(state["identity"]), flatten(job.facts["identity"])
        keys = ("base_fingerprint", "codec_fingerprint", "lora.mode", "lora.train_whole")
        pairs += [(fact_name(key), old[key], new[key]) for key in keys]
    wrong = [(what, found, expected) for what, found, expected in pairs if found != expected]
    if wrong:
        raise InputError(
            f"--init-adapter {folder}: {', '.join(what for what, _, _ in wrong)}",
            "; ".join(f"{what} {shorten(found)} in the adapter" for what, found, _ in wrong),
            "; ".join(f"{what} {shorten(expected)}, as this command says" for what, _, expected in wrong),
            "Give the --model and the lora of the recipe that the adapter was trained with.",
        )
    if state and state["layout"] != job.facts["layout"]:
        print_rank0(f"warning: the adapter was trained on {state['layout']}, this corpus has {job.facts['layout']}")
    print_rank0(f"beginning with the weights of {folder}, optimizer and schedule fresh")
    origin = {
        "init_adapter": str(Path(given).absolute()),
        "checkpoint": str(folder),
        "checkpoint_step": state.get("step"),
        "adapter_sha256": sha256_file(folder / checkpoint.ADAPTER_FILE),
    }
    return folder, origin


def _read_adapter_config(folder: Path) -> dict:
    for file in (checkpoint.ADAPTER_FILE, checkpoint.ADAPTER_CONFIG_FILE):
        if not (folder / file).is_file():
            raise InputError(
                f"--init-adapter {folder}",
                f"no {file}",
                "a run folder with checkpoints, a checkpoint, or a PEFT adapter that this project wrote",
                "Name one of these.",
            )
    return checkpoint.read_adapter_config(folder)
