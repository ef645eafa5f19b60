"""The only reader of a base model's folder: its config and its text tokenizer, not its weights."""

import functools
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from boson_multimodal.data_types import ChatMLSample
from boson_multimodal.dataset.chatml_dataset import prepare_chatml_sample
from boson_multimodal.model.higgs_audio import HiggsAudioConfig
from pydantic import ValidationError
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerFast

from preprocess.common.errors import InputError, first_line
from preprocess.common.hub_folder import refuse_adapter, refuse_code_and_paths, refuse_other_model
from preprocess.common.json_file import JsonObject, read_json_object
from preprocess.common.record import first_problem
from preprocess.corpus.dialogue import IGNORE_INDEX, audios_of
from preprocess.corpus.native_layout import MODEL_TYPE, Layout, NativeForm, boson_config
from preprocess.corpus.text import special_tokens

# The newest one in the layout of Boson's own code.
BASE_ID = "bosonai/higgs-audio-v2-generation-3B-base"  # higgs-tts-2-3b-base elsewhere
BASE_REVISION = "10840182ca4ad5d9d9113b60b9bb3c1ef1ba3f84"

_TOKENIZER_FILES = "the tokenizer's files beside the model's, each as it was downloaded"
# What the settings of transformers 5 hold beside these is of its own classes, or in tokenizer.json as well.
_NATIVE_TOKENIZER_KEYS = ("bos_token", "eos_token", "pad_token", "model_max_length", "clean_up_tokenization_spaces")
# In text_config these may be null, a number or a list of numbers, and no code reads them.
_UNREAD_KEYS = {"bos_token_id", "eos_token_id"}
# (above, at most) of what divides or scales in every layer, and is no size that a weight would show.
_RANGES = {"rms_norm_eps": (1e-30, 0.1), "rope_theta": (1, 1e12)}


@dataclass(frozen=True)
class BaseModel:
    """A base model's config and text tokenizer. Callers share both: copy the config before you change it.

    layout: of the folder's files. The config is Boson's, whichever it is.
    """

    folder: Path
    config: HiggsAudioConfig
    tokenizer: PreTrainedTokenizerFast
    layout: Layout = "boson"

    @property
    def special_tokens(self) -> list[str]:
        return special_tokens(self.tokenizer)

    def num_tokens(self, text: str) -> int:
        """Number of tokens of a normalised text inside a turn."""
        return len(self.tokenizer.encode(text, add_special_tokens=False))

    def dialogue_tokens(self, dialogue: ChatMLSample) -> tuple[int, int]:
        """(tokens, labelled tokens) of a dialogue without its audios: each has one placeholder, which is left out."""
        input_ids, label_ids, audios, _ = prepare_chatml_sample(dialogue, self.tokenizer)
        assert input_ids is not None, "Boson refuses a dialogue that passed the manifest's checks"
        num_trained = sum(audio.trained for audio in audios_of(dialogue))
        return len(input_ids) - len(audios), sum(label != IGNORE_INDEX for label in label_ids) - num_trained


def has_audio_tower(config: HiggsAudioConfig) -> bool:
    """Whether checkpoints of this config hold Whisper's encoder. The released 3B base has none."""
    return not config.skip_audio_tower


def how_to_name_a_base(flag: str) -> str:
    """The action of an error about a folder that is no base model. flag: the one that names the folder."""
    return (
        f"Name the model's folder with {flag}. Download the model if it is missing or broken: "
        f"`hf download {BASE_ID} --revision {BASE_REVISION} --local-dir BASE`."
    )


