"""Memory that was freed goes back to the system now and then.

glibc keeps what tensors of a megabyte leave behind, in pieces between what lives on: an encoding worker grows to
1 or 2 GB of which 150 MB are in use. Asking for it back costs 1.5 to 5 % of the time at every clip, in page faults
(bench/LOG.md).
"""

import ctypes

AUDIO_SEC_BETWEEN = 10.0
_audio_sec = 0.0


def return_freed_memory(audio_sec: float) -> None:
    """Count audio that was worked on; after ten seconds of it, return what lies free. Without glibc, do nothing."""
    global _audio_sec
    _audio_sec += audio_sec
    if _audio_sec >= AUDIO_SEC_BETWEEN:
        _audio_sec = 0.0
        _malloc_trim()


def _malloc_trim() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)
