"""MP4, WebM, WMA and other files that ffmpeg alone reads: whether their parts are all there, and one file alone.

How much audio they hold, preprocess.audio.ffmpeg counts by the packets of their audio track.
"""

import re

from preprocess.audio.held.stream import Data, Stream

_WHOLE_FILE_MAGICS = {
    "WMA": re.compile(rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\x00\xaa\x00\x62\xce\x6c"),
    "WebM or Matroska": re.compile(rb"\x1aE\xdf\xa3.{1,48}\x42\x82", re.DOTALL),
    "AMR": re.compile(rb"#!AMR(-WB)?(_MC1\.0)?\n"),
}
_WMA_PROPERTIES = b"\xa1\xdc\xab\x8c\x47\xa9\xcf\x11\x8e\xe4\x00\xc0\x0c\x20\x53\x65"


def walk(data: Data, start: int) -> Stream | None:
    """The container at `start`; None where there is none."""
    if data[start + 4 : start + 8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        return _walk_boxes(data, start)
    for name, magic in _WHOLE_FILE_MAGICS.items():
        if magic.match(data, start):
            following = magic.search(data, start + 1)
            stop = following.start() if following else len(data)
            return Stream(name, start, stop, None, None, _cut_wma(data, start, stop) if name == "WMA" else None)
    return None


def _cut_wma(data: Data, start: int, stop: int) -> tuple[str, str] | None:
    """The cut of a WMA file whose File Properties Object gives it more bytes; a writer to a pipe leaves them 0."""
    at = data.find(_WMA_PROPERTIES, start, start + (1 << 16))
    declared = int.from_bytes(data[at + 40 : at + 48], "little") if at >= 0 else 0
    held = stop - start
    return (f"{held} bytes", f"{declared}, as its header says") if declared > held else None


def _walk_boxes(data: Data, start: int) -> Stream:
    """An MP4 file: boxes with their size each, ISO 14496-12 section 4.2; the next `ftyp` begins another file."""
    at, cut = start, None
    while at + 8 <= len(data):
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        elif size == 0:
            size = len(data) - at
        if at > start and kind == b"ftyp":
            break
        if size < 8 or not kind.isalnum():  # behind the last box
            at = len(data)
        elif at + size > len(data):
            cut = f"{len(data) - at} bytes of its box {kind.decode()}", f"{size}, as its header says"
            at = len(data)
        else:
            at += size
    return Stream("MP4 or M4A", start, at if len(data) - at >= 8 else len(data), None, None, cut)
