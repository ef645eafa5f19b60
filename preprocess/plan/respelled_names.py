"""Audio that is not under the name of its row: found where the Unicode form alone differs, else a near name is told.

macOS writes an é or a Vietnamese or Arabic letter with a mark as two characters (NFD), a manifest made elsewhere as
one (NFC). They look the same, and to Linux they are different names.
"""

import functools
import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from preprocess.audio.decode import NO_SUCH_FILE
from preprocess.common.errors import Rejected
from preprocess.plan.clips import ClipPlan


def find_respelled(missing: Iterable[ClipPlan], rejected: dict[str, Rejected]) -> list[ClipPlan]:
    """The clips whose file is there in another Unicode form; their `path` is now the one on disk.

    What is near to the name of the others, or which folder is not there, is put into their `rejected`.
    """
    found = []
    for clip in missing:
        path = find_on_disk(Path(clip.path))
        if path:
            clip.path = str(path)
            found.append(clip)
        else:
            rejected[clip.key] = _explain(rejected[clip.key], Path(clip.path), "\\" in clip.source)
    _find_folder.cache_clear()
    _list.cache_clear()
    return found


def find_on_disk(path: Path) -> Path | None:
    """The file of this name, its folders and itself in whichever Unicode form they are spelled; None without one."""
    folder = _find_folder(path.parent)
    name = _list(folder)[0].get(_nfc(path.name))
    return folder / name if name and (folder / name).is_file() else None


def _explain(error: Rejected, path: Path, has_backslash: bool) -> Rejected:
    folder, action = _find_folder(path.parent), error.action
    near = _list(folder)[1].get(_loose(path.name))
    found = f"{NO_SUCH_FILE}; its folder has {near!r}" if near else NO_SUCH_FILE
    if path.is_symlink():
        found = f"a link to {os.readlink(path)}, which is not there"
    elif path.is_dir():
        found = "a folder"
    elif folder is None:
        gone = next(parent for parent in reversed(path.parents) if not parent.is_dir())
        found = f"{NO_SUCH_FILE}, nor the folder {gone}"
    if has_backslash:
        action = "Write / for \\ in the paths of the manifest."
    return Rejected(error.status, error.reason, error.where, found, error.expected, action)


@functools.cache
def _find_folder(folder: Path) -> Path | None:
    """The folder of this name in whichever Unicode form, or None."""
    if folder.is_dir() or folder == folder.parent:
        return folder
    parent = _find_folder(folder.parent)
    name = _list(parent)[0].get(_nfc(folder.name))
    return parent / name if name and (parent / name).is_dir() else None


@functools.lru_cache(maxsize=4)
def _list(folder: Path | None) -> tuple[dict[str, str], dict[str, str]]:
    """The names in a folder by their NFC form, and by what is left of it without extension, case and outer spaces."""
    try:
        names = sorted(os.listdir(folder)) if folder else []
    except OSError:  # it may be entered, not listed
        names = []
    return {_nfc(name): name for name in names}, {_loose(name): name for name in names}


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _loose(name: str) -> str:
    return _nfc(Path(name.strip()).stem).casefold()
