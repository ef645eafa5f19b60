"""Boson's audio tokenizer, loaded offline by Boson's own loader.

Boson's constructor downloads HuBERT from the hub and runs code that comes with it. Inside `hubert_from` that call
opens a local folder instead, without remote code. The serve engine loads inside it too:

    with hubert_from(hubert_folder):
        engine = HiggsAudioServeEngine(model_folder, codec_folder, device="cpu")
"""

import contextlib
import functools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from boson_multimodal.audio_processing import higgs_audio_tokenizer as boson
from boson_multimodal.audio_processing.higgs_audio_tokenizer import HiggsAudioTokenizer
from pydantic import ValidationError
from transformers import AutoModel, HubertConfig

from preprocess.codec.config_forms import CodecForm, HubertForm, check_config
from preprocess.codec.fast_encode import speed_up_tokenizer
from preprocess.codec.fingerprint import HUBERT_KEYS, codec_fingerprint
from preprocess.codec.freed_memory import return_freed_memory
from preprocess.codec.native_layout import MODEL_TYPE, WEIGHTS_FILE, NativeForm, boson_config, native_name
from preprocess.codec.precision import BOSON_MODE, EncodeMode, set_precision
from preprocess.common.errors import InputError, explain_model_errors, join_some
from preprocess.common.hub_folder import refuse_adapter, refuse_code_and_paths, refuse_other_model
from preprocess.common.json_file import JsonObject, read_json_object
from preprocess.common.record import first_problem
from preprocess.common.say import say
from preprocess.common.tensor_file import read_tensors
from preprocess.corpus.codec_facts import CodecFacts
from preprocess.corpus.shards import Corpus

# The newest one in the layout of Boson's own code.
CODEC_REVISION = "9d4988fbd4ad07b4cac3a5fa462741a41810dbec"

_HUBERT_HELP = "Download HuBERT (`hf download bosonai/hubert_base --local-dir HUBERT`) and name it with --hubert."
CODEC_HELP = (
    f"Download the codec (`hf download bosonai/higgs-audio-v2-tokenizer --revision {CODEC_REVISION} "
    "--local-dir CODEC`) and name it with --audio-tokenizer."
)


@contextlib.contextmanager
def hubert_from(folder: Path | str) -> Iterator[None]:
    """Inside, HiggsAudioTokenizer opens HuBERT from `folder`: no network, no remote code.

    Raises InputError if the folder holds no HuBERT, lacks weights, or asks to run code of its own.
    """
    folder = Path(folder).absolute()
    _check_hubert(folder)

    class FromFolder:
        @staticmethod
        def from_pretrained(name: str, **bosons_options: object) -> Any:
            options = {"local_files_only": True, "trust_remote_code": False, "output_loading_info": True}
            with explain_model_errors(folder, _HUBERT_HELP, "a HuBERT that transformers refuses"):
                model, loading = AutoModel.from_pretrained(folder, **options)
            if loading["missing_keys"]:
                found = f"weights without {join_some(sorted(loading['missing_keys']), 3)}"
                expected = f"all weights of {type(model).__name__}, as {name} has them"
                raise InputError(str(folder), found, expected, _HUBERT_HELP)
            return model

    before = boson.AutoModel
    boson.AutoModel = FromFolder
    try:
        yield
    finally:
        boson.AutoModel = before


def _check_hubert(folder: Path) -> None:
    path = folder / "config.json"
    config = read_json_object(path, "config.json of a HuBERT folder", _HUBERT_HELP)
    plain = "If the weights are those of a plain HubertModel, take auto_map out of the file."
    refuse_code_and_paths(path, config, f"{_HUBERT_HELP} {plain}")
    refuse_other_model(path, config, _HUBERT_HELP)
    refuse_adapter(folder, _HUBERT_HELP)
    if config.get("model_type") != "hubert":
        raise InputError(str(path), f"model_type {config.get('model_type')!r}", "'hubert'", _HUBERT_HELP)
    check_config(path, config, HubertForm, read_tensors(_hubert_weights(folder), _HUBERT_HELP), _HUBERT_HELP)


def _hubert_weights(folder: Path) -> Path:
    """The one weight file that transformers reads. Raises InputError where there is none, or an index of others."""
    names, found = ("model.safetensors", "pytorch_model.bin"), "no weights"
    for name in names:
        if (folder / name).is_file():
            return folder / name
        if (folder / f"{name}.index.json").exists():
            found = f"{name}.index.json, an index of several files"
            break
    raise InputError(str(folder), found, " or ".join(names), _HUBERT_HELP)


