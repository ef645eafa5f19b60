"""Boson's audio tokenizer, opened offline by Boson's own loader.

Boson's constructor fetches HuBERT from the hub by name and runs code that comes with it. `hubert_from` makes
that one call open a local folder instead, without remote code; the serve engine loads under it as well:

    with hubert_from(hubert_folder):
        engine = HiggsAudioServeEngine(model_folder, codec_folder, device="cpu")
"""

import contextlib
import functools
import hashlib
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from boson_multimodal.audio_processing import higgs_audio_tokenizer as boson
from transformers import AutoModel

from preprocess.codec.fast_encode import speed_up
from preprocess.codec.freed_memory import return_freed_memory
from preprocess.codec.precision import BOSON_MODE, EncodeMode, set_precision
from preprocess.common.errors import InputError, first_line
from preprocess.common.files import sha256_file
from preprocess.common.json_file import read_json_object
from preprocess.corpus.codec_facts import CodecFacts
from preprocess.corpus.shards import Corpus

_HUBERT_HELP = "Download HuBERT (`hf download bosonai/hubert_base --local-dir HUBERT`) and name it with --hubert."
_CODEC_HELP = (
    "Download the codec (`hf download bosonai/higgs-audio-v2-tokenizer --local-dir CODEC`) "
    "and name it with --audio-tokenizer."
)


@contextlib.contextmanager
def hubert_from(folder: Path | str) -> Iterator[None]:
    """Inside, HiggsAudioTokenizer opens HuBERT from `folder`: no network, no remote code.

    Raises InputError if the folder holds no HuBERT, lacks weights, or wants to run its own code.
    """
    folder = Path(folder).absolute()
    _check_hubert(folder)

    class FromFolder:
        @staticmethod
        def from_pretrained(name: str, **options: object) -> torch.nn.Module:
            options = {"local_files_only": True, "trust_remote_code": False, "output_loading_info": True}
            try:
                model, loading = AutoModel.from_pretrained(folder, **options)
            except Exception as error:  # transformers raises errors of every kind
                found = f"a HuBERT that transformers refuses ({first_line(error)})"
                raise InputError(str(folder), found, "config.json and weights of one HuBERT", _HUBERT_HELP) from error
            if loading["missing_keys"]:
                raise InputError(
                    str(folder),
                    f"weights without {_some(loading['missing_keys'])}",
                    f"all weights of {type(model).__name__}, as {name} has them",
                    _HUBERT_HELP,
                )
            return model

    before = boson.AutoModel
    boson.AutoModel = FromFolder
    try:
        yield
    finally:
        boson.AutoModel = before


def _check_hubert(folder: Path) -> None:
    config = read_json_object(folder / "config.json", "config.json of a HuBERT folder", _HUBERT_HELP)
    if "auto_map" in config:
        raise InputError(
            str(folder / "config.json"),
            "auto_map: the model would run Python code from its own folder",
            "a HuBERT of transformers' own class",
            "Remove auto_map from the config if the weights are those of a plain HubertModel.",
        )
    if config.get("model_type") != "hubert":
        raise InputError(
            str(folder / "config.json"), f"model_type {config.get('model_type')!r}", "'hubert'", _HUBERT_HELP
        )
    if not _hubert_weights(folder):
        raise InputError(str(folder), "no weights", "model.safetensors or pytorch_model.bin", _HUBERT_HELP)


def _hubert_weights(folder: Path) -> list[Path]:
    """The files transformers reads, safetensors first."""
    return sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))


def load_codec(
    folder: Path, hubert_folder: Path, mode: EncodeMode = BOSON_MODE
) -> tuple[boson.HiggsAudioTokenizer, CodecFacts]:
    """Boson's tokenizer and its facts; loaded once a process, so a forked worker finds its parent's.

    `faster_forms` of the tokenizer is what `speed_up` found on this processor.

    Raises InputError for a missing folder or file, and where weights and configuration do not fit each other:
    Boson loads with strict=False, which would leave random weights in silence.
    """
    return _load(folder, hubert_folder, mode)


