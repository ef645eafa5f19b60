"""Ogg: a walk from page to page, RFC 3533. Chained streams, one file after another, are streams of their own."""

from dataclasses import dataclass, field
from typing import NamedTuple

from preprocess.audio.held.stream import Data, Stream, exactly, skip_tags

_MAGIC = b"OggS"
_NO_POSITION = (1 << 64) - 1  # of a page on which no packet ends
# Streams cut out of a broadcast begin at its time. A first page of more audio than this is no first page.
_LATE_START_SEC = 10.0
_OPUS_RATE_HZ = 48000


class _Page(NamedTuple):
    is_first: bool
    is_last: bool
    position: int
    serial: int
    number: int
    body: int
    stop: int


@dataclass
class _Audio:
    """What has been read of the audio among the streams that are woven into each other."""

    serial: int
    rate_hz: float
    skipped: int  # samples at the beginning that a decoder drops
    numbers: list[int] = field(default_factory=list)  # of its pages
    positions: list[int] = field(default_factory=list)  # in samples
    has_end: bool = False


def walk(data: Data, start: int) -> Stream | None:
    """The Ogg stream at `start`, up to the next one of a chain; None where there is none."""
    if data[start : start + 4] != _MAGIC:
        return None
    at, audio, damage, is_begun = start, None, None, False
    while at < len(data):
        page = _read_page(data, at)
        if page is None:
            if skip_tags(data, at) == len(data):
                break
            behind = data.find(_MAGIC, at + 1)
            if behind >= 0:
                damage = damage or (f"{behind - at} bytes that are no Ogg page, at byte {at}", "whole pages")
            at = behind if behind >= 0 else len(data)
            continue
        if page.is_first and is_begun:
            break
        is_begun |= not page.is_first
        if page.is_first:
            audio = audio or _begin_audio(data[page.body : page.stop], page.serial)
        if audio and page.serial == audio.serial:
            audio.numbers.append(page.number)
            audio.has_end |= page.is_last
            if page.position != _NO_POSITION:
                audio.positions.append(page.position)
        at = page.stop
    if audio is None:
        return Stream("Ogg", start, at, None, None, ("no audio among its Ogg streams", "Vorbis, Opus, FLAC or Speex"))
    sec = _held_sec(audio)
    cut = None if audio.has_end else (f"{sec:.2f} s of audio without the last page of Ogg", "a page that ends it")
    return Stream("Ogg", start, at, *exactly(sec), cut, damage or _missing_page(audio))


def _missing_page(audio: _Audio) -> tuple[str, str] | None:
    gap = next((one for one, next_ in zip(audio.numbers, audio.numbers[1:], strict=False) if next_ != one + 1), None)
    return None if gap is None else (f"no Ogg page {gap + 1}", "all pages")


def _held_sec(audio: _Audio) -> float:
    """Seconds up to the position of the last page. Pages of headers have position 0."""
    positions = [position for position in audio.positions if position > 0]
    if not positions:
        return 0.0
    begin = positions[0] if positions[0] > _LATE_START_SEC * audio.rate_hz else 0
    return max(positions[-1] - max(begin, audio.skipped), 0) / audio.rate_hz


def _read_page(data: Data, at: int) -> _Page | None:
    """The page at `at`; None where there is none, or not all of it."""
    head = data[at : at + 27]
    if len(head) < 27 or head[:5] != _MAGIC + b"\0":
        return None
    body = at + 27 + head[26]
    stop = body + sum(data[at + 27 : body])
    if stop > len(data):
        return None
    position, serial, number = (int.from_bytes(head[a:b], "little") for a, b in ((6, 14), (14, 18), (18, 22)))
    return _Page(bool(head[5] & 2), bool(head[5] & 4), position, serial, number, body, stop)


def _begin_audio(packet: bytes, serial: int) -> _Audio | None:
    """The audio stream whose first packet this is: Vorbis, Opus (RFC 7845), FLAC or Speex; None for other streams."""
    if packet[:7] == b"\x01vorbis":
        rate_hz, skipped = int.from_bytes(packet[12:16], "little"), 0
    elif packet[:8] == b"OpusHead":
        rate_hz, skipped = _OPUS_RATE_HZ, int.from_bytes(packet[10:12], "little")
    elif packet[:5] == b"\x7fFLAC":
        rate_hz, skipped = int.from_bytes(packet[27:30], "big") >> 4, 0
    elif packet[:8] == b"Speex   ":
        rate_hz, skipped = int.from_bytes(packet[36:40], "little"), 0
    else:
        return None
    return _Audio(serial, max(rate_hz, 1), skipped)
