"""The output folder across runs: the same settings in each, one run at a time, no leftovers of earlier runs."""

import contextlib
import importlib.metadata
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import soundfile
import torch

from preprocess.audio.decode import WAVEFORM_SAMPLE_RATE_HZ
from preprocess.common.errors import InputError, explain_write_errors
from preprocess.common.json_file import JsonObject, flatten
from preprocess.common.locks import locked
from preprocess.common.record import SEAL, Form, read_record, record_bytes, write_record
from preprocess.common.say import say
from preprocess.corpus.base_model import BaseModel
from preprocess.corpus.codec_facts import CodecFacts
from preprocess.corpus.shards import CORPUS_FILE, FORMAT_VERSION
from preprocess.corpus.text import NORMALISER_VERSION, tokenizer_fingerprint
from preprocess.encode.make_shard import FRAGMENTS_FOLDER, KEPT_SHARDS, ShardReport
from preprocess.manifest.read import Manifest
from preprocess.plan.settings import Settings
from preprocess.plan.slices import Slice

SETTINGS_FILE = "settings.json"
_BEGIN_LOCK, _SLICES_FILE = ".begin.lock", "slices.json"
_OTHER_FILE_SYSTEM = "Name a folder on another file system with --out."
_LOCK_PATIENCE_SEC = 3.0  # forked workers of a killed run hold its locks a moment longer
# Packages on whose version codes, waveforms, tokens or figures may depend.
_PINNED = (
    "boson-multimodal",
    "librosa",
    "numpy",
    "resemblyzer",
    "silero-vad",
    "soundfile",
    "soxr",
    "tokenizers",
    "torch",
    "torchaudio",
    "transformers",
    "webrtcvad-wheels",
)


def corpus_settings(settings: Settings, manifest: Manifest, base: BaseModel, codec: CodecFacts) -> JsonObject:
    """Everything that decides what the corpus holds. corpus.json records it; all runs on a folder share it."""
    flac = {"format": "flac", "sample_rate_hz": WAVEFORM_SAMPLE_RATE_HZ}
    return {
        "format_version": FORMAT_VERSION,
        "codec": asdict(codec),
        "text_tokenizer": {"fingerprint": tokenizer_fingerprint(base.tokenizer)},
        "layout": {
            "name": settings.layout,
            "system_text": settings.system_text,
            "normaliser_version": NORMALISER_VERSION,
            **({"keep_system": True} if settings.keep_system else {}),
            **({"allow_marks": True} if settings.allow_marks else {}),
        },
        "waveforms": flac if settings.waveforms == "flac" else {"format": "none", "sample_rate_hz": 0},
        "settings": {
            "manifest_sha256": manifest.sha256,
            "hours_per_shard": settings.hours_per_shard,
            **account_settings(settings),
            "device": settings.device,
            "precision": settings.precision,
            **({"noisy_references": settings.noisy_references} if settings.noisy_references else {}),
        },
        "pins": {
            **{name: importlib.metadata.version(name) for name in _PINNED},
            "libsndfile": soundfile.__libsndfile_version__,
            "instruction_set": torch.backends.cpu.get_cpu_capability(),
        },
    }


def account_settings(settings: Settings) -> JsonObject:
    """What decides which rows and clips a corpus keeps, and which are its validation split."""
    chosen = {"val_speakers": settings.val_speakers, "seed": settings.seed}
    return {**chosen, "screening": asdict(settings.screening)}