@functools.cache
def read_base_model(folder: Path, flag: str = "--model") -> BaseModel:
    """Config and tokenizer of a model folder, read once per process. flag: the one that names it, for error texts.

    The folder may be in Boson's layout or in that of transformers 5. Raises InputError for anything but a Higgs Audio
    v2 model. No code from the folder runs, and nothing outside of it is read.
    """
    action = how_to_name_a_base(flag)
    path = folder / "config.json"
    given = read_json_object(path, "config.json of a Higgs Audio v2 model folder", action)
    layouts: dict[object, Layout] = {HiggsAudioConfig.model_type: "boson", MODEL_TYPE: "transformers"}
    layout = layouts.get(str(given.get("model_type")))
    if layout is None:
        expected = f"{HiggsAudioConfig.model_type!r} or {MODEL_TYPE!r}"
        raise InputError(str(path), f"model_type {given.get('model_type')!r:.80}", expected, action)
    refuse_code_and_paths(path, given, action)
    refuse_other_model(path, given, action)
    refuse_adapter(folder, action)
    if layout == "transformers":
        given = _from_native(path, given, action)
    config = _make_config(path, given, action)
    return BaseModel(folder, config, _read_tokenizer(folder, config, layout, action), layout)


def _from_native(path: Path, native: JsonObject, action: str) -> JsonObject:
    """A config of transformers 5 in Boson's layout."""
    tokenizer = path.with_name("tokenizer.json")
    try:
        NativeForm.model_validate(native)
        return boson_config(native, _special_token_ids(tokenizer, action))
    except ValidationError as error:
        raise InputError(str(path), first_problem(error), "the file as it was downloaded", action) from error
    except KeyError as error:
        found, expected = f"no token {error.args[0]}", "the tokenizer of a Higgs Audio v2 model"
        raise InputError(str(tokenizer), found, expected, action) from error


def _special_token_ids(path: Path, action: str) -> dict[str, int]:
    """{special token: its number}, by tokenizer.json. Tokens of another form are left out."""
    tokens = read_json_object(path, _TOKENIZER_FILES, action).get("added_tokens")
    of_form = [token for token in tokens if isinstance(token, dict)] if isinstance(tokens, list) else []
    pairs = [(token.get("content"), token.get("id")) for token in of_form]
    return {content: number for content, number in pairs if isinstance(content, str) and isinstance(number, int)}


def _make_config(path: Path, given: JsonObject, action: str) -> HiggsAudioConfig:
    default = HiggsAudioConfig(audio_dual_ffn_layers=[0])
    wrong = list(_wrong_types(given, default))
    if wrong:
        found, expected = ("; ".join(texts) for texts in zip(*wrong, strict=True))
        raise InputError(str(path), found, expected, action)
    try:
        config = HiggsAudioConfig.from_dict(given)
    except Exception as error:  # Boson and transformers raise errors of every kind
        found = f"values that Boson's HiggsAudioConfig refuses ({first_line(error)})"
        raise InputError(str(path), found, "the file as it was downloaded", action) from error
    for name in ("text_config", "audio_encoder_config"):
        found, expected = getattr(config, name).model_type, getattr(default, name).model_type
        if found != expected:
            raise InputError(str(path), f"{name}.model_type {found!r}", repr(expected), action)
    if config.text_config.head_dim is not None and config.text_config.head_dim % 2:
        found = f"text_config.head_dim {config.text_config.head_dim}"
        raise InputError(str(path), found, "an even number, whose halves RoPE turns", action)
    for name, (lowest, highest) in _RANGES.items():
        if not lowest < (value := getattr(config.text_config, name)) <= highest:
            expected = f"above {lowest}, at most {highest}"
            raise InputError(str(path), f"text_config.{name} = {value}", expected, action)
    return config


