"""Clips that sound unlike the others of their speaker, found once all shards are made."""

import base64
from collections import defaultdict

import numpy as np

from preprocess.common.errors import Rejected
from preprocess.plan.clips import ClipPlan
from preprocess.plan.screening import Screening, screen

# And the mean of fewer clips than this is not yet a voice.
_FEWEST_CLIPS = 5


_MAX_ROUNDS = 5


def speaker_similarities(rows: dict[str, dict], threshold: float) -> dict[str, float]:
    """By key: the cosine, 0 to 1, of a clip's `voice` with the mean voice of its speaker's other clips.

    The mean is of the clips at or above the threshold, found in a few rounds, so that some strangers don't vouch for
    one another. Clips without a voice, and speakers with fewer than 5 clips that have one, have no similarity.
    """
    keys_of = defaultdict(list)
    for key in sorted(rows):
        if rows[key].get("voice"):
            keys_of[rows[key]["speaker"]].append(key)
    similarities = {}
    for keys in keys_of.values():
        if len(keys) >= _FEWEST_CLIPS:
            voices = np.stack([_read(rows[key]["voice"]) for key in keys])
            similarities |= dict(zip(keys, _compare(voices, threshold).round(4).tolist(), strict=True))
    return similarities


def _read(voice: str) -> np.ndarray:
    values = np.frombuffer(base64.b64decode(voice), np.uint8).astype(np.float64)
    return values / np.sqrt(np.square(values).sum())


def _compare(voices: np.ndarray, threshold: float) -> np.ndarray:
    """[clips] for voices [clips, 256]. Sums are numpy's own, not a BLAS's, which depend on its threads."""
    kept = np.ones(len(voices), dtype=bool)
    for _ in range(_MAX_ROUNDS):
        others = voices[kept].sum(axis=0) - voices * kept[:, None]  # a clip does not vouch for itself
        similarity = (voices * others).sum(axis=1) / np.sqrt(np.square(others).sum(axis=1))
        alike = similarity >= threshold
        if alike.sum() < 2 or (alike == kept).all():
            break
        kept = alike
    return similarity


def find_speaker_outliers(
    rows: dict[str, dict], clips: dict[str, ClipPlan], screening: Screening
) -> dict[str, Rejected]:
    """Clips that sound unlike their speaker's others, and what their rows are told; writes `speaker_similarity`.

    The column is None where a clip has no similarity, or the screening does not ask for it.
    """
    strangers, similarities = {}, {}
    if screening.min_speaker_similarity is not None:
        similarities = speaker_similarities(rows, screening.min_speaker_similarity)
    for key, row in rows.items():
        row["speaker_similarity"] = similarities.get(key)
        try:
            screen(screening, {"speaker_similarity": row["speaker_similarity"]}, clips[key].source)
        except Rejected as error:
            strangers[key] = error
    return strangers
