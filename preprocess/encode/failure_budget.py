"""Stop early where most rows or clips fail for one cause: a wrong root folder, a wrong format, a broken mount."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from preprocess.common.errors import InputError, Rejected

# A share of fewer rows says little, and a small manifest is soon done.
_MIN_SEEN = 200
_COMMON_SHARE = 0.8
# What follows the file name in a recording's description: "talks.flac@1.5-3.25", "train.parquet#7.audio".
_PART = re.compile(r"(#\d+\.[^#/]+)?(@[\d.e+-]+)?$")


def refuse_many_failures(stage: str, errors: Iterable[Rejected], num_seen: int, max_share: float) -> None:
    """Raise InputError, with what the failures have in common, where more than `max_share` of `num_seen` failed.

    Fewer than 200 rows or clips never stop a run. What the screening drops does not count.
    """
    failed = [error for error in errors if error.status == "failed"]
    if num_seen < _MIN_SEEN or len(failed) <= max_share * num_seen:
        return
    raise InputError(
        f"{stage}: {failed[0].where}",
        f"{len(failed)} of {num_seen} failed so far ({len(failed) / num_seen:.0%}): {_in_common(failed)}. The first: "
        f"{failed[0].found}, where {failed[0].expected} was expected",
        f"at most {max_share:.0%} (--max-failure-share)",
        f"{failed[0].action} Or raise --max-failure-share; what is finished is kept.",
    )


def _in_common(failed: Sequence[Rejected]) -> str:
    """What most of the failures share: their reasons, a folder, an extension."""
    reasons = Counter(error.reason for error in failed)
    parts = [", ".join(f"{reason} {count}x" for reason, count in reasons.most_common(3))]
    paths = [Path(_PART.sub("", error.where)) for error in failed]
    for what, names in (("in", [str(path.parent) for path in paths]), ("with", [path.suffix for path in paths])):
        name, count = Counter(names).most_common(1)[0]
        if name not in ("", ".") and count >= _COMMON_SHARE * len(failed):
            parts.append(f"{count} {what} {name}")
    return "; ".join(parts)
