"""Model folders in the form of the hub: what transformers would run, or read in place of their files, is refused."""

from pathlib import Path

from preprocess.common.errors import InputError
from preprocess.common.json_file import JsonObject

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


def refuse_adapter(folder: Path, action: str) -> None:
    """Raise InputError for a folder with PEFT's adapter_config.json: transformers would load what it names."""
    if (folder / _ADAPTER_CONFIG_FILE).exists():
        found, expected = f"{_ADAPTER_CONFIG_FILE}: an adapter beside or in place of a model", "a whole model"
        raise InputError(str(folder), found, expected, f"{action} An adapter becomes a model with launch.merge.")
