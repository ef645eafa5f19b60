"""--reuse: codes and waveforms of an earlier corpus, for recordings that did not change.

A clip is the same where the sha256 of its source file, its part of it (start, end) and the codec are the same; its
text, speaker and language are those of the new manifest. The shards are the bytes of a run without --reuse.
"""

import functools
import json
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from preprocess.common.errors import InputError
from preprocess.corpus.shards import PLACES_SCHEMA, Corpus
from preprocess.plan.clips import ClipPlan

# Figures of a clip that are not of its waveform alone: made anew for the new row, or from the codes.
_NOT_OF_AUDIO = ("letters_per_sec", "arabic_share", "code_entropy_bits")
# Settings that give other codes.
_CODE_SETTINGS = ("device", "precision")


@dataclass(frozen=True)
class Reused:
    """A clip of an earlier corpus: as Audio what does not depend on samples, and what was made of them.

    figures: those of the waveform, with speech_share where it was measured. codes: uint16 [codebooks, frames].
    """

    sha256: str
    duration_sec: float
    figures: dict[str, float]
    codes: np.ndarray
    flac: bytes | None


class EarlierCorpus:
    """A finished corpus whose clips are found by their recording."""

    def __init__(self, folder: Path) -> None:
        self.corpus = Corpus(folder, schema=PLACES_SCHEMA)
        self._lock = threading.Lock()  # a GPU's worker reads ahead in threads, and a Corpus closes files
        self._rows: dict[str, int] = {}
        for row in tqdm(range(self.corpus.index.num_rows), desc="reuse", unit="clip", leave=False):
            self._rows.setdefault(_identity(self.corpus.meta(row)), row)

    def find(self, plan: ClipPlan) -> Reused | None:
        """The clip of the same audio, if there is one. Reads the recording's file, and decodes nothing."""
        row = self._rows.get(_identity({"source_sha256": plan.recording.sha256(), **recording_facts(plan)}))
        if row is None:
            return None
        with self._lock:
            clip = self.corpus.clip(row, waveform=True)
        figures = {name: value for name, value in clip.meta["quality"].items() if name not in _NOT_OF_AUDIO}
        return Reused(clip.meta["source_sha256"], clip.meta["duration_sec"], figures, clip.codes, clip.flac)


def recording_facts(plan: ClipPlan) -> dict:
    """What a clip's json member says of how its sound is made from the source file."""
    facts = {"start_sec": plan.recording.start_sec, "end_sec": plan.recording.end_sec}
    return facts | ({"augmentation": asdict(plan.augmentation)} if plan.augmentation else {})


def _identity(meta: dict) -> str:
    names = ("source_sha256", "start_sec", "end_sec", "augmentation")
    return json.dumps([meta.get(name) for name in names], sort_keys=True)


@functools.cache
def open_earlier(folder: Path) -> EarlierCorpus:
    """Read once a process: a forked worker finds its parent's."""
    return EarlierCorpus(folder)


def check_reuse(folder: Path, out: Path, settings: dict) -> dict:
    """What the settings gain by --reuse: `reused_pins`, where the earlier codes were made by other packages' versions
    or another instruction set; else nothing, since the bytes are the same with and without it.

    Raises InputError for a corpus that is not finished, is `out` itself, or has other codes or no waveforms.
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
            f"--reuse {folder}", f"codes made with {before}", now, "Give the same, or encode afresh without --reuse."
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
        print(f"  --reuse: its codes were made with {shown}: a few may differ from today's; corpus.json says so")
    return {"reused_pins": other} if other else {}
