"""FLAC: the end of the last frame, RFC 9639. Frames hold no length, so the last one is found from behind.

A frame counts if its own checksum says that it is whole.
"""

from preprocess.audio.held.stream import Data, Stream, exactly, shorter

_BEGIN = b"fLaC"
_BLOCK_SIZES = {1: 192, 2: 576, 3: 1152, 4: 2304, 5: 4608} | {code: 256 << (code - 8) for code in range(8, 16)}
_RATES_HZ = {4: 8000, 5: 16000, 6: 22050, 7: 24000, 8: 32000, 9: 44100, 10: 48000, 11: 96000}  # by code, of a frame
_MAX_FRAME_BYTES = 1 << 17  # 2 channels of 24 bits and 16,384 samples take 96 kB
_TRIES = 3  # the bytes of a header occur inside frames too, once in 2^24 places


def walk(data: Data, start: int) -> Stream | None:
    """The FLAC stream at `start`, up to the next one of a chain; None where there is none."""
    if data[start : start + 4] != _BEGIN:
        return None
    info = data[start + 8 : start + 42]
    rate_hz = max(int.from_bytes(info[10:13], "big") >> 4, 1)
    declared, block_size = int.from_bytes(info[13:18], "big") & (1 << 36) - 1, int.from_bytes(info[2:4], "big")
    first = _first_frame(data, start + 4)
    stop = _next_stream(data, first)
    last, end, is_whole = _last_frame(data[max(first, stop - _MAX_FRAME_BYTES) : stop], block_size)
    own_rate_hz = _RATES_HZ.get(data[first + 2] & 15, rate_hz) if first + 2 < stop else rate_hz
    if own_rate_hz != rate_hz:
        return Stream(
            "FLAC", start, stop, None, None, (f"frames of {own_rate_hz} Hz", f"{rate_hz} Hz, as its header says")
        )
    held = end if is_whole else last
    if not is_whole and declared in (0, end):  # junk behind the last frame, or a part of it: a decoder finds out
        held = declared or last
    cut = None
    if held < declared:
        cut = shorter(held / rate_hz, declared / rate_hz)
    elif not (is_whole or declared):
        cut = f"{held / rate_hz:.2f} s of audio and a frame that breaks off", "whole frames"
    return Stream("FLAC", start, stop, *exactly(held / rate_hz), cut, past_header=held > declared)


def _first_frame(data: Data, at: int) -> int:
    """Where the metadata blocks, which begin at `at`, end."""
    while at + 4 <= len(data):
        is_last, size = data[at] & 0x80, int.from_bytes(data[at + 1 : at + 4], "big")
        at += 4 + size
        if is_last:
            break
    return min(at, len(data))


def _next_stream(data: Data, at: int) -> int:
    """Where the next stream begins that is joined to this one; the end of the data if there is none."""
    found = [data.find(_BEGIN + flag + b"\0\0\x22", at) for flag in (b"\0", b"\x80")]
    return min((place for place in found if place >= 0), default=len(data))


def _last_frame(tail: bytes, block_size: int) -> tuple[int, int, bool]:
    """(first sample, sample after the last) of the last frame of a stream's `tail`, and whether it is whole.

    (0, 0, False) where there is none.
    """
    if tail[-128:-125] == b"TAG":  # ID3v1
        tail = tail[:-128]
    at, last = len(tail), None
    for _ in range(_TRIES):
        at = _last_header(tail, at)
        if at < 0:
            break
        frame = _read_header(tail, at, block_size)
        assert frame
        if _crc16(tail[at:]) == 0:  # the checksum stands at the frame's end
            return *frame, True
        last = last or frame
    return *(last or (0, 0)), False


def _last_header(data: bytes, before: int) -> int:
    """Where the last frame header before `before` is; -1 where there is none."""
    at = data.rfind(b"\xff", 0, before)
    while at >= 0 and (data[at + 1 : at + 2] not in (b"\xf8", b"\xf9") or _read_header(data, at, 0) is None):
        at = data.rfind(b"\xff", 0, at)
    return at


def _read_header(data: bytes, at: int, block_size: int) -> tuple[int, int] | None:
    """(first sample, sample after the last) of the frame whose header is at `at`; None where there is no header.

    block_size: of all frames but the last, where it is fixed.
    """
    head = data[at : at + 16]
    if len(head) < 6 or head[3] & 1 or head[3] >> 4 > 10:
        return None
    number_bytes = max(8 - (~head[4] & 0xFF).bit_length(), 1)  # coded as UTF-8 is
    if head[4] & 0xC0 == 0x80 or number_bytes > 7:
        return None
    number = head[4] if number_bytes == 1 else head[4] & (0x7F >> number_bytes)
    for byte in head[5 : 4 + number_bytes]:
        number = number << 6 | byte & 0x3F
    at = 4 + number_bytes
    size_code, rate_code = head[2] >> 4, head[2] & 15
    size_bytes = {6: 1, 7: 2}.get(size_code, 0)
    size = _BLOCK_SIZES.get(size_code) or int.from_bytes(head[at : at + size_bytes], "big") + 1
    at += size_bytes + {12: 1, 13: 2, 14: 2}.get(rate_code, 0)
    if size_code == 0 or rate_code == 15 or len(head) <= at or _crc8(head[: at + 1]) != 0:
        return None
    is_variable = head[1] & 1
    first = number if is_variable else number * block_size
    return first, first + size


def _crc8(data: bytes) -> int:
    """0 for bytes that end with their checksum."""
    crc = 0
    for byte in data:
        crc = _CRC8[crc ^ byte]
    return crc


def _crc16(data: bytes) -> int:
    """0 for bytes that end with their checksum."""
    crc = 0
    for byte in data:
        crc = (crc << 8 & 0xFFFF) ^ _CRC16[crc >> 8 ^ byte]
    return crc


def _crc_table(polynomial: int, bits: int) -> tuple[int, ...]:
    table, top, mask = [], 1 << (bits - 1), (1 << bits) - 1
    for byte in range(256):
        crc = byte << (bits - 8)
        for _ in range(8):
            crc = (crc << 1 ^ polynomial if crc & top else crc << 1) & mask
        table.append(crc)
    return tuple(table)


_CRC8, _CRC16 = _crc_table(0x07, 8), _crc_table(0x8005, 16)
