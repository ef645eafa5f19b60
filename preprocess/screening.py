"""Filters on clips: each says why a clip is dropped, by a word to count by."""

MIN_DURATION_SEC = 0.5
MAX_DURATION_SEC = 30.0


def duration_reason(duration_sec: float) -> str | None:
    """`too_short`, `too_long` or None."""
    if duration_sec < MIN_DURATION_SEC:
        return "too_short"
    return "too_long" if duration_sec > MAX_DURATION_SEC else None