@functools.cache
def _load(folder: Path, hubert_folder: Path, mode: EncodeMode) -> tuple[boson.HiggsAudioTokenizer, CodecFacts]:
    config = read_json_object(folder / "config.json", "config.json of a codec folder", _CODEC_HELP)
    weights = folder / "model.pth"
    if not weights.is_file():
        raise InputError(str(folder), "no model.pth", "the codec's weights", _CODEC_HELP)
    numbers = {name: config[name] for name in ("D", "bins", "n_q", "sample_rate") if name in config}
    wrong = [f"{name} {value!r:.80}" for name, value in numbers.items() if type(value) is not int or value < 1]
    if wrong:
        expected = "whole numbers above 0 (bins: one codebook size for all residual vectors)"
        raise InputError(str(folder / "config.json"), "; ".join(wrong), expected, _CODEC_HELP)
    with hubert_from(hubert_folder), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # Boson uses torch's older weight_norm
        try:
            tokenizer = boson.load_higgs_audio_tokenizer(str(folder), device=mode.device)
        except InputError:
            raise
        except Exception as error:  # errors of every kind
            raise InputError(
                str(folder),
                f"a codec that Boson's loader refuses ({first_line(error)})",
                "config.json and model.pth of one codec",
                _CODEC_HELP,
            ) from error
    _compare_keys(tokenizer, weights)
    _ = boson.librosa.resample  # librosa imports its parts on first use: now, rather than in every forked worker
    tokenizer.faster_forms = speed_up(tokenizer, mode)
    set_precision(tokenizer, mode)
    return tokenizer, CodecFacts(
        num_codebooks=tokenizer.n_q,
        codebook_size=tokenizer.quantizer.bins,  # tokenizer.codebook_size is the quantizer's dimension
        frame_rate_hz=float(tokenizer.sample_rate / tokenizer.hop_length),
        sample_rate_hz=tokenizer.sample_rate,
        fingerprint=_fingerprint(folder, Path(hubert_folder)),
    )


def _compare_keys(tokenizer: boson.HiggsAudioTokenizer, weights: Path) -> None:
    """Load the weights once more and listen to what torch says about keys."""
    state = torch.load(weights, map_location="cpu", weights_only=True)
    result = tokenizer.load_state_dict(state, strict=False)
    missing = [key for key in result.missing_keys if not key.startswith("semantic_model.")]
    if missing or result.unexpected_keys:
        found = [f"no {_some(missing)}"] if missing else []
        found += [f"unknown {_some(result.unexpected_keys)}"] if result.unexpected_keys else []
        raise InputError(str(weights), " and ".join(found), "exactly the weights config.json describes", _CODEC_HELP)


def _fingerprint(folder: Path, hubert_folder: Path) -> str:
    files = [folder / "config.json", folder / "model.pth", hubert_folder / "config.json"]
    digest = hashlib.sha256()
    for path in files + _hubert_weights(hubert_folder):
        digest.update(sha256_file(path).encode())
    return digest.hexdigest()


def _some(keys: list[str]) -> str:
    shown = ", ".join(sorted(keys)[:3])
    return shown if len(keys) <= 3 else f"{shown} and {len(keys) - 3} more"


def resample_to_codec(waveform: np.ndarray, sample_rate_hz: int, codec_rate_hz: int) -> np.ndarray:
    """A waveform at the codec's own rate, as Boson's encode resamples it."""
    if sample_rate_hz == codec_rate_hz:
        return waveform
    return boson.librosa.resample(waveform, orig_sr=sample_rate_hz, target_sr=codec_rate_hz)


def encode(tokenizer: boson.HiggsAudioTokenizer, waveform: np.ndarray, sample_rate_hz: int) -> np.ndarray:
    """uint16 [codebooks, frames]: the codes `tokenizer.encode(path)` gives for a file that decodes to `waveform`."""
    codes = tokenizer.encode(waveform, sample_rate_hz).cpu().numpy().astype(np.uint16)
    return_freed_memory(waveform.shape[-1] / sample_rate_hz)
    return codes


def load_codec_of(corpus: Corpus, codec: Path, hubert: Path) -> tuple[boson.HiggsAudioTokenizer, CodecFacts]:
    """As preprocess.codec.load.load_codec. Raises InputError for another codec than the corpus was made with."""
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
