"""WAV, RF64, Wave64, AIFF and CAF: the size of the samples by their chunk's header, and by the file.

A header is written before the samples and corrected after them. A writer that dies, or writes to a pipe, leaves it as
it was: size 0, the size at the last update, or the largest there is.
"""

import struct
from collections.abc import Callable
from typing import Literal, NamedTuple

from preprocess.audio.held import mpeg
from preprocess.audio.held.stream import TOLERANCE_SEC, Data, Stream, exactly, shorter, skip_tags

_STREAMED_BYTES = 0x7FFF0000  # what a writer to a pipe, which can't know the size, writes at least
_PCM_TAGS = (1, 3, 6, 7, 0xFFFE)  # integers, floats, A-law, mu-law, extensible: a fixed number of bytes per sample
_MPEG_TAGS = (0x50, 0x55)
_AIFC_PCM = b"NONE sowt twos raw  fl32 FL32 fl64 FL64 in24 in32 alaw ulaw"
_FLOAT80_BIAS = 16383
_CONTRADICTION = 0.02  # of a value, by which two fields may differ
_BEGINNINGS = (b"RIFF", b"RIFX", b"RF64", b"FORM", b"caff", b"fLaC", b"OggS", b"riff")  # of another file, joined on


class _Coding(NamedTuple):
    """bytes_per_sec: 0 where it is unknown. frame_bytes: of one sample of all channels, 0 where it is not fixed.

    says_bytes_per_sec, says_bytes: what else the header says of it and of the size of the samples, 0 for nothing.
    """

    bytes_per_sec: float = 0.0
    frame_bytes: int = 0
    is_mpeg: bool = False
    says_bytes_per_sec: float = 0.0
    says_bytes: int = 0


