"""Recordings outside --audio-root: a manifest of a stranger could name any file that the user may read."""

import functools
import os
from collections.abc import Iterable
from pathlib import Path

from preprocess.common.errors import InputError
from preprocess.common.shell import shell_line
from preprocess.manifest.read import Manifest
from preprocess.plan.clips import ClipTable


def refuse_outside(manifest: Manifest, table: ClipTable, roots: Iterable[Path]) -> None:
    """Raise one InputError where clips lie in none of `roots`, also where a link leads out of them.

    A recording inside a file of the manifest is no path of its own.
    """
    folders = [os.path.realpath(root) for root in roots]
    outside = {
        key: clip.path
        for key, clip in table.clips.items()
        if clip.recording.row is None and not any(_is_inside(_real(clip.path), folder) for folder in folders)
    }
    if not outside:
        return
    common = os.path.commonpath([os.path.dirname(path) for path in outside.values()])
    of_all = os.path.commonpath([os.path.dirname(clip.path) for clip in table.clips.values()])
    use = next((use for use in table.uses if use.key in outside), None)
    where = manifest.where(use.line) if use else str(manifest.path)
    first = outside[use.key] if use else next(iter(outside.values()))
    action = "Add --allow-outside to read whatever the manifest names."
    if _all_absolute(manifest) and os.path.dirname(of_all) != of_all and _holds(of_all, outside.values()):
        action = f"Add {shell_line('--audio-root', of_all)}, the folder of them all; or --allow-outside."
    raise InputError(
        where,
        f"{first}, and {len(outside)} of {len(table.clips)} recordings in all that lie outside (under {common})",
        f"recordings under {' or '.join(dict.fromkeys(folders))}, where no link leads out of it",
        action,
    )


def _all_absolute(manifest: Manifest) -> bool:
    """Whether another --audio-root changes what no path of the manifest means."""
    return all(os.path.isabs(audio.path) for row in manifest.rows for audio, _ in row.recordings)


def _holds(root: str, paths: Iterable[str]) -> bool:
    folder = os.path.realpath(root)
    return all(_is_inside(_real(path), folder) for path in paths)


def _is_inside(path: str, folder: str) -> bool:
    return path.startswith(folder if folder.endswith(os.sep) else folder + os.sep)


def _real(path: str) -> str:
    """The path without links. A million recordings lie in few folders, each of which is resolved once."""
    if os.path.islink(path):
        return os.path.realpath(path)
    folder, name = os.path.split(path)
    return os.path.join(_real_folder(folder), name)


@functools.cache
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)
