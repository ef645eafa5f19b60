"""One audio stream of a file's bytes, and the bytes between streams that are no audio: tags and padding."""

import mmap
import re
from typing import NamedTuple

Data = bytes | mmap.mmap

TOLERANCE_SEC = 0.01  # by which lengths may differ: headers round
_ZEROS = re.compile(rb"\0*")


class Stream(NamedTuple):
    """The stream in data[start:stop], headers included, and how long whole audio of it is when decoded.

    shortest_sec, longest_sec: the bounds of that length: decoders treat an encoder's padding differently. Both are
        None where only a decoder can count.
    cut: (what is there, what should be) where the bytes show that audio is missing at the end.
    damage: the same for audio that is missing elsewhere, so that times are wrong too.
    past_header: whether the audio goes on beyond the length in its header, so that readers which trust it stop early.
    """

    format: str
    start: int
    stop: int
    shortest_sec: float | None
    longest_sec: float | None
    cut: tuple[str, str] | None = None
    damage: tuple[str, str] | None = None
    past_header: bool = False


def skip_tags(data: Data, start: int) -> int:
    """Where the tags (ID3, APE, Lyrics3) and zeros that begin at `start` end; `start` itself where there are none."""
    at = start
    while at < len(data):
        end = _tag_end(data, at)
        if end == at:
            break
        at = min(end, len(data))
    return at


def _tag_end(data: Data, at: int) -> int:
    """The end of one tag, or of a run of zeros."""
    head = data[at : at + 32]
    if head[:3] == b"ID3" and len(head) >= 10:
        return at + 10 + _synchsafe(head[6:10]) + (10 if head[5] & 0x10 else 0)
    if head[:4] == b"TAG+":
        return at + 227
    if head[:3] == b"TAG":
        return at + 128
    if head[:8] == b"APETAGEX" and len(head) == 32:
        has_header = int.from_bytes(head[20:24], "little") & 0x20000000  # this is the header: a footer has it unset
        return at + 32 + (int.from_bytes(head[12:16], "little") if has_header else 0)
    if head[:11] == b"LYRICSBEGIN":
        end = data.find(b"LYRICS200", at)
        return end + 9 if end >= 0 else at
    zeros = _ZEROS.match(data, at)
    assert zeros
    return zeros.end()


def _synchsafe(four: bytes) -> int:
    """A size in ID3v2: seven bits per byte."""
    return sum((byte & 0x7F) << shift for byte, shift in zip(four, (21, 14, 7, 0), strict=True))


def shorter(sec: float, header_sec: float) -> tuple[str, str]:
    """The cut of a stream that holds `sec`, and `header_sec` by its header."""
    return f"{sec:.2f} s of audio", f"{header_sec:.2f} s, as its header says"


def exactly(sec: float) -> tuple[float, float]:
    """(shortest_sec, longest_sec) of a length that decoders agree on."""
    return sec - TOLERANCE_SEC, sec + TOLERANCE_SEC
