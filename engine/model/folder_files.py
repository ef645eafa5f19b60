"""The files of a base beside its weights: config, tokenizer, settings of generation, in either layout."""

import shutil
from pathlib import Path

from engine.model.native_processor import CHAT_TEMPLATE, processor_config
from engine.model.weights import GENERATION_FILE, read_generation_config
from preprocess.common.errors import InputError
from preprocess.common.files import write_json
from preprocess.common.json_file import JsonObject, read_json_object
from preprocess.corpus.base_model import BaseModel, how_to_name_a_base
from preprocess.corpus.native_layout import Layout, native_config

_WEIGHT_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".gguf"}
_TOKENIZER_KEYS = ("bos_token", "eos_token", "pad_token", "model_max_length", "clean_up_tokenization_spaces")
_TOKENIZER_CLASSES: dict[Layout, JsonObject] = {
    "boson": {"tokenizer_class": "PreTrainedTokenizerFast"},
    "transformers": {"tokenizer_class": "TokenizersBackend", "backend": "tokenizers"},
}


def write_folder_files(base: BaseModel, folder: Path, layout: Layout, flag: str = "--model") -> None:
    """Write the files beside the weights of `base` into `folder`, in `layout`.

    In the layout that the base has, its files are copied as they are: licence and all. Raises InputError for a model
    that `layout` can't express.
    """
    if layout == base.layout:
        _copy_files(base.folder, folder)
        return
    write_json(folder / "config.json", _config(base, layout, flag))
    shutil.copyfile(base.folder / "tokenizer.json", folder / "tokenizer.json")
    path = base.folder / "tokenizer_config.json"
    settings = read_json_object(path, "the tokenizer's files beside the model's", how_to_name_a_base(flag))
    kept = {key: settings[key] for key in _TOKENIZER_KEYS if key in settings}
    write_json(folder / "tokenizer_config.json", {**kept, **_TOKENIZER_CLASSES[layout]})
    generation = read_generation_config(base, flag)
    numbers = {key: getattr(generation, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    if layout == "transformers":
        # Its generation has no stop strings, and makes no audio without the text head of the first steps.
        numbers |= {"eos_token_id": base.tokenizer.convert_tokens_to_ids("<|eot_id|>"), "use_text_head": True}
        write_json(folder / "processor_config.json", processor_config(base.config))
        (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    write_json(folder / GENERATION_FILE, numbers)


def _copy_files(source: Path, target: Path) -> None:
    """Copy all files that are neither weights, nor their index, nor hidden."""
    for path in sorted(source.rglob("*")):
        relative = path.relative_to(source)
        hidden = any(part.startswith(".") for part in relative.parts)
        of_weights = path.suffix in _WEIGHT_SUFFIXES or path.name.endswith(".safetensors.index.json")
        if path.is_file() and not of_weights and not hidden:
            (target / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / relative)


def _config(base: BaseModel, layout: Layout, flag: str) -> JsonObject:
    whole: JsonObject = base.config.to_dict()
    if layout == "boson":
        return whole
    token_ids = {token.content: number for number, token in base.tokenizer.added_tokens_decoder.items()}
    try:
        return native_config(whole, token_ids)
    except ValueError as error:
        found, expected = ("; ".join(texts) for texts in zip(*error.args[0], strict=True))
        action = f"transformers' class can't be such a model: write it with --format boson, or name another {flag}."
        raise InputError(str(base.folder / "config.json"), found, expected, action) from error
