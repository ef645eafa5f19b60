"""Model folders in the form of the hub: what transformers would run, or read in place of their files, is refused."""

import math
from pathlib import Path

from preprocess.common.errors import InputError
from preprocess.common.json_file import JsonObject, flatten

_MAX_LABELS = 1000  # of classifiers, which no model here is
# Values with which Boson's code can use a model, of keys that make transformers hand over other things.
_USUAL: dict[str, list[object]] = {
    "return_dict": [True, None],
    "torchscript": [False, None],
    "pretraining_tp": [1, None],
}
_USUAL |= {"partial_rotary_factor": [1.0, None]}
_SHARES = {"attention_dropout", "activation_dropout", "dropout", "encoder_layerdrop", "decoder_layerdrop"}
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
        if not _is_finite(value) or (key in _USUAL and value not in _USUAL[key]):
            raise InputError(str(path), f"{place} = {value!r:.60}", expected, action)
        if key == "num_labels" and not (isinstance(value, int) and 0 <= value <= _MAX_LABELS):
            raise InputError(str(path), f"{place} = {value!r:.60}", f"at most {_MAX_LABELS} labels", action)
        if key in _SHARES and isinstance(value, float) and not 0 <= value <= 1:
            raise InputError(str(path), f"{place} = {value}", "a share from 0 to 1", action)
    for config in (given, *(each for each in given.values() if isinstance(each, dict))):
        for key in ("pruned_heads", "quantization_config"):
            if config.get(key):
                raise InputError(str(path), f"{key} = {config[key]!r:.60}", expected, action)
        for key in ("id2label", "label2id"):
            labels = config.get(key) or {}
            if not isinstance(labels, dict) or len(labels) > _MAX_LABELS:
                raise InputError(str(path), f"{key} = {labels!r:.60}", f"at most {_MAX_LABELS} labels", action)


def _is_finite(value: object) -> bool:
    """Whether no number of a JSON value, or of the lists in it, is NaN or infinite."""
    values = value if isinstance(value, list) else [value]
    return all(_is_finite(each) if isinstance(each, list) else not _is_no_number(each) for each in values)


def _is_no_number(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def refuse_adapter(folder: Path, action: str) -> None:
    """Raise InputError for a folder with PEFT's adapter_config.json: transformers would load what it names."""
    if (folder / _ADAPTER_CONFIG_FILE).exists():
        found, expected = f"{_ADAPTER_CONFIG_FILE}: an adapter beside or in place of a model", "a whole model"
        raise InputError(str(folder), found, expected, f"{action} An adapter becomes a model with launch.merge.")