def load_codec(folder: Path, hubert: Path, mode: EncodeMode = BOSON_MODE) -> tuple[HiggsAudioTokenizer, CodecFacts]:
    """Boson's tokenizer and its facts. A process keeps the one it loaded last; forked workers share their parent's.

    The tokenizer's attribute `faster_forms` is the result of `speed_up_tokenizer`.

    folder: of either layout. Raises InputError for a missing folder or file, and for weights that do not fit the
    configuration: Boson loads with strict=False, which silently leaves random weights.
    """
    return _load(folder, hubert, mode)


def open_codec(folder: Path, hubert: Path, mode: EncodeMode = BOSON_MODE) -> HiggsAudioTokenizer:
    """Boson's tokenizer as Boson's own loader gives it, from a folder of either layout. Raises as load_codec does."""
    config = read_json_object(folder / "config.json", "config.json of a codec folder", CODEC_HELP)
    load = _load_native if config.get("model_type") == MODEL_TYPE else _load_boson
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # Boson uses torch's deprecated weight_norm
        return load(folder, config, hubert, mode)


@functools.lru_cache(maxsize=1)  # weights of 1 GB
def _load(folder: Path, hubert: Path, mode: EncodeMode) -> tuple[HiggsAudioTokenizer, CodecFacts]:
    tokenizer = open_codec(folder, hubert, mode)
    _ = boson.librosa.resample  # imports this part of librosa now, not in every forked worker
    fingerprint = codec_fingerprint(tokenizer)
    with explain_model_errors(folder, CODEC_HELP, "a codec that can't be run"):
        tokenizer.faster_forms = speed_up_tokenizer(tokenizer, mode)
        set_precision(tokenizer, mode)
    return tokenizer, CodecFacts(
        num_codebooks=tokenizer.n_q,
        codebook_size=tokenizer.quantizer.bins,  # tokenizer.codebook_size is the quantizer's dimension
        frame_rate_hz=float(tokenizer.sample_rate / tokenizer.hop_length),
        sample_rate_hz=tokenizer.sample_rate,
        fingerprint=fingerprint,
    )


def _load_boson(folder: Path, config: JsonObject, hubert: Path, mode: EncodeMode) -> HiggsAudioTokenizer:
    """From config.json and model.pth, by Boson's own loader."""
    weights = folder / "model.pth"
    if not weights.is_file():
        raise InputError(str(folder), "no model.pth", "the codec's weights", CODEC_HELP)
    state = read_tensors(weights, CODEC_HELP)
    check_config(folder / "config.json", config, CodecForm, state, CODEC_HELP)
    with hubert_from(hubert), explain_model_errors(folder, CODEC_HELP, "a codec that Boson's loader refuses"):
        tokenizer = boson.load_higgs_audio_tokenizer(str(folder), device=mode.device)
        result = tokenizer.load_state_dict(state, strict=False)
    _refuse_missing([key for key in result.missing_keys if not key.startswith("semantic_model.")], weights)
    _warn_of_unused(result.unexpected_keys, weights)
    return tokenizer


def _load_native(folder: Path, native: JsonObject, hubert: Path, mode: EncodeMode) -> HiggsAudioTokenizer:
    """From the files of transformers 5, into Boson's class."""
    path, weights = folder / "config.json", folder / WEIGHTS_FILE
    config = _from_native(path, native)
    if not weights.is_file():
        raise InputError(str(folder), f"no {WEIGHTS_FILE}", "the codec's weights", CODEC_HELP)
    state = read_tensors(weights, CODEC_HELP)
    check_config(path, config, CodecForm, state, CODEC_HELP)
    with hubert_from(hubert), explain_model_errors(folder, CODEC_HELP, "a codec that Boson's class refuses"):
        tokenizer = boson.HiggsAudioTokenizer(**config, device=mode.device)
        _refuse_other_hubert(path, native["semantic_model_config"], tokenizer)
    for module in (*tokenizer.encoder.modules(), *tokenizer.decoder_2.modules()):
        if hasattr(module, "weight_g"):
            torch.nn.utils.remove_weight_norm(module)  # it is in the file's weights already
    names = {name: native_name(name, len(config["ratios"])) for name in tokenizer.state_dict()}
    unread = "semantic_model.masked_spec_embed"  # which transformers does not need either
    missing = [name for name in names.values() if name not in state and name != unread]
    _refuse_missing(missing, weights)
    _warn_of_unused(sorted(state.keys() - names.values()), weights)
    given = {name: state[native] for name, native in names.items() if native in state}
    shapes = {name: tensor.shape for name, tensor in tokenizer.state_dict().items()}
    wrong = [
        f"{names[name]} {list(tensor.shape)} instead of {list(shapes[name])}"
        for name, tensor in given.items()
        if tensor.shape != shapes[name]
    ]
    if wrong:
        raise InputError(str(weights), join_some(wrong, 3), "the weights config.json describes", CODEC_HELP)
    tokenizer.load_state_dict(given, strict=False)
    return tokenizer.to(mode.device).eval()


