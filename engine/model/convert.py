"""Writes a base in the layout of transformers 5 as a folder in Boson's: names change, no bit of a tensor does.

Tensors are copied in blocks, file by file, so memory does not grow with the model.
"""

import shutil
from pathlib import Path
from typing import BinaryIO

from pydantic import ValidationError

from engine.model.base_tensors import check_tensors
from engine.model.native_layout import MODEL_TYPE, NativeForm, boson_config, boson_name
from engine.model.weight_files import (
    WEIGHTS_FILE,
    WEIGHTS_INDEX_FILE,
    TensorEntry,
    header_bytes,
    num_bytes,
    read_header,
    weight_files,
    write_header,
)
from preprocess.common.errors import InputError, explain_write_errors
from preprocess.common.files import finish_folder, refuse_used_folder, write_json
from preprocess.common.hub_folder import refuse_adapter, refuse_code_and_paths, refuse_other_model
from preprocess.common.json_file import JsonObject, read_json_object
from preprocess.common.progress import with_progress
from preprocess.common.record import first_problem
from preprocess.corpus.base_model import how_to_name_a_base

_BLOCK_BYTES = 1 << 24
# Of tokenizer_config.json and generation_config.json, what older transformers reads with the same meaning.
_TOKENIZER_KEYS = ("bos_token", "eos_token", "pad_token", "model_max_length", "clean_up_tokenization_spaces")
_GENERATION_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id")


def convert_to_boson(source: Path, out: Path) -> int:
    """Write the folder `out` in Boson's layout; returns the number of tensors.

    Raises InputError for a folder that is no base of transformers 5, or whose tensors are not those of its config;
    then nothing is left of `out`, which must be new or empty.
    """
    source, out = source.resolve(), out.resolve()
    refuse_used_folder(out)
    config = _read_config(source)
    files = weight_files(source)
    temporary = out.with_name(f".{out.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with explain_write_errors(out.parent, "Free space or name another --out, then convert again."):
            temporary.mkdir(parents=True)
            _write_tokenizer(source, temporary)
            write_json(temporary / "config.json", config)
            written = {path.name: _write_renamed(path, temporary / path.name) for path in files}
            if files != [source / WEIGHTS_FILE]:
                _write_index(temporary, written)
            check_tensors(temporary)
            finish_folder(temporary, out)
    except InputError as error:
        if error.where.startswith(str(temporary)):  # what was written is what was found in the source
            parts = error.where.replace(str(temporary), str(source)), error.found, error.expected, error.action
            raise InputError(*parts) from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return sum(map(len, written.values()))


def _read_config(source: Path) -> JsonObject:
    """config.json in Boson's layout."""
    path, action = source / "config.json", how_to_name_a_base("--model")
    native = read_json_object(path, f"config.json of a {MODEL_TYPE} model", action)
    if native.get("model_type") != MODEL_TYPE:
        found = f"model_type {native.get('model_type')!r:.80}"
        if native.get("model_type") == "higgs_audio":
            found += ": Boson's own layout already"
        raise InputError(str(path), found, repr(MODEL_TYPE), "Name a folder of the hub's main with --model.")
    refuse_code_and_paths(path, native, action)
    refuse_other_model(path, native, action)
    refuse_adapter(source, action)
    try:
        NativeForm.model_validate(native)
    except ValidationError as error:
        raise InputError(str(path), first_problem(error), "the file as it was downloaded", action) from error
    try:
        return boson_config(native, _special_tokens(source, action))
    except KeyError as error:
        found, expected = f"no token {error.args[0]}", "the tokenizer of a Higgs Audio v2 model"
        raise InputError(str(source / "tokenizer.json"), found, expected, action) from error


def _special_tokens(source: Path, action: str) -> dict[str, int]:
    """{special token: its number}, by tokenizer.json. Tokens of another form are left out."""
    added = read_json_object(source / "tokenizer.json", "the tokenizer's file beside the model's", action)
    tokens = added.get("added_tokens")
    of_form = [token for token in tokens if isinstance(token, dict)] if isinstance(tokens, list) else []
    pairs = [(token.get("content"), token.get("id")) for token in of_form]
    return {content: number for content, number in pairs if isinstance(content, str) and isinstance(number, int)}


def _write_tokenizer(source: Path, target: Path) -> None:
    """tokenizer.json as it is, and the settings beside it for the class of older transformers."""
    action, expected = how_to_name_a_base("--model"), "the tokenizer's files beside the model's"
    path = source / "tokenizer_config.json"
    settings = read_json_object(path, expected, action)
    refuse_code_and_paths(path, settings, action)
    kept = {key: settings[key] for key in _TOKENIZER_KEYS if key in settings}
    write_json(target / "tokenizer_config.json", {**kept, "tokenizer_class": "PreTrainedTokenizerFast"})
    shutil.copyfile(source / "tokenizer.json", target / "tokenizer.json")
    if (source / "generation_config.json").exists():
        generation = read_json_object(source / "generation_config.json", expected, action)
        kept = {key: generation[key] for key in _GENERATION_KEYS if key in generation}
        write_json(target / "generation_config.json", kept)


def _write_renamed(source: Path, target: Path) -> dict[str, TensorEntry]:
    """Copy the tensors of a safetensors file under Boson's names; {name: its header entry}. Raises InputError."""
    header = read_header(source)
    metadata: JsonObject = {**header.pop("__metadata__", {}), "format": "pt"}
    begin_of_data = 8 + header_bytes(source)
    entries: dict[str, TensorEntry] = {}
    places, offset = [], 0
    for native in sorted(header, key=lambda name: header[name]["data_offsets"]):
        entry: TensorEntry = header[native]
        name, (begin, end) = boson_name(native), entry["data_offsets"]
        if name is None:
            continue
        entries[name] = {**entry, "data_offsets": [offset, offset + end - begin]}
        places.append((begin_of_data + begin, end - begin))
        offset += end - begin
    with open(source, "rb") as read, open(target, "wb") as write:
        write_header(write, {"__metadata__": metadata, **entries})
        for place, length in with_progress(places, len(places), target.name, "tensors"):
            read.seek(place)
            _copy(read, write, length)
    return entries


def _copy(read: BinaryIO, write: BinaryIO, length: int) -> None:
    while length:
        block = read.read(min(length, _BLOCK_BYTES))
        assert block, "the file is shorter than its header says"
        write.write(block)
        length -= len(block)


def _write_index(folder: Path, written: dict[str, dict[str, TensorEntry]]) -> None:
    total = sum(num_bytes(entries.values()) for entries in written.values())
    weight_map = {name: file for file, entries in written.items() for name in entries}
    write_json(folder / WEIGHTS_INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})
