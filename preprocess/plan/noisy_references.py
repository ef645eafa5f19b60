"""--noisy-references: a second clip of a share of the recordings, spoilt by noise and a room.

Such a clip is drawn as a reference and is never a target, nor the reference of its own clean clip: the model hears a
poor recording and answers with clean speech. Which clips, and how each is spoilt, depends on the seed and the clip's
key alone. Voices of which no reference is drawn, and the clips of --val-manifest, have none. Screening and quality
figures are those of the clean recording, but for the entropy of the codes.
"""

import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from preprocess.audio.decode import Header, probe
from preprocess.audio.noise import Augmentation
from preprocess.common.errors import InputError, Rejected
from preprocess.common.files import sha256_unchanged
from preprocess.plan.clips import ClipTable
from preprocess.plan.settings import Settings

KEY_SUFFIX = "-noisy"
_SNR_DB = 5.0, 15.0
_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")


def add_noisy_references(settings: Settings, table: ClipTable, headers: dict[str, Header]) -> None:
    """Put the second clips into `table` and `headers`. Raises InputError for folders or files that can't be used."""
    noises, responses = _Files("--noise", settings.noise), _Files("--room-responses", settings.room_responses)
    clips = [table.clips[key] for key in sorted(headers) if key not in (table.validation or ())]
    num_clips = Counter(clip.speaker for clip in clips)
    drawing = {clip.speaker for clip in clips if clip.draws_reference and num_clips[clip.speaker] > 1}
    for clip in tqdm(clips, desc="noise", unit="clip", leave=False):
        digest = hashlib.sha256(f"{settings.seed}:noisy:{clip.key}".encode()).digest()
        if clip.speaker not in drawing or int.from_bytes(digest[:8]) >= settings.noisy_references * 2**64:
            continue
        noisy = replace(
            clip,
            key=clip.key + KEY_SUFFIX,
            draws_reference=False,
            system_text="",
            dialogues=[],
            derived_from=clip.key,
            augmentation=_choose(int.from_bytes(digest[8:16]), headers[clip.key].duration_sec, noises, responses),
        )
        table.clips[noisy.key], headers[noisy.key] = noisy, headers[clip.key]
    for files in (noises, responses):
        files.refuse_problems()


class _Files:
    """The audio files of a folder by name, each opened and hashed when it is first chosen."""

    def __init__(self, flag: str, folder: Path | None) -> None:
        self.flag, self.folder, self.problems = flag, folder, []
        self._known: dict[str, tuple[float, str]] = {}
        paths = folder.rglob("*") if folder else ()
        self.names = sorted(str(path.relative_to(folder)) for path in paths if path.suffix.lower() in _SUFFIXES)
        if folder and not self.names:
            found = "no audio files" if folder.is_dir() else "no such folder"
            expected = f"{', '.join(_SUFFIXES)} files in {folder}, or in folders inside"
            raise InputError(flag, found, expected, "Name another folder.")

    def about(self, name: str) -> tuple[float, str]:
        """(seconds, sha256) of a file; a file that can't be used is a problem for later."""
        if name not in self._known:
            path = self.folder / name
            try:
                self._known[name] = probe(path).duration_sec, sha256_unchanged(path)
            except Rejected as rejected:
                self.problems.append(rejected)
                self._known[name] = 0.0, ""
        return self._known[name]

    def refuse_problems(self) -> None:
        if self.problems:
            shown = "; ".join(f"{problem.where}: {problem.found}" for problem in self.problems[:5])
            more = ", ..." * (len(self.problems) > 5)
            raise InputError(
                self.flag, f"{len(self.problems)} files without audio ({shown}{more})", "audio files", "Remove them."
            )


def _choose(seed: int, duration_sec: float, noises: _Files, responses: _Files) -> Augmentation:
    rng = np.random.default_rng(seed)
    snr_db, place = round(float(rng.uniform(*_SNR_DB)), 2), float(rng.uniform())
    how = {"seed": seed, "snr_db": snr_db}
    if noises.names:
        name = noises.names[int(rng.integers(len(noises.names)))]
        noise_sec, sha256 = noises.about(name)
        start_sec = round(place * max(noise_sec - duration_sec, 0.0), 3)
        how |= {"noise": name, "noise_sha256": sha256, "noise_start_sec": start_sec}
    if responses.names:
        name = responses.names[int(rng.integers(len(responses.names)))]
        how |= {"response": name, "response_sha256": responses.about(name)[1]}
    return Augmentation(**how)
