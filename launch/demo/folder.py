"""The demo's folder: its paths, its lock, and an earlier demo that is kept until the new one is ready."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from preprocess.common.errors import InputError, join_some
from preprocess.common.locks import locked
from preprocess.common.say import say


class Folder:
    """The paths in a demo's folder `out`, as its commands use them."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.corpus, self.base, self.codec, self.hubert = (out / n for n in ("corpus", "base", "codec", "hubert"))
        self.shards, self.run, self.merged, self.speech = (out / n for n in ("shards", "run", "merged", "speech.wav"))


@contextlib.contextmanager
def new_demo_folder(out: Path) -> Iterator[Folder]:
    """The paths of a new demo. Inside, `out` does not exist yet, and is locked against other demos.

    An earlier demo is renamed to NAME.old. It is deleted if the block succeeds and gets its name back if it fails.
    A demo that was killed with SIGKILL leaves both: the next one then deletes the unfinished demo and keeps NAME.old
    as the earlier one. Raises InputError if another demo is running, or if `out` has files that no demo makes.
    """
    earlier = out.with_name(f"{out.name}.old")
    out.parent.mkdir(parents=True, exist_ok=True)
    taken = InputError(str(out), "another demo that is running", "one at a time", "Wait for it, or stop it.")
    action = "Name a folder on another file system with --out."
    with locked(out.with_name(f".{out.name}.lock"), action, taken=taken):
        _refuse_other_files(out)
        if earlier.exists():
            shutil.rmtree(out, ignore_errors=True)
        elif out.exists():
            out.rename(earlier)
        try:
            yield Folder(out)
        except BaseException:
            if earlier.exists():
                shutil.rmtree(out, ignore_errors=True)
                earlier.rename(out)
                say(f"{out}: the earlier demo, as it was")
            raise
        if earlier.exists():
            earlier.rename(out / ".old")  # so that a deletion cut short never counts as an earlier demo
            shutil.rmtree(out / ".old")


def _refuse_other_files(out: Path) -> None:
    known = {path.name for path in vars(Folder(out)).values()} | {".old"}
    expected, action = "an earlier demo, which is replaced, or nothing", "Move it away, or name another --out."
    if out.exists() and not out.is_dir():
        raise InputError(str(out), "a file", expected, action)
    others = sorted(path.name for path in out.glob("*") if path.name not in known)
    if others:
        raise InputError(str(out), f"files that no demo makes: {join_some(others, 5)}", expected, action)
