"""AU and SPHERE: one header and the samples behind it."""

import re
import struct

from preprocess.audio.held.stream import TOLERANCE_SEC, Data, Stream, exactly, shorter

_AU_SAMPLE_BYTES = {1: 1, 2: 1, 3: 2, 4: 3, 5: 4, 6: 4, 7: 8, 27: 1}
_AU_UNKNOWN = 0xFFFFFFFF
_SPHERE_FIELD = re.compile(rb"^(\w+) -i (\d+)\s*$", re.MULTILINE)


def walk(data: Data, start: int) -> Stream | None:
    """The stream of one of these formats at `start`; None where there is none."""
    head = data[start : start + 24]
    if head[:4] == b".snd" and len(head) == 24:
        offset, declared, coding, rate_hz, channels = struct.unpack(">5I", head[4:])
        frame_bytes = channels * _AU_SAMPLE_BYTES.get(coding, 0)
        return _measure("AU", data, start, offset, 0 if declared == _AU_UNKNOWN else declared, frame_bytes, rate_hz)
    if head[:8] == b"NIST_1A\n":
        header_bytes = int(head[8:16]) if head[8:16].strip().isdigit() else 1024
        fields = {name: int(value) for name, value in _SPHERE_FIELD.findall(data[start : start + header_bytes])}
        is_pcm = b"shorten" not in data[start : start + header_bytes]
        frame_bytes = fields.get(b"channel_count", 1) * fields.get(b"sample_n_bytes", 0) * is_pcm
        declared, rate_hz = fields.get(b"sample_count", 0) * frame_bytes, fields.get(b"sample_rate", 0)
        return _measure("SPHERE", data, start, header_bytes, declared, frame_bytes, rate_hz)
    return None


def _measure(
    format_: str, data: Data, start: int, header_bytes: int, declared: int, frame_bytes: int, rate_hz: int
) -> Stream:
    """declared: bytes of samples by the header, 0 where it does not say."""
    held = len(data) - start - header_bytes
    if not frame_bytes * rate_hz:
        return Stream(format_, start, len(data), None, None)
    cut = None
    if declared and abs(held - declared) > TOLERANCE_SEC * frame_bytes * rate_hz:
        cut = shorter(held / (frame_bytes * rate_hz), declared / (frame_bytes * rate_hz))
    return Stream(format_, start, len(data), *exactly(held / (frame_bytes * rate_hz)), cut)