class _Layout(NamedTuple):
    """How a format writes its chunks: the sizes of their heads, and which of them hold coding and samples."""

    name: str
    order: Literal["little", "big"]
    header_bytes: int
    coding_chunk: bytes
    read_coding: Callable[[bytes, Literal["little", "big"]], _Coding]
    samples_chunk: bytes
    skipped_bytes: int = 0  # of the samples' chunk before the samples
    name_bytes: int = 4
    size_bytes: int = 4
    size_has_head: bool = False
    padding: int = 2  # chunks begin at multiples of it

    def chunk(self, data: Data, at: int) -> tuple[bytes, int, int] | None:
        """(name, begin of the body, its bytes by the head) of the chunk at `at`; None where there is none."""
        begin = at + self.name_bytes + self.size_bytes
        name = data[at : at + self.name_bytes]
        if begin > len(data) or not all(32 <= byte < 127 for byte in name[:4]):
            return None
        size = int.from_bytes(data[at + self.name_bytes : begin], self.order, signed=self.size_bytes == 8)
        return name, begin, size - (begin - at if self.size_has_head else 0)

    def end(self, begin: int, size: int) -> int:
        """Where the chunk after one with this body begins."""
        return begin + -(-size // self.padding) * self.padding


def walk(data: Data, start: int) -> Stream | None:
    """The stream of one of these formats at `start`; None where there is none, or no samples."""
    layout = _find_layout(data[start : start + 40])
    if layout is None:
        return None
    coding, at, size_64 = _Coding(), start + layout.header_bytes, 0
    while chunk := layout.chunk(data, at):
        name, begin, size = chunk
        if name == layout.samples_chunk:
            size = size_64 if size_64 and size == 0xFFFFFFFF else size
            return _measure(data, start, layout, coding, begin + layout.skipped_bytes, size - layout.skipped_bytes)
        if name == layout.coding_chunk:
            coding = layout.read_coding(data[begin : begin + min(size, 64)], layout.order)
        if name == b"ds64":
            size_64 = int.from_bytes(data[begin + 8 : begin + 16], "little")
        at = layout.end(begin, max(size, 0))
    return None


def _measure(data: Data, start: int, layout: _Layout, coding: _Coding, begin: int, declared: int) -> Stream:
    """The stream whose samples begin at `begin`; `declared` is the number of their bytes by the header."""
    available = len(data) - begin
    is_unknown = declared <= 0 or (declared >= _STREAMED_BYTES and declared > available)
    held = min(declared, available)
    stop: int | None
    cut, damage = None, _contradiction(coding, 0 if is_unknown else declared)
    if is_unknown:
        stop = _next_file(data, begin)
        held = stop - begin
        if coding.frame_bytes and held % coding.frame_bytes:
            cut = f"{held} bytes of samples", f"a multiple of {coding.frame_bytes}"
    elif declared - held > TOLERANCE_SEC * coding.bytes_per_sec:
        cut = f"{held} bytes of samples", f"{declared}, as its header says"
        if coding.bytes_per_sec:
            cut = shorter(held / coding.bytes_per_sec, declared / coding.bytes_per_sec)
    if not is_unknown:
        stop = _end_of_chunks(data, layout.end(begin, held), layout)
    if stop is None:  # samples behind those of the header, or something else
        held, stop = available, len(data)
        if not coding.frame_bytes or (held - declared) % coding.frame_bytes:
            damage = f"{held} bytes of samples or other data", f"{declared} bytes, as its header says"
    if coding.is_mpeg and (inner := mpeg.walk(data[begin : begin + held], 0)):
        return inner._replace(format=f"{layout.name} of MPEG", start=start, stop=stop, cut=cut or inner.cut)
    shortest_sec, longest_sec = exactly(held / coding.bytes_per_sec) if coding.bytes_per_sec else (None, None)
    return Stream(layout.name, start, stop, shortest_sec, longest_sec, cut, damage, held > declared >= 0)


def _contradiction(coding: _Coding, declared: int) -> tuple[str, str] | None:
    """What two fields of a header say that can't both be true: then the length may be wrong by any factor."""
    for what, one, other in (
        ("bytes per second", coding.bytes_per_sec, coding.says_bytes_per_sec),
        ("bytes of samples", declared, coding.says_bytes),
    ):
        if one and other and abs(one - other) > _CONTRADICTION * one:
            return f"a header with {other:.0f} {what} in one place", f"{one:.0f}, as in another place"
    return None


def _next_file(data: Data, at: int) -> int:
    """Where the next WAV begins in samples whose size is unknown; the end of the data if there is none."""
    found = data.find(b"WAVEfmt ", at) - 8
    return found if found >= at and data[found : found + 4] in _BEGINNINGS else len(data)


def _end_of_chunks(data: Data, at: int, layout: _Layout) -> int | None:
    """Where the chunks behind the samples end: at tags, at another file or at the end; None if they are no chunks."""
    while at < len(data):
        if data[at : at + 4] in _BEGINNINGS:
            return at
        chunk = layout.chunk(data, at)
        following = layout.end(*chunk[1:]) if chunk and chunk[2] >= 0 else len(data) + layout.padding
        if following >= len(data) + layout.padding:
            return at if skip_tags(data, at) > at else None
        at = following
    return len(data)


def _find_layout(head: bytes) -> _Layout | None:
    """The layout of a file by its first bytes."""
    if head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64") and head[8:12] == b"WAVE":
        return _Layout("WAV", "big" if head[:4] == b"RIFX" else "little", 12, b"fmt ", _wav_coding, b"data")
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return _Layout("AIFF", "big", 12, b"COMM", _aiff_coding, b"SSND", 8)
    if head[:4] == b"caff":
        return _Layout("CAF", "big", 8, b"desc", _caf_coding, b"data", 4, size_bytes=8, padding=1)
    if head[:4] == b"riff" and head[24:28] == b"wave":
        guid = b"\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"
        coding, samples = b"fmt " + guid, b"data" + guid
        return _Layout("Wave64", "little", 40, coding, _wav_coding, samples, 0, 16, 8, size_has_head=True, padding=8)
    return None


def _wav_coding(body: bytes, order: Literal["little", "big"]) -> _Coding:
    if len(body) < 16:
        return _Coding()
    sign = "<" if order == "little" else ">"
    tag, _, rate_hz, bytes_per_sec, frame_bytes, _ = struct.unpack(f"{sign}HHIIHH", body[:16])
    if tag in _MPEG_TAGS:
        return _Coding(bytes_per_sec, is_mpeg=True)
    if tag in _PCM_TAGS:
        return _Coding(rate_hz * frame_bytes, frame_bytes, says_bytes_per_sec=bytes_per_sec)
    return _Coding()  # of compressed samples: the field for bytes per second is a rounded mean


def _aiff_coding(body: bytes, order: Literal["little", "big"]) -> _Coding:
    if len(body) < 18 or body[18:22] not in _AIFC_PCM:
        return _Coding()
    channels, num_samples, bits, exponent, mantissa = struct.unpack(">hIhHQ", body[:18])
    frame_bytes = channels * -(-bits // 8) // (2 if body[18:22] in (b"alaw", b"ulaw") and bits == 16 else 1)
    if not 0 < exponent - _FLOAT80_BIAS < 32 or frame_bytes <= 0:
        return _Coding()
    rate_hz = mantissa * 2.0 ** (exponent - _FLOAT80_BIAS - 63)
    return _Coding(frame_bytes * rate_hz, frame_bytes, says_bytes=num_samples * frame_bytes)


def _caf_coding(body: bytes, order: Literal["little", "big"]) -> _Coding:
    if len(body) < 32:
        return _Coding()
    rate_hz, _, _, packet_bytes, packet_frames = struct.unpack(">d4sIII", body[:24])
    is_fixed = packet_frames == 1 and packet_bytes > 0 and 0 < rate_hz < 1e9
    return _Coding(rate_hz * packet_bytes, packet_bytes) if is_fixed else _Coding()
