"""Freed memory goes back to the system after so much audio."""

import subprocess
import sys

import pytest

KEPT = """
import ctypes, resource, sys
from pathlib import Path
from preprocess.codec.freed_memory import AUDIO_SEC_BETWEEN, return_freed_memory

if not hasattr(ctypes.CDLL(None), "malloc_trim"):
    sys.exit(77)

def resident_mb():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6

pieces = [bytearray(100_000) for _ in range(4000)]
last = pieces[-1]
del pieces
before = resident_mb()
return_freed_memory(0.6 * AUDIO_SEC_BETWEEN)
half_way = resident_mb()
return_freed_memory(0.6 * AUDIO_SEC_BETWEEN)
print(before, half_way, resident_mb())
"""


def test_freed_memory_goes_back_after_so_much_audio_and_not_before():
    done = subprocess.run([sys.executable, "-c", KEPT], capture_output=True, text=True)
    if done.returncode == 77:
        pytest.skip("glibc alone keeps freed memory, and has malloc_trim")
    assert done.returncode == 0, done.stderr
    before, half_way, after = map(float, done.stdout.split())
    assert half_way == pytest.approx(before, abs=20)
    assert after < before - 300
