"""--noisy-references: noisy copies of a share of the clips, which serve only as references.

A noisy copy is drawn as a reference for other clips of its speaker, never for the clip that it copies, so the model
gets a poor recording and answers with clean speech. The seed and the clip's key alone decide which clips have a copy
and what its noise and room are. Clips of --val-manifest, and of voices whose references are not drawn, have none.
Screening and quality figures are those of the clean recording, except for the entropy of the codes.
"""

import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from preprocess.audio.decode import Header, probe
from preprocess.audio.noise import Augmentation
from preprocess.common.errors import InputError, Rejected, join_some
from preprocess.common.files import cached_sha256
from preprocess.common.progress import with_progress
from preprocess.plan.clips import ClipTable
from preprocess.plan.settings import Settings

KEY_SUFFIX = "-noisy"
_SNR_DB = 5.0, 15.0
_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")


def add_noisy_references(settings: Settings, table: ClipTable, headers: dict[str, Header]) -> None:
    """Put the noisy copies into `table` and `headers`. Raises InputError for folders or files that can't be used."""
    noises, responses = _Files("--noise", settings.noise), _Files("--room-responses", settings.room_responses)
    clips = [table.clips[key] for key in sorted(headers) if key not in (table.validation or ())]
    num_clips = Counter(clip.speaker for clip in clips)
    drawing = {clip.speaker for clip in clips if clip.draws_reference and num_clips[clip.speaker] > 1}
    for clip in with_progress(clips, len(clips), "noise", "clips"):
        digest = hashlib.sha256(f"{settings.seed}:noisy:{clip.key}".encode()).digest()
        if clip.speaker not in drawing or int.from_bytes(digest[:8]) >= settings.noisy_references * 2**64:
            continue
        duration_sec = headers[clip.key].duration_sec
        noisy = replace(
            clip,
            key=clip.key + KEY_SUFFIX,
            draws_reference=False,
            system_text="",
            dialogues=[],
            derived_from=clip.key,
            augmentation=_choose_augmentation(int.from_bytes(digest[8:16]), duration_sec, noises, responses),
        )
        table.clips[noisy.key], headers[noisy.key] = noisy, headers[clip.key]
    for files in (noises, responses):
        files.refuse_problems()


class _Files:
    """The audio files in the folder that `flag` names, each opened and hashed when it is first chosen."""

    def __init__(self, flag: str, folder: Path | None) -> None:
        self.flag = flag
        self.names: list[str] = []
        self.paths: dict[str, Path] = {}
        self.problems: list[Rejected] = []
        self._known: dict[str, tuple[float, str]] = {}
        if folder is None:
            return
        paths = (path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
        self.paths = {str(path.relative_to(folder)): path for path in paths}
        self.names = sorted(self.paths)
        if not self.names:
            found = "no audio files" if folder.is_dir() else "no such folder"
            expected = f"{', '.join(_SUFFIXES)} files in {folder}, or in folders inside"
            raise InputError(flag, found, expected, "Name another folder.")

    def choose(self, rng: np.random.Generator) -> tuple[str, float, str]:
        """(name, seconds, sha256) of a random file; one that can't be used is kept in `problems`."""
        name = self.names[int(rng.integers(len(self.names)))]
        if name not in self._known:
            try:
                self._known[name] = probe(self.paths[name]).duration_sec, cached_sha256(self.paths[name])
            except Rejected as rejected:
                self.problems.append(rejected)
                self._known[name] = 0.0, ""
        return name, *self._known[name]

    def refuse_problems(self) -> None:
        """Raise InputError if a chosen file can't be used."""
        if self.problems:
            shown = join_some((f"{problem.where}: {problem.found}" for problem in self.problems), 5)
            found = f"{len(self.problems)} files without audio ({shown})"
            raise InputError(self.flag, found, "audio files", "Remove them.")


def _choose_augmentation(seed: int, duration_sec: float, noises: _Files, responses: _Files) -> Augmentation:
    """A signal-to-noise ratio, and where there are files a noise, the part of it, and a room response."""
    rng = np.random.default_rng(seed)
    chosen = Augmentation(seed, round(float(rng.uniform(*_SNR_DB)), 2))
    position = float(rng.uniform())
    if noises.names:
        name, noise_sec, sha256 = noises.choose(rng)
        start_sec = round(position * max(noise_sec - duration_sec, 0.0), 3)
        chosen = replace(chosen, noise=name, noise_sha256=sha256, noise_start_sec=start_sec)
    if responses.names:
        name, _, sha256 = responses.choose(rng)
        chosen = replace(chosen, response=name, response_sha256=sha256)
    return chosen
