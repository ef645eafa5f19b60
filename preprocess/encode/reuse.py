"""--reuse: codes and waveforms of an earlier corpus, for recordings that did not change.

A clip is reused where the sha256 of its source file, its part of that file (start, end, channel) and the codec are
the same. Its text, speaker and language are those of the new manifest. The shards have the same bytes with and
without --reuse.
"""

import functools
import json
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from preprocess.common.errors import InputError
from preprocess.common.json_file import JsonObject
from preprocess.common.progress import with_progress
from preprocess.common.say import say
from preprocess.corpus.shards import PLACES_SCHEMA, Corpus
from preprocess.plan.clips import ClipPlan

# Figures that depend on more than a clip's waveform: computed again from the new row, or from the codes.
_NOT_OF_AUDIO = ("letters_per_sec", "arabic_share", "code_entropy_bits")
# Of a clip's json member: which part of its source file it is.
PLACE_FIELDS = ("start_sec", "end_sec", "channel")
# Settings that change codes.
_CODE_SETTINGS = ("device", "precision")


@dataclass(frozen=True)
class Reused:
    """Audio that an earlier corpus has encoded: codes uint16 [codebooks, frames], and the sha256 of its source file.

    figures: those of the waveform, with speech_share where it was measured. flac: None unless it was asked for.
    """

    sha256: str
    duration_sec: float
    figures: dict[str, float]
    codes: npt.NDArray[np.uint16]
    flac: bytes | None


class EarlierCorpus:
    """A finished corpus whose clips are looked up by their recording."""

    def __init__(self, folder: Path) -> None:
        self.corpus = Corpus(folder, schema=PLACES_SCHEMA)
        self._lock = threading.Lock()  # for threads that read ahead: a Corpus closes files while it reads
        self._rows: dict[str, int] = {}
        num_rows = self.corpus.index.num_rows
        for row in with_progress(range(num_rows), num_rows, "reuse", "clips"):
            self._rows.setdefault(_identity(self.corpus.meta(row)), row)

    def find(self, plan: ClipPlan, waveform: bool) -> Reused | None:
        """The clip of the same audio, with its FLAC where `waveform`; None where there is none.

        Reads the recording's file to hash it, and decodes nothing.
        """
        row = self._rows.get(_identity({"source_sha256": plan.recording.sha256(), **recording_facts(plan)}))
        if row is None:
            return None
        with self._lock:
            clip = self.corpus.clip(row, waveform=waveform)
        figures = {name: value for name, value in clip.meta["quality"].items() if name not in _NOT_OF_AUDIO}
        return Reused(clip.meta["source_sha256"], clip.meta["duration_sec"], figures, clip.codes, clip.flac)


def recording_facts(plan: ClipPlan) -> JsonObject:
    """The fields of a clip's json member that say how its audio is made from the source file."""
    facts: JsonObject = {"start_sec": plan.recording.start_sec, "end_sec": plan.recording.end_sec}
    facts |= {} if plan.recording.channel is None else {"channel": plan.recording.channel}
    return facts | ({"augmentation": asdict(plan.augmentation)} if plan.augmentation else {})


def _identity(meta: JsonObject) -> str:
    names = ("source_sha256", *PLACE_FIELDS, "augmentation")
    return json.dumps([meta.get(name) for name in names], sort_keys=True)


@functools.cache
def open_earlier(folder: Path) -> EarlierCorpus:
    """The corpus in `folder`, read once per process; forked workers use their parent's."""
    return EarlierCorpus(folder)


def check_reuse(folder: Path, out: Path, settings: JsonObject) -> JsonObject:
    """What corpus.json records of --reuse: {"reused_pins": versions and instruction set that made the earlier codes}
    where they differ from today's; {} where they do not, since the bytes are then the same with and without it.

    Raises InputError for a corpus that is not finished, is `out` itself, was encoded otherwise, or lacks waveforms.
    """
    if folder.resolve() == out.resolve():
        found = "the folder that is to be written"
        raise InputError("--reuse", found, "an earlier corpus", "Name another folder with --out.")
    info = open_earlier(folder).corpus.info
    if info["codec"] != settings["codec"]:
        raise InputError(
            f"--reuse {folder}",
            f"codes of the codec {info['codec']['fingerprint'][:12]}",
            f"those of {settings['codec']['fingerprint'][:12]}, as --audio-tokenizer and --hubert are now",
            "Name the codec that made it, or encode afresh without --reuse.",
        )
    before, now = (" ".join(f"--{name} {of['settings'][name]}" for name in _CODE_SETTINGS) for of in (info, settings))
    if before != now:
        raise InputError(
            f"--reuse {folder}", f"codes made with {before}", now, "Use its flags, or encode afresh without --reuse."
        )
    if info["waveforms"]["format"] == "none" != settings["waveforms"]["format"]:
        raise InputError(
            f"--reuse {folder}",
            "a corpus without waveforms",
            f"{settings['waveforms']['format']} waveforms, as --waveforms says",
            "Give --waveforms none, or encode afresh without --reuse.",
        )
    other = {name: pin for name, pin in info["pins"].items() if settings["pins"].get(name) != pin}
    other |= info.get("reused_pins", {})
    if other:
        shown = ", ".join(f"{name} {pin}" for name, pin in sorted(other.items()))
        say(f"  --reuse: its codes were made with {shown}: a few may differ from today's; corpus.json records it")
    return {"reused_pins": other} if other else {}
