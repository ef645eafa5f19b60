"""adapter_config.json: PEFT's config of an adapter, its types checked before PEFT or a comparison uses it."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError

from engine.base.recipe import Rank
from engine.checkpoint.checkpoint import ADAPTER_CONFIG_FILE
from preprocess.common.errors import InputError
from preprocess.common.json_file import read_json_object
from preprocess.common.record import Form, first_problem

Alpha = Annotated[float, Field(gt=-1e6, lt=1e6)]


_NAME = re.compile(r"[\w.-]*")
_NAMES = re.compile(r"[\w.\\|-]*")  # names joined by |, as this project writes them: matched in one pass


def _check_name(name: str) -> str:
    """PEFT takes names for regular expressions, and compares them with every layer: some would never end."""
    if not _NAME.fullmatch(name):
        raise ValueError("the name of a layer, without signs of a regular expression")
    return name


def _check_layers(value: object) -> object:
    names = [value] if isinstance(value, str) else value
    if value is None or (isinstance(value, str) and _NAMES.fullmatch(value)):
        return value
    if not isinstance(names, list) or not all(isinstance(name, str) and _NAME.fullmatch(name) for name in names):
        raise ValueError("names of layers in a list, or joined by |: other regular expressions may never end")
    return value


Name = Annotated[str, AfterValidator(_check_name)]
Layers = Annotated[Any, AfterValidator(_check_layers)]


class AdapterForm(Form):
    """What decides beside PEFT's own checks. Weights that begin otherwise (PiSSA, OLoRA) would change the base."""

    r: Rank
    lora_alpha: Alpha
    use_rslora: bool = False
    use_dora: bool = False
    init_lora_weights: bool | Literal["gaussian"] = True
    rank_pattern: dict[Name, Rank] = Field(default={})
    alpha_pattern: dict[Name, Alpha] = Field(default={})
    target_modules: Layers = None
    exclude_modules: Layers = None
    modules_to_save: Layers = None
    layers_pattern: Layers = None


def read_adapter_config(folder: Path) -> AdapterForm:
    """The config of the adapter in `folder`. Raises InputError unless it is one of plain LoRA weights."""
    path, expected, action = folder / ADAPTER_CONFIG_FILE, "PEFT's LoRA config", "Restore it from a copy."
    try:
        return AdapterForm.model_validate(read_json_object(path, expected, action))
    except ValidationError as error:
        raise InputError(str(path), first_problem(error), expected, action) from error
