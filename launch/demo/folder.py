"""The demo's folder: its paths, one demo at a time, and an earlier demo that stays until the new one is ready."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from preprocess.common.errors import InputError
from preprocess.common.locks import locked


class Folder:
    """The paths in a demo's folder `out`, as its commands name them."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.corpus, self.base, self.codec, self.hubert = (out / n for n in ("corpus", "base", "codec", "hubert"))
        self.shards, self.run, self.merged, self.speech = (out / n for n in ("shards", "run", "merged", "speech.wav"))


@contextlib.contextmanager
def replacing(out: Path) -> Iterator[Folder]:
    """Inside, `out` is free for a new demo, and no other demo may use it.

    An earlier demo is renamed, with ".old" after its name, and deleted when the block is done; where the block is
    not, the earlier demo gets its name back. A demo that was killed outright leaves both: the next one deletes what
    was begun and keeps the earlier one as it is. Raises InputError where another demo runs, or where `out` holds
    something that no demo makes.
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
                print(f"{out}: the earlier demo, as it was", flush=True)
            raise
        if earlier.exists():
            earlier.rename(out / ".old")  # in one step: what is left of a deletion never comes back as a demo
            shutil.rmtree(out / ".old")


def _refuse_other_files(out: Path) -> None:
    known = {path.name for path in vars(Folder(out)).values()} | {".old"}
    if out.exists() and not out.is_dir():
        raise InputError(str(out), "a file", "a folder, or nothing", "Name another place with --out.")
    others = sorted(path.name for path in out.glob("*") if path.name not in known)
    if others:
        raise InputError(
            str(out),
            f"what no demo makes: {', '.join(others[:5])}",
            "an earlier demo, which is replaced, or nothing",
            "Move it away, or name another place with --out.",
        )
