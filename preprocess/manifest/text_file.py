"""Text files of a manifest as bytes in UTF-8, whether they are compressed by gzip or not."""

import codecs
import gzip
import zlib
from pathlib import Path

from preprocess.common.errors import InputError

_GZIP_MAGIC = b"\x1f\x8b"


def manifest_suffix(path: Path) -> str:
    """The suffix that says what a file holds, in lower case and without .gz: ".jsonl" for cuts.jsonl.gz."""
    path = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    return path.suffix.lower()


def read_text_bytes(path: Path) -> bytes:
    """The bytes of a text file, unpacked where it is gzip by its first bytes, without a byte order mark.

    Raises InputError for a broken gzip and for UTF-16; other bytes that are no UTF-8 cost only their rows.
    """
    data = path.read_bytes()
    if data.startswith(_GZIP_MAGIC):
        data = _unpack(path, data)
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InputError(str(path), "text in UTF-16", "UTF-8", f"Convert it: iconv -f UTF-16 -t UTF-8 {path.name}")
    return data.removeprefix(codecs.BOM_UTF8)


def _unpack(path: Path, data: bytes) -> bytes:
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:  # a bad check sum or trailing bytes, cut short, broken inside
        action = "Copy or download the file again."
        raise InputError(str(path), f"a broken gzip file ({error})", "a whole one", action) from error
