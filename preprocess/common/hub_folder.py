"""Model folders in the form of the hub: what transformers would run, or read in place of their files, is refused."""

import math
from pathlib import Path

from preprocess.common.errors import InputError
from preprocess.common.json_file import JsonObject, flatten

_MAX_LABELS = 1000  # of classifiers, which no model here is
_ADAPTER_CONFIG_FILE = "adapter_config.json"  # of PEFT


def refuse_code_and_paths(path: Path, given: JsonObject, action: str) -> None:
    """Raise InputError for a JSON file of a model folder that names code, or other files to read in its place.

    Boson's engine leaves transformers to ask on the terminal whether to run such code.
    """
    if "auto_map" in given:
        found = f"auto_map = {str(given['auto_map'])[:60]}, code that would run"
        raise InputError(str(path), found, "no code of its own, each file as it was downloaded", action)
    for name in sorted(name for name in given if name.endswith(("_file", "_files"))):  # each class has its own
        if given[name] is not None:
            found = f"{name} = {str(given[name])[:60]}, which would be read in place of the folder's files"
            raise InputError(str(path), found, "no names of files, each file as it was downloaded", action)


def refuse_other_model(path: Path, given: JsonObject, action: str) -> None:
    """Raise InputError for values with which transformers changes a model as it loads it, or that are no numbers.

    pruned_heads and quantization_config give other weights than the files hold; a million labels take a minute.
    """
    expected = "the file as it was downloaded"
    for place, value in flatten(given).items():
        key = place.rsplit(".", 1)[-1]
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(str(path), f"{place} = {value}", expected, action)
        if key == "num_labels" and not (isinstance(value, int) and 0 <= value <= _MAX_LABELS):
            raise InputError(str(path), f"{place} = {value!r:.60}", f"at most {_MAX_LABELS} labels", action)
    for config in (given, *(each for each in given.values() if isinstance(each, dict))):
        for key in ("pruned_heads", "quantization_config"):
            if config.get(key):
                raise InputError(str(path), f"{key} = {config[key]!r:.60}", expected, action)
        for key in ("id2label", "label2id"):
            if len(config.get(key) or ()) > _MAX_LABELS:
                raise InputError(str(path), f"{len(config[key]):,} labels in {key}", f"at most {_MAX_LABELS}", action)


def refuse_adapter(folder: Path, action: str) -> None:
    """Raise InputError for a folder with PEFT's adapter_config.json: transformers would load what it names."""
    if (folder / _ADAPTER_CONFIG_FILE).exists():
        found, expected = f"{_ADAPTER_CONFIG_FILE}: an adapter beside or in place of a model", "a whole model"
        raise InputError(str(folder), found, expected, f"{action} An adapter becomes a model with launch.merge.")
