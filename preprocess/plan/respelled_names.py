"""Audio paths that do not exist: the file is found if only its Unicode form differs, else a similar name is reported.

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
    """The clips whose file exists in another Unicode form; their `path` becomes the one on disk.

    The others' entry in `rejected` gets the reason: a similar name, a missing folder, a broken link.
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
    _list_names.cache_clear()
    return found


def find_on_disk(path: Path) -> Path | None:
    """The file of this path, whose parts may have another Unicode form on disk; None if there is none."""
    found = _respell(path)
    return found if found and found.is_file() else None


def _explain(error: Rejected, path: Path, has_backslash: bool) -> Rejected:
    """`error` with what is there instead of the file."""
    folder, action = _find_folder(path.parent), error.action
    similar = _list_names(folder)[1].get(_simplify(path.name)) if folder else None
    found = f"{NO_SUCH_FILE}; its folder has {similar!r}" if similar else NO_SUCH_FILE
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
    """As find_on_disk, for a folder."""
    if folder.is_dir() or folder == folder.parent:
        return folder
    found = _respell(folder)
    return found if found and found.is_dir() else None


def _respell(path: Path) -> Path | None:
    folder = _find_folder(path.parent)
    name = _list_names(folder)[0].get(_nfc(path.name)) if folder else None
    return folder / name if folder and name else None


@functools.lru_cache(maxsize=4)
def _list_names(folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """The names in a folder by their NFC form, and by that form without extension, case and outer spaces."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:  # no right to list the folder
        names = []
    return {_nfc(name): name for name in names}, {_simplify(name): name for name in names}


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _simplify(name: str) -> str:
    return _nfc(Path(name.strip()).stem).casefold()