def _wrong_types(given: JsonObject, default: PretrainedConfig, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(found, expected) of each value whose type differs from its default's, among the keys that the class reads."""
    read = inspect.signature(type(default).__init__).parameters.keys() - _UNREAD_KEYS
    for name in sorted(read & given.keys()):
        value, usual = given[name], getattr(default, name, None)
        if name == "head_dim" and value is None:  # transformers derives it
            continue
        if isinstance(usual, PretrainedConfig) and isinstance(value, dict):
            yield from _wrong_types(value, usual, f"{prefix}{name}.")
        elif not _fits(value, usual):
            kind = "dict" if isinstance(usual, PretrainedConfig) else type(usual).__name__
            yield f"{prefix}{name} {value!r:.80}", f"{kind} for {prefix}{name}"


def _fits(value: object, usual: object) -> bool:
    """Whether a value has the type of the default `usual`. A default of None allows every type."""
    if isinstance(usual, list):
        return value is None or (isinstance(value, list) and all(_fits(item, usual[0]) for item in value))
    if isinstance(usual, PretrainedConfig):
        return value is None
    return usual is None or type(value) is type(usual) or (type(usual) is float and type(value) is int)


def _read_tokenizer(folder: Path, config: HiggsAudioConfig, layout: Layout, action: str) -> PreTrainedTokenizerFast:
    expected = _TOKENIZER_FILES
    settings = read_json_object(folder / "tokenizer_config.json", expected, action)
    refuse_code_and_paths(folder / "tokenizer_config.json", settings, action)
    special = folder / "special_tokens_map.json"  # its keys are arguments of the tokenizer's class too
    if special.exists():
        refuse_code_and_paths(special, read_json_object(special, expected, action), action)
    name = "tokenizer.json"
    if _random_merges(read_json_object(folder / name, expected, action)):
        found_text, fixed = "BPE with dropout: another spelling of a text each time", "a tokenizer without dropout"
        raise InputError(str(folder / name), found_text, fixed, action)
    placeholders = {"<|AUDIO|>": config.audio_in_token_idx, "<|AUDIO_OUT|>": config.audio_out_token_idx}
    placeholders |= {"<|audio_out_bos|>": config.audio_out_bos_token_id, "<|audio_eos|>": config.audio_eos_token_id}
    try:
        Tokenizer.from_file(str(folder / name))
        name = "tokenizer_config.json"  # tokenizer.json is fine: an error from here on is about this file
        if layout == "transformers":
            options = {key: settings[key] for key in _NATIVE_TOKENIZER_KEYS if key in settings}
            tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **options)
        else:
            options = {"config": config, "local_files_only": True, "trust_remote_code": False}
            tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        found = {token: tokenizer.encode(token, add_special_tokens=False) for token in placeholders}
    except BaseException as error:  # of the tokenizers library: Exception, or PanicException of its Rust code
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        text = f"a tokenizer that can't be opened ({first_line(error)})"
        raise InputError(str(folder / name), text, expected, action) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        text = f"tokenizer_class {type(tokenizer).__name__}"
        raise InputError(str(folder / name), text, "a class that reads tokenizer.json", action)
    for token, number in placeholders.items():
        if found[token] != [number]:
            text = f"{token} as token {', '.join(map(str, found[token]))}"
            expected = f"token {number}, as config.json says: the tokenizer of this model"
            raise InputError(str(folder / "tokenizer.json"), text, expected, action)
    if (largest := max(tokenizer.get_vocab().values())) >= config.text_config.vocab_size:
        text = f"token {tokenizer.convert_ids_to_tokens(largest)!r:.60} as number {largest}"
        expected = f"numbers below {config.text_config.vocab_size}, the embeddings that config.json names"
        raise InputError(str(folder / "tokenizer.json"), text, expected, action)
    return tokenizer


def _random_merges(tokenizer: JsonObject) -> bool:
    model = tokenizer.get("model")
    return isinstance(model, dict) and bool(model.get("dropout"))


def check_codec_fits(base: BaseModel, where: object, num_codebooks: int, codebook_size: int) -> None:
    """Raise InputError unless the codec or the codes at `where` have the shape that the model expects."""
    config = base.config
    if (num_codebooks, codebook_size) != (config.audio_num_codebooks, config.audio_codebook_size):
        shape = f"{config.audio_num_codebooks} codebooks of {config.audio_codebook_size} codes"
        raise InputError(
            str(where),
            f"{num_codebooks} codebooks of {codebook_size} codes",
            f"{shape}, as {base.folder / 'config.json'} says",
            "Name the codec this model was trained with (--audio-tokenizer), or another model (--model); a corpus "
            "of another codec must be encoded again, into a new folder.",
        )
