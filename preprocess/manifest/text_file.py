"""The text files of a manifest: read whole, unpacked where they are gzipped, in UTF-8."""

import codecs
import gzip
import io
import zlib
from pathlib import Path

from preprocess.common.errors import InputError

_GZIP_MAGIC = b"\x1f\x8b"
_MOST_BYTES = 4 << 30  # of a gzipped file, unpacked: far more than a million rows have


def manifest_suffix(path: Path) -> str:
    """The suffix that tells how a file is written, in lower case: ".jsonl" for cuts.jsonl and cuts.JSONL.gz."""
    name = Path(path.name.lower())
    return (Path(name.stem) if name.suffix == ".gz" else name).suffix


def _unpack(path: Path, data: bytes) -> bytes:
    """The unpacked bytes of a gzipped file. Raises InputError where they would fill the memory."""
    unpacked = gzip.GzipFile(fileobj=io.BytesIO(data)).read(_MOST_BYTES + 1)
    if len(unpacked) > _MOST_BYTES:
        found, expected = f"more than {_MOST_BYTES:,} bytes of text in {len(data):,} gzipped bytes", "a manifest"
        raise InputError(str(path), found, expected, "Unpack it and look at it; split it into several files.")
    return unpacked


def read_text_bytes(path: Path) -> bytes:
    """The bytes of a text file without a byte order mark; unpacked if it is gzipped, whatever its name.

    Raises InputError for gzip that is damaged or cut, for UTF-16, and for a file that the system can't read. Other
    invalid bytes cost only their rows.
    """
    try:
        data = path.read_bytes()
        if data.startswith(_GZIP_MAGIC):
            data = _unpack(path, data)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            str(path),
            f"a file that can't be read ({error})",
            "a whole text file, gzipped or not",
            "Copy the file again, or leave it out of --manifest.",
        ) from error
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InputError(str(path), "text in UTF-16", "UTF-8", f"Convert it: iconv -f UTF-16 -t UTF-8 {path.name}")
    return data.removeprefix(codecs.BOM_UTF8)
