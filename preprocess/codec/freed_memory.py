"""Return freed memory to the system now and then.

glibc keeps the memory of freed tensors, scattered between live ones: an encoding worker grows to 1 or 2 GB, of which
150 MB are in use. Returning it after every clip would cost 1.5 to 5 % of the time, in page faults (bench/LOG.md).
"""

import ctypes

AUDIO_SEC_BETWEEN = 10.0
_audio_sec = 0.0


def return_freed_memory(audio_sec: float) -> None:
    """Count seconds of processed audio; every 10 s of it, return free memory. Does nothing without glibc."""
    global _audio_sec
    _audio_sec += audio_sec
    if _audio_sec >= AUDIO_SEC_BETWEEN:
        _audio_sec = 0.0
        trim_memory()


def trim_memory() -> None:
    """Return free memory now. Does nothing without glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)
