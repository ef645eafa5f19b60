"""adapter_config.json: PEFT's config of an adapter, its types checked before PEFT or a comparison uses it."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationError

from engine.checkpoint.checkpoint import ADAPTER_CONFIG_FILE
from preprocess.common.errors import InputError
from preprocess.common.json_file import read_json_object
from preprocess.common.record import Form, first_problem

Rank = Annotated[int, Field(ge=1, le=65_536)]
Alpha = Annotated[float, Field(gt=-1e6, lt=1e6)]


def _check_effort(pattern: str) -> str:
    """PEFT compares a pattern with every name of the model: with many quantifiers that might never end."""
    if re.search(r"\)[*+{]", pattern) or len(re.findall(r"(?<!\()[*+?{]", pattern)) > 2:
        raise ValueError("no repeated group and at most two of * + ? {, so that matching a name ends")
    return pattern


Pattern = Annotated[str, Field(max_length=1 << 20), AfterValidator(_check_effort)]


class AdapterForm(Form):
    """What decides beside PEFT's own checks. Weights that begin otherwise (PiSSA, OLoRA) would change the base."""

    r: Rank
    lora_alpha: Alpha
    use_rslora: bool = False
    use_dora: bool = False
    init_lora_weights: bool | Literal["gaussian"] = True
    rank_pattern: dict[Pattern, Rank] = Field(default={})
    alpha_pattern: dict[Pattern, Alpha] = Field(default={})
    target_modules: list[str] | Pattern | None = None
    exclude_modules: list[str] | Pattern | None = None


def read_adapter_config(folder: Path) -> AdapterForm:
    """The config of the adapter in `folder`. Raises InputError unless it is one of plain LoRA weights."""
    path, expected, action = folder / ADAPTER_CONFIG_FILE, "PEFT's LoRA config", "Restore it from a copy."
    try:
        return AdapterForm.model_validate(read_json_object(path, expected, action))
    except ValidationError as error:
        raise InputError(str(path), first_problem(error), expected, action) from error
