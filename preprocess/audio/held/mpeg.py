"""MPEG audio (MP1, MP2, MP3): a walk from frame header to frame header, ISO 11172-3 section 2.4.

A stream ends where a frame with the number of frames (Xing, Info, VBRI) begins another one, as `cat a.mp3 b.mp3`
makes it, and where the sample rate changes.
"""

import functools
from typing import NamedTuple

from preprocess.audio.held.stream import Data, Stream, shorter, skip_tags

_KBPS = {  # (MPEG-1?, layer): by index 1 to 14
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES_HZ = (44100, 48000, 32000)
_SAME = 0xFFFE0C00  # sync, version, layer and sample rate: the bits that all headers of a stream share
_SEARCHED_BYTES = 1 << 16  # for the first frame, behind bytes that are none
_SPARE_FRAMES = 2  # by which decoders differ: one needs a frame before it sounds, another plays its delay


class _Frame(NamedTuple):
    num_bytes: int
    num_samples: int
    sample_rate_hz: int
    side_info_bytes: int  # between the header and the tag of the first frame


class _Tag(NamedTuple):
    """The first frame of a stream, where it holds no audio but facts. num_frames: 0 where it does not say."""

    num_frames: int
    delay_samples: int


def walk(data: Data, start: int) -> Stream | None:
    """The MPEG audio stream at `start`, or behind bytes that are no frames; None where there is none."""
    first = _next_frame(data, start, start + _SEARCHED_BYTES)
    if first is None:
        return None
    damage, is_cut, cut = (_no_frame(start, first) if first > start else None), False, None
    at, num_frames, header = first, 0, _header(data, first)
    frame = _frame(header)
    assert frame
    tag = _read_tag(data, first, frame)
    while at < len(data):
        own = _header(data, at)
        here = _frame(own) if own & _SAME == header & _SAME else None
        if here and at + here.num_bytes > len(data):
            is_cut = True
            at = len(data)
        elif here and num_frames and _read_tag(data, at, here):
            break
        elif here:
            num_frames += 1
            at += here.num_bytes
        elif (after := skip_tags(data, at)) > at:
            at = after
            if at < len(data) and _header(data, at) & _SAME != header & _SAME:
                break
        elif _frame(own):  # of another sample rate: another stream
            break
        else:
            behind = _next_frame(data, at, len(data), header)
            if behind is not None:
                damage = damage or _no_frame(at, behind)
            else:
                is_cut = True
            at = len(data) if behind is None else behind
    num_audio = num_frames - (tag is not None)
    sec_per_frame = frame.num_samples / frame.sample_rate_hz
    if tag and tag.num_frames > num_audio:
        header_sec = tag.num_frames * sec_per_frame - tag.delay_samples / frame.sample_rate_hz
        cut = shorter(num_audio * sec_per_frame, header_sec)
    elif is_cut and not (tag and tag.num_frames):  # else all are there, and something else behind them
        cut = f"{num_audio * sec_per_frame:.2f} s of audio and an MPEG frame that breaks off", "whole frames"
    spare, samples = _SPARE_FRAMES * frame.num_samples, num_audio * frame.num_samples
    shortest = samples - spare - (tag.delay_samples if tag else 0)
    rate_hz = frame.sample_rate_hz
    past = tag is not None and 0 < tag.num_frames < num_audio
    return Stream("MPEG", first, at, max(shortest, 0) / rate_hz, (samples + spare) / rate_hz, cut, damage, past)


def _no_frame(start: int, stop: int) -> tuple[str, str]:
    return f"{stop - start} bytes that are no MPEG frame, at byte {start}", "whole frames"


def _header(data: Data, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "big")


def _next_frame(data: Data, start: int, end: int, like: int | None = None) -> int | None:
    """Where the first frame from `start` on begins: one that another one, or the end of the data, follows."""
    at = data.find(b"\xff", start, end)
    while at >= 0:
        header = _header(data, at)
        frame = _frame(header)
        if frame and (like is None or header & _SAME == like & _SAME):
            after = at + frame.num_bytes
            following = _header(data, after)
            if after == len(data) or (_frame(following) and following & _SAME == header & _SAME):
                return at
            if after < len(data) and skip_tags(data, after) == len(data):
                return at
        at = data.find(b"\xff", at + 1, end)
    return None


@functools.lru_cache(maxsize=4096)
def _frame(header: int) -> _Frame | None:
    """The facts of a frame header; None for bits that are none, and for the free format, whose size is not given."""
    version, layer = header >> 19 & 3, 4 - (header >> 17 & 3)
    bitrate, rate = header >> 12 & 15, header >> 10 & 3
    if header >> 21 != 0x7FF or version == 1 or layer == 4 or bitrate in (0, 15) or rate == 3:
        return None
    is_first = version == 3
    rate_hz = _RATES_HZ[rate] >> (0, 1, 2)[(3, 2, 0).index(version)]
    bits_per_sec = 1000 * _KBPS[is_first, layer][bitrate - 1]
    padding = header >> 9 & 1
    is_mono, has_crc = header >> 6 & 3 == 3, not header >> 16 & 1
    side_info = (17 if is_mono else 32) if is_first else (9 if is_mono else 17)
    if layer == 1:
        return _Frame((12 * bits_per_sec // rate_hz + padding) * 4, 384, rate_hz, side_info + 2 * has_crc)
    num_samples = 576 if layer == 3 and not is_first else 1152
    num_bytes = num_samples // 8 * bits_per_sec // rate_hz + padding
    return _Frame(num_bytes, num_samples, rate_hz, side_info + 2 * has_crc)


def _read_tag(data: Data, at: int, frame: _Frame) -> _Tag | None:
    """The facts in the frame at `at`, if it is a first frame with some. The layout of Xing's, LAME's and VBRI."""
    if data[at + 36 : at + 40] == b"VBRI":
        return _Tag(int.from_bytes(data[at + 50 : at + 54], "big"), 0)
    at += 4 + frame.side_info_bytes
    if data[at : at + 4] not in (b"Xing", b"Info"):
        return None
    flags, at = int.from_bytes(data[at + 4 : at + 8], "big"), at + 8
    num_frames = int.from_bytes(data[at : at + 4], "big") if flags & 1 else 0
    at += sum(size for bit, size in ((1, 4), (2, 4), (4, 100), (8, 4)) if flags & bit)
    delays = int.from_bytes(data[at + 21 : at + 24], "big") if data[at : at + 1].strip(b"\0") else 0
    return _Tag(num_frames, (delays >> 12) + (delays & 0xFFF))
