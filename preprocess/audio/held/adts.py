"""AAC in ADTS frames, ISO 13818-7 section 6.2: whether the file begins and ends with whole frames.

How much audio they hold, preprocess.audio.ffmpeg counts.
"""

from preprocess.audio.held.stream import Data, Stream, skip_tags

_SEARCHED_BYTES = 1 << 13  # as many as a frame can have


def walk(data: Data, start: int) -> Stream | None:
    """The AAC stream at `start`, or behind a part of a frame; None where there is none."""
    first = next((at for at in _syncs(data, start) if _follows(data, at)), None)
    if first is None:
        return None
    damage = (f"{first - start} bytes that are no AAC frame", "whole frames") if first > start else None
    at, cut = first, None
    while at < len(data):
        size = _frame_bytes(data, at)
        if size is None and skip_tags(data, at) > at:
            at = skip_tags(data, at)
        elif size is None or at + size > len(data):
            cut = f"{len(data) - at} bytes that are no AAC frame, at byte {at}", "whole frames"
            break
        else:
            at += size
    return Stream("AAC", first, len(data), None, None, cut, damage)


def _syncs(data: Data, start: int) -> list[int]:
    window = data[start : start + _SEARCHED_BYTES]
    return [start + at for at in range(len(window)) if window[at] == 0xFF and _frame_bytes(data, start + at)]


def _follows(data: Data, at: int) -> bool:
    """Whether two more frames, or the end, follow the frame at `at`."""
    for _ in range(2):
        size = _frame_bytes(data, at)
        if size is None:
            return False
        at += size
        if at >= len(data):
            return at == len(data)
    return _frame_bytes(data, at) is not None


def _frame_bytes(data: Data, at: int) -> int | None:
    """The size of the frame whose header is at `at`; None where there is none."""
    head = data[at : at + 7]
    if len(head) < 7 or head[0] != 0xFF or head[1] & 0xF6 != 0xF0 or head[2] >> 2 & 15 > 12:
        return None
    size = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
    return size if size > 7 else None
