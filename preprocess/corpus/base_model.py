"""What the offline stage needs to know of the base model: its codebooks and its text tokenizer."""

import functools
import json
from dataclasses import dataclass
from pathlib import Path

from boson_multimodal.data_types import ChatMLSample
from boson_multimodal.dataset.chatml_dataset import prepare_chatml_sample
from boson_multimodal.model.higgs_audio import HiggsAudioConfig
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from preprocess.common.errors import InputError
from preprocess.corpus.codec_facts import CodecFacts
from preprocess.corpus.dialogue import IGNORE_INDEX, audios_of
from preprocess.corpus.text import foreign_token, special_tokens

_MODEL_HELP = (
    "Download the base model (`hf download bosonai/higgs-audio-v2-generation-3B-base --local-dir BASE`) "
    "and name it with --model."
)
_AUDIO_TOKEN = "<|AUDIO_OUT|>"


@dataclass(frozen=True)
class BaseModel:
    """Number of codebooks and of codes in each, and the tokenizer of the text."""

    folder: Path
    num_codebooks: int
    codebook_size: int
    tokenizer: PreTrainedTokenizerFast

    @property
    def special_tokens(self) -> list[str]:
        return special_tokens(self.tokenizer)

    def num_tokens(self, text: str) -> int:
        """Tokens of a normalised text inside a turn."""
        return len(self.tokenizer.encode(text, add_special_tokens=False))

    def dialogue_tokens(self, dialogue: ChatMLSample) -> tuple[int, int]:
        """(tokens, labelled tokens) of a dialogue, its audios not counted: each has one token that stands for it."""
        input_ids, label_ids, audios, _ = prepare_chatml_sample(dialogue, self.tokenizer)
        assert input_ids is not None, "Boson refuses a dialogue that the manifest's checks let through"
        num_trained = sum(audio.trained for audio in audios_of(dialogue))
        return len(input_ids) - len(audios), sum(label != IGNORE_INDEX for label in label_ids) - num_trained


@functools.cache
def read_base_model(folder: Path) -> BaseModel:
    """Read config and tokenizer, not the weights; once a process. Raises InputError for what is not there."""
    path = folder / "config.json"
    if not path.is_file():
        found = "no config.json" if folder.is_dir() else "no such folder"
        raise InputError(str(folder), found, "a Higgs Audio v2 model folder", _MODEL_HELP)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(str(path), f"broken JSON ({error})", "the model's configuration", _MODEL_HELP) from error
    model_type = config.get("model_type") if isinstance(config, dict) else None
    if model_type != "higgs_audio":
        raise InputError(str(path), f"model_type {model_type!r}", "'higgs_audio'", _MODEL_HELP)
    config = HiggsAudioConfig.from_pretrained(folder, local_files_only=True)
    tokenizer = _read_tokenizer(folder)
    audio_token = tokenizer.convert_tokens_to_ids(_AUDIO_TOKEN)
    if audio_token != config.audio_out_token_idx:
        raise InputError(
            str(folder / "tokenizer.json"),
            f"{_AUDIO_TOKEN} as token {audio_token}",
            f"token {config.audio_out_token_idx}, as {path.name} says: the tokenizer of this model",
            _MODEL_HELP,
        )
    return BaseModel(folder, config.audio_num_codebooks, config.audio_codebook_size, tokenizer)


def _read_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    missing = [name for name in ("tokenizer_config.json", "tokenizer.json") if not (folder / name).is_file()]
    if missing:
        found = f"no {' and no '.join(missing)}"
        raise InputError(str(folder), found, "the tokenizer's files beside the model's", _MODEL_HELP)
    name = "tokenizer.json"
    try:
        Tokenizer.from_file(str(folder / name))
        name = "tokenizer_config.json"  # the other one is whole: what fails now is this one's fault
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises nothing more special
        found = f"a tokenizer that can't be opened ({str(error).splitlines()[0]})"
        raise InputError(str(folder / name), found, "the file as it was downloaded", _MODEL_HELP) from error


def check_system_text(base: BaseModel, text: str) -> None:
    """Raise InputError for a special token in the system text: it would change the structure of every prompt."""
    special = foreign_token(text, base.special_tokens)
    if special:
        raise InputError("--system-text", f"the special token {special}", "words alone", "Remove it from the text.")


def check_codec_fits(base: BaseModel, codec_folder: Path, facts: CodecFacts) -> None:
    """Raise InputError unless the codec has the codebooks that the model expects."""
    if (facts.num_codebooks, facts.codebook_size) != (base.num_codebooks, base.codebook_size):
        raise InputError(
            str(codec_folder),
            f"a codec with {facts.num_codebooks} codebooks of {facts.codebook_size} codes",
            f"{base.num_codebooks} codebooks of {base.codebook_size}, as {base.folder / 'config.json'} says",
            "Name the codec this model was trained with (--audio-tokenizer), or another model (--model).",
        )