def _from_native(path: Path, native: JsonObject) -> JsonObject:
    """The arguments of Boson's class, of a checked config of transformers 5."""
    expected = "the file as it was downloaded"
    refuse_code_and_paths(path, native, CODEC_HELP)
    refuse_other_model(path, native, CODEC_HELP)
    refuse_adapter(path.parent, CODEC_HELP)
    try:
        NativeForm.model_validate(native)
        return boson_config(native)
    except ValidationError as error:
        raise InputError(str(path), first_problem(error), expected, CODEC_HELP) from error
    except ValueError as error:
        found, wanted = ("; ".join(texts) for texts in zip(*error.args[0], strict=True))
        raise InputError(str(path), found, f"{wanted}, as Boson's class has it", CODEC_HELP) from error


def _refuse_other_hubert(path: Path, given: JsonObject, tokenizer: HiggsAudioTokenizer) -> None:
    """Raise InputError where the codec's config describes another HuBERT than --hubert, whose class is used."""
    wanted = HubertConfig(**{key: value for key, value in given.items() if key != "model_type"})
    found = tokenizer.semantic_model.config
    wrong = [key for key in HUBERT_KEYS if _plain(getattr(wanted, key)) != _plain(getattr(found, key))]
    if wrong:
        described = "; ".join(f"{key} {getattr(wanted, key)}" for key in wrong)
        expected = "; ".join(f"{key} {getattr(found, key)}" for key in wrong)
        where = f"{path}: semantic_model_config"
        raise InputError(where, described, f"{expected}, as --hubert has it", _HUBERT_HELP)


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _refuse_missing(names: list[str], weights: Path) -> None:
    if names:
        expected = "all weights that config.json describes"
        raise InputError(str(weights), f"no {join_some(sorted(names), 3)}", expected, CODEC_HELP)


def _warn_of_unused(names: list[str], weights: Path) -> None:
    if names:
        say(f"warning: {weights} holds {join_some(sorted(names), 3)}, which Boson's class does not use")


def resample_to_codec(
    waveform: npt.NDArray[np.float32], sample_rate_hz: int, codec_rate_hz: int
) -> npt.NDArray[np.float32]:
    """A waveform [samples] at the codec's sample rate, resampled as Boson's encode does it."""
    if sample_rate_hz != codec_rate_hz:
        waveform = boson.librosa.resample(waveform, orig_sr=sample_rate_hz, target_sr=codec_rate_hz)
    return waveform


def encode_waveform(
    tokenizer: HiggsAudioTokenizer, waveform: npt.NDArray[np.float32], sample_rate_hz: int
) -> npt.NDArray[np.uint16]:
    """Codes uint16 [codebooks, frames]: those of `tokenizer.encode(path)` for a file that decodes to `waveform`."""
    codes: npt.NDArray[np.uint16] = tokenizer.encode(waveform, sample_rate_hz).cpu().numpy().astype(np.uint16)
    return_freed_memory(waveform.shape[-1] / sample_rate_hz)
    return codes


def load_codec_of(corpus: Corpus, codec: Path, hubert: Path) -> tuple[HiggsAudioTokenizer, CodecFacts]:
    """As load_codec. Raises InputError too for a codec that the corpus was not made with."""
    tokenizer, facts = load_codec(codec, hubert)
    recorded = corpus.info["codec"]["fingerprint"]
    if facts.fingerprint != recorded:
        raise InputError(
            str(codec),
            f"a codec with fingerprint {facts.fingerprint[:12]}",
            f"{recorded[:12]}, as corpus.json says",
            "Name the codec and the HuBERT that the corpus was made with.",
        )
    return tokenizer, facts
