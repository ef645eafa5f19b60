"""--init-adapter: finding another run's weights, and checking that they fit the job, before any model is loaded."""

import os
from pathlib import Path

from engine.base.console import print_rank0
from engine.checkpoint import checkpoint
from engine.checkpoint.adapter_config import AdapterForm, read_adapter_config
from engine.checkpoint.identity import find_changes, shorten_value
from engine.job import Job
from preprocess.common.errors import InputError
from preprocess.common.files import sha256_file
from preprocess.common.json_file import JsonObject, flatten

# {fact of the run's identity: key in PEFT's config} of what must agree.
_PEFT_KEYS = {"lora.rank": "r", "lora.alpha": "lora_alpha", "lora.rslora": "use_rslora", "lora.dora": "use_dora"}


def check_adapter(given: str, job: Job) -> tuple[Path, JsonObject]:
    """(folder, lineage entry) of the adapter that `given` names.

    given: a run folder (its newest undamaged checkpoint is taken), a checkpoint or a PEFT adapter.
    Raises InputError if base, codec or LoRA differ from the job's. A plain PEFT adapter names no base and no codec;
    whether its tensors fit is checked when they are loaded.
    """
    folder = Path(given)
    if (folder / "checkpoints").is_dir():
        folder = checkpoint.find_newest(folder / "checkpoints", print_rank0) or folder
    folder = folder.resolve()
    config = _read_adapter_config(folder)
    state: JsonObject = {}
    if (folder / checkpoint.STATE_FILE).exists():
        problem = checkpoint.find_problem(folder)
        if problem is not None:
            raise InputError(str(folder), problem, "an undamaged checkpoint", "Name another step-N of that run.")
        state = checkpoint.read_state(folder)
    found: JsonObject = {fact: getattr(config, key) for fact, key in _PEFT_KEYS.items()}
    if state:
        old = flatten(state["identity"])
        found |= {key: old[key] for key in ("base_fingerprint", "codec_fingerprint", "lora.mode", "lora.train_whole")}
    expected = flatten(job.facts["identity"])
    wrong = find_changes(found, {key: expected[key] for key in found})
    if wrong:
        raise InputError(
            f"--init-adapter {folder}: {', '.join(change.name for change in wrong)}",
            "; ".join(f"{name} {shorten_value(was)} in the adapter" for name, was, _ in wrong),
            "; ".join(f"{name} {shorten_value(now)}, as this command says" for name, _, now in wrong),
            "Give the --model and the lora keys of the recipe that the adapter was trained with.",
        )
    if state and state["layout"] != job.facts["layout"]:
        print_rank0(f"warning: the adapter was trained on {state['layout']}, this corpus has {job.facts['layout']}")
    print_rank0(f"beginning with the weights of {folder}; optimizer and schedule are fresh")
    origin = {
        "init_adapter": place_of(given, job),
        "checkpoint": folder.name,
        "checkpoint_step": state.get("step"),
        "adapter_sha256": sha256_file(folder / checkpoint.ADAPTER_FILE),
    }
    return folder, origin


def place_of(given: str, job: Job) -> str:
    """The path of an adapter from the run folder: checkpoints name no place by which only this machine finds it."""
    return os.path.relpath(Path(given).absolute(), job.out.absolute())


def _read_adapter_config(folder: Path) -> AdapterForm:
    """The config of an adapter that a recipe can go on with. Raises InputError."""
    for file in (checkpoint.ADAPTER_FILE, checkpoint.ADAPTER_CONFIG_FILE):
        if not (folder / file).is_file():
            raise InputError(
                f"--init-adapter {folder}",
                f"no {file}",
                "a run folder with checkpoints, a checkpoint, or a PEFT adapter that this project wrote",
                "Name one of these.",
            )
    config = read_adapter_config(folder)
    if config.rank_pattern or config.alpha_pattern:
        path, found = str(folder / checkpoint.ADAPTER_CONFIG_FILE), "ranks or alphas of its own for some layers"
        raise InputError(path, found, "one lora.rank and lora.alpha", "Train with an adapter of this project.")
    return config
