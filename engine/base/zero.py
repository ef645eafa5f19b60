"""All use of DeepSpeed: its config, its engine, and the fp32 state that ZeRO-2 partitions over the ranks.

Written for deepspeed 0.19.8: `restore_state` uses its internals (`_hp_mapping`, `single_partition_of_fp32_groups`,
`_lazy_init_hp_params_optimizer_state`). tests/engine/base/test_zero.py fails with any other version.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)
from torch import nn

from engine.base.ranks import packs_of_rank
from engine.base.recipe import Recipe
from preprocess.common.errors import InputError
from preprocess.common.json_file import JsonObject, read_json_object

# On a CPU, DeepSpeed would spend a minute compiling a shared-memory collective that training never calls.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

MOMENTS = ("exp_avg", "exp_avg_sq")


def resolve_config(path: Path | str, recipe: Recipe, world_size: int) -> JsonObject:
    """The DeepSpeed JSON at `path` with every "auto" replaced by the recipe's value.

    Raises InputError for a missing file, a world size that does not divide the recipe's packs, an "auto" for which
    the recipe has no value (DeepSpeed would insert its own, such as 5e8), another ZeRO stage than 2, or a value that
    contradicts the recipe.
    """
    path = Path(path)
    action = "Give --deepspeed ds_configs/zero2.json, or correct the file."
    given = read_json_object(path, "a JSON object of DeepSpeed's settings", action)
    from_recipe = {
        "gradient_accumulation_steps": len(packs_of_rank(recipe.batch.packs_per_step, 0, world_size)),
        "gradient_clipping": recipe.optimizer.gradient_clipping,
        "bf16.enabled": recipe.run.precision == "bf16",
        "optimizer.params.lr": recipe.optimizer.lr,
        "optimizer.params.betas": list(recipe.optimizer.betas),
        "optimizer.params.eps": recipe.optimizer.eps,
        "optimizer.params.weight_decay": recipe.optimizer.weight_decay,
    }
    config: JsonObject = _replace_auto(given, from_recipe, str(path))
    expected = {
        **from_recipe,
        "train_micro_batch_size_per_gpu": 1,
        "bf16.check_grad_overflow": True,
        "zero_optimization.stage": 2,
        "zero_optimization.offload_optimizer": None,
        "optimizer.type": "AdamW",
        "optimizer.params.torch_adam": True,
        "data_types.grad_accum_dtype": "fp32",
        "communication_data_type": "fp32",
    }
    for key, value in expected.items():
        found: Any = config
        for part in key.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        if found != value:
            action = 'Write "auto" there: the recipe decides it.' if key in from_recipe else "Set it to that value."
            raise InputError(f"{path}: {key}", json.dumps(found), json.dumps(value), action)
    return config


def _replace_auto(value: Any, from_recipe: JsonObject, where: str, key: str = "") -> Any:
    """`value` and all in it with each "auto" replaced by `from_recipe[dotted key]`; `key` is that of `value`."""
    if isinstance(value, dict):
        return {k: _replace_auto(v, from_recipe, where, f"{key}.{k}" if key else k) for k, v in value.items()}
    if value != "auto":
        return value
    if key not in from_recipe:
        raise InputError(f"{where}: {key}", '"auto"', "a value: the recipe has none for it", "Write a value there.")
    return from_recipe[key]


def fit_buckets(config: JsonObject, model: nn.Module) -> JsonObject:
    """The config with no bucket larger than the trainable parameters: DeepSpeed reserves each bucket in full."""
    num_trainable = sum(parameter.numel() for _, parameter in trainable_parameters(model))
    given = config["zero_optimization"]
    keys = {"reduce_bucket_size", "allgather_bucket_size"} & given.keys()
    fitted = {key: min(int(given[key]), num_trainable) for key in sorted(keys)}
    return {**config, "zero_optimization": given | fitted}


def initialize_engine(model: nn.Module, config: JsonObject) -> deepspeed.DeepSpeedEngine:
    """The model under DeepSpeed ZeRO-2; every rank must hold the same trainable weights.

    With bf16, parameters are cast but buffers are not: the rotary frequencies stay in fp32, as in inference.
    """
    trained = [parameter for _, parameter in trainable_parameters(model)]
    engine, *_ = deepspeed.initialize(model=model, model_parameters=trained, config=config)
    # A NaN or infinity on any rank also is in the global norm, which DeepSpeed checks on every rank before the
    # update. Its earlier check of each gradient finds nothing more, and costs some ten kernels per tensor and a wait.
    engine.optimizer.check_overflow = lambda partition_gradients=True: None
    return engine


def rank_device() -> torch.device:
    """The device on which DeepSpeed places this rank's model."""
    return torch.device(deepspeed.accelerator.get_accelerator().current_device_name())


def set_lr(engine: deepspeed.DeepSpeedEngine, lr: float) -> None:
    """Set the learning rate of the next optimiser step."""
    for group in engine.optimizer.param_groups:
        group["lr"] = lr


def gather_masters(engine: deepspeed.DeepSpeedEngine) -> dict[str, torch.Tensor]:
    """Full fp32 master weights on CPU, by parameter name. A collective: every rank must call it."""
    return {
        name: safe_get_full_fp32_param(parameter).cpu() for name, parameter in trainable_parameters(engine.module)
    }


def gather_moments(engine: deepspeed.DeepSpeedEngine) -> dict[str, dict[str, torch.Tensor]]:
    """{moment of AdamW: {parameter name: fp32 tensor on CPU}}, zeros before the first step. A collective."""
    _create_optimizer_state(engine)
    return {
        moment: {
            name: safe_get_full_optimizer_state(parameter, moment).cpu()
            for name, parameter in trainable_parameters(engine.module)
        }
        for moment in MOMENTS
    }


def restore_state(
    engine: deepspeed.DeepSpeedEngine,
    masters: dict[str, torch.Tensor],
    moments: dict[str, dict[str, torch.Tensor]],
    num_steps: int,
) -> None:
    """Set master weights, both moments and AdamW's step counter, at any world size.

    The next step then equals the one of an uninterrupted run. DeepSpeed's usual dummy step is not taken, since it
    would advance weight decay and counters.
    """
    _create_optimizer_state(engine)
    for name, parameter in trainable_parameters(engine.module):
        safe_set_full_fp32_param(parameter, masters[name].to(parameter.device))
        for moment in MOMENTS:
            safe_set_full_optimizer_state(parameter, moments[moment][name].to(parameter.device), moment)
    for state in engine.optimizer.optimizer.state.values():
        state["step"].fill_(float(num_steps))
    engine.global_steps = num_steps
    engine.optimizer.update_lp_params()


def _create_optimizer_state(engine: deepspeed.DeepSpeedEngine) -> None:
    """Create AdamW's state of zeros, as its first step does, and let DeepSpeed link it to the parameters."""
    optimizer = engine.optimizer
    for partition in optimizer.single_partition_of_fp32_groups:
        state = optimizer.optimizer.state[partition]
        if not state:
            for moment in MOMENTS:
                state[moment] = torch.zeros_like(partition)
            state["step"] = torch.zeros((), dtype=torch.float32, device=partition.device)
    optimizer._lazy_init_hp_params_optimizer_state()


def trainable_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """(name, parameter) of each trainable parameter, in the model's order."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)
