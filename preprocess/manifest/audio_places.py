"""Where the recordings lie that a manifest names by a path, a file's name or an id: found by looking at a few."""

import os
from collections.abc import Sequence
from pathlib import Path

AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".wma", ".webm", ".mp4", ".amr", ".sph")
_FOLDERS = ("wavs", "wav", "audio", "audios", "clips")
_TRIED = 20


def has_audio_suffix(name: str) -> bool:
    """Whether a name ends as audio files do."""
    return name.strip().lower().endswith(AUDIO_SUFFIXES)


def find_place(root: Path, names: Sequence[str]) -> str | None:
    """How a name becomes a path under `root`, for example "wavs/{}.wav"; None where not half of those tried exist.

    Names with a suffix are tried as they are and in the usual folders; others also with the suffixes of audio.
    """
    chosen = names[:: max(len(names) // _TRIED, 1)]
    folders = ["", *(f"{folder}/" for folder in _FOLDERS if (root / folder).is_dir())]
    # os.path.isfile: a whole text is no name of a file, which Path.is_file would raise about.
    suffixed = sum(map(has_audio_suffix, chosen)) * 2 > len(chosen)
    places = [f"{folder}{{}}" for folder in folders]
    if not suffixed:
        places = [place + suffix for place in reversed(places) for suffix in (*AUDIO_SUFFIXES, "")]
    shares = {place: sum(os.path.isfile(root / at_place(place, name)) for name in chosen) for place in places}
    best = max(places, key=shares.__getitem__)
    return best if shares[best] and 2 * shares[best] >= len(chosen) else None


def at_place(place: str, name: str) -> str:
    """The path of a name: find_place's way of writing, filled in."""
    return place.replace("{}", name.strip())
