"""Read the headers of all clips in the pool."""

from collections.abc import Iterable

from preprocess.audio.decode import NO_SUCH_FILE, Header
from preprocess.common.errors import Rejected
from preprocess.common.say import say
from preprocess.encode.clip_pool import for_each_clip
from preprocess.plan.clips import ClipPlan
from preprocess.plan.respelled_names import find_respelled


def probe_clips(
    clips: Iterable[ClipPlan], num_workers: int, **options: float
) -> tuple[dict[str, Header], dict[str, Rejected]]:
    """{key: header} of the clips that have one, and {key: why not} of the others.

    Where a file exists in another Unicode form, its clip's path becomes that one. options: as for for_each_clip.
    """
    clips = sorted(clips, key=lambda clip: clip.recording.order)
    headers, rejected = _probe(clips, num_workers, **options)
    missing = [clip for clip in clips if clip.key in rejected and rejected[clip.key].found == NO_SUCH_FILE]
    respelled = find_respelled(missing, rejected)
    if respelled:
        say(f"  {len(respelled)} clips: the file's name has another Unicode form (NFC, NFD) than the manifest's")
        headers_too, rejected_too = _probe(respelled, num_workers, **options)
        headers |= headers_too
        rejected = {key: error for key, error in rejected.items() if key not in headers_too} | rejected_too
    return headers, rejected


def _probe(
    clips: list[ClipPlan], num_workers: int, **options: float
) -> tuple[dict[str, Header], dict[str, Rejected]]:
    found = for_each_clip(lambda clip: clip.recording.probe(), clips, num_workers, "headers", **options)
    by_key = {clip.key: result for clip, result in zip(clips, found, strict=True)}
    headers = {key: result for key, result in by_key.items() if isinstance(result, Header)}
    return headers, {key: result for key, result in by_key.items() if isinstance(result, Rejected)}