@contextlib.contextmanager
def hold_folder(out: Path, settings: JsonObject, part: Slice | None = None) -> Iterator[None]:
    """Make `out` where it is missing, and lock it, or one slice of it, for this run until the block ends.

    Raises InputError if another run holds it, if it was started with other settings or another number of slices, if
    its file system has no locks, and, until the block ends, if it can't be written.
    """
    path = out / SETTINGS_FILE
    own = {SETTINGS_FILE, f".{SETTINGS_FILE}.partial", _BEGIN_LOCK}
    with explain_write_errors(out, KEPT_SHARDS), contextlib.ExitStack() as held:
        if out.is_dir() and not path.is_file() and any(other.name not in own for other in out.iterdir()):
            raise InputError(
                str(out),
                "files that preprocess.shard did not write",
                "a new folder, or one that an earlier run of this command began",
                "Name another folder with --out.",
            )
        out.mkdir(parents=True, exist_ok=True)
        with locked(out / _BEGIN_LOCK, _OTHER_FILE_SYSTEM):  # slices may begin at the same moment
            if not path.is_file():
                write_record(path, settings)
            held.enter_context(_held(path, "another run that is writing here", shared=part is not None))
            _refuse_other_settings(out, _read_settings(path, settings), settings)
            if part:
                held.enter_context(_held(out / f".slice-{part.number}.lock", f"another run of slice {part}"))
                _refuse_other_count(out / _SLICES_FILE, part.count)
            (out / CORPUS_FILE).unlink(missing_ok=True)  # until this run ends, the folder is not finished
        yield


@contextlib.contextmanager
def hold_finish(out: Path) -> Iterator[None]:
    """Lock the writing of index and corpus.json until the block ends: two slices may end at the same moment."""
    try:
        with locked(out / _BEGIN_LOCK, _OTHER_FILE_SYSTEM):
            yield
    except KeyboardInterrupt as stop:
        stop.add_note("the shards are done and kept; run the same command again to write index and corpus.json")
        raise


def _held(path: Path, holder: str, shared: bool = False) -> contextlib.AbstractContextManager[None]:
    taken = InputError(str(path.parent), holder, "one run at a time", "Wait for it, or stop it.")
    return locked(path, _OTHER_FILE_SYSTEM, taken=taken, patience_sec=_LOCK_PATIENCE_SEC, shared=shared)


class _SlicesForm(Form):
    """Into how many slices the work on a folder is divided."""

    count: int


def _read_settings(path: Path, now: JsonObject) -> JsonObject:
    """The settings of the earlier runs on a folder; a damaged file is written again with those of this run.

    Nothing is lost by that: each finished shard names the settings that it was made with.
    """
    try:
        before = read_record(str(path), path.read_bytes(), Form, "Nothing to do: it is written again.")
    except InputError as damaged:
        say(damaged)
        path.write_bytes(record_bytes(now))  # in place: runs lock this very file
        return now
    return {name: value for name, value in before.items() if name != SEAL}


def _refuse_other_count(path: Path, count: int) -> None:
    if not path.is_file():
        write_record(path, {"count": count})
    action = f"If no slice is running, delete {path} and start all slices again: what is finished is kept."
    before = read_record(str(path), path.read_bytes(), _SlicesForm, action)["count"]
    if before != count:
        raise InputError(
            str(path),
            f"--slice i/{count}",
            f"--slice i/{before}, as other runs on this folder have it",
            f"Use {before} slices, or the command without --slice: it makes all missing shards.",
        )


def _refuse_other_settings(out: Path, before: JsonObject, now: JsonObject) -> None:
    before, now = flatten(before), flatten(now)
    names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    if names:
        raise InputError(
            str(out),
            "; ".join(f"{name} = {now.get(name)!r}" for name in names),
            "; ".join(f"{name} = {before.get(name)!r}" for name in names) + ", as in earlier runs on this folder",
            "Give the same settings to continue, or name a new folder with --out.",
        )


def remove_leftovers(out: Path, reports: list[ShardReport]) -> None:
    """Remove files of killed runs and earlier plans, so that the folder holds the shards of its corpus.json alone."""
    tars = {f"{report.name}.tar" for report in reports if report.rows}
    fragments = {f"{report.name}.json" for report in reports}
    leftovers = [*out.glob("shard-*.tar"), *out.glob(".*.partial"), *out.glob(".slice-*.lock"), out / _SLICES_FILE]
    for path in [*leftovers, *(out / FRAGMENTS_FOLDER).glob("*")]:
        if path.name not in tars | fragments:
            path.unlink(missing_ok=True)
