"""Clips that sound unlike the others of their speaker, found once all shards are made."""

import base64
from collections import defaultdict

import numpy as np
import numpy.typing as npt

from preprocess.common.errors import Rejected
from preprocess.finish.duplicates import Rows
from preprocess.plan.clips import ClipPlan
from preprocess.plan.screening import Screening, screen_figures

_FEWEST_CLIPS = 5  # the mean of fewer clips is no reliable picture of a voice
_MAX_ROUNDS = 5


def speaker_similarities(rows: Rows, threshold: float) -> dict[str, float]:
    """By key: the cosine, 0 to 1, of a clip's `voice` with the mean voice of its speaker's other clips.

    Only clips at or above the threshold count in the mean, so that clips of a stranger do not support one another.
    Which ones these are depends on the mean: both are computed in turn, up to 5 times. Clips without a voice, and
    speakers with fewer than 5 clips that have one, get no similarity.
    """
    keys_of = defaultdict(list)
    for key in sorted(rows):
        if rows[key].get("voice"):
            keys_of[rows[key]["speaker"]].append(key)
    similarities: dict[str, float] = {}
    for keys in keys_of.values():
        if len(keys) >= _FEWEST_CLIPS:
            voices = np.stack([_read_voice(rows[key]["voice"]) for key in keys])
            similarities |= dict(zip(keys, _compare(voices, threshold).round(4).tolist(), strict=True))
    return similarities


def _read_voice(stored: str) -> npt.NDArray[np.float64]:
    """[256] of length 1."""
    values = np.frombuffer(base64.b64decode(stored), np.uint8).astype(np.float64)
    length: np.float64 = np.sqrt(np.square(values).sum())
    return values / length


def _compare(voices: npt.NDArray[np.float64], threshold: float) -> npt.NDArray[np.float64]:
    """Similarities [clips] for voices [clips, 256]. Sums are numpy's: those of a BLAS depend on its threads."""
    kept = np.ones(len(voices), dtype=bool)
    for _ in range(_MAX_ROUNDS):
        others = voices[kept].sum(axis=0) - voices * kept[:, None]  # a clip is not compared with itself
        similarity: npt.NDArray[np.float64] = (voices * others).sum(axis=1) / np.sqrt(np.square(others).sum(axis=1))
        alike = similarity >= threshold
        if alike.sum() < 2 or (alike == kept).all():
            break
        kept = alike
    return similarity


def find_speaker_outliers(rows: Rows, clips: dict[str, ClipPlan], screening: Screening) -> dict[str, Rejected]:
    """Clips that sound unlike their speaker's others, by key. Fills the column `speaker_similarity` of `rows`.

    The column is None where a clip has no similarity, or the screening does not ask for it.
    """
    strangers, similarities = {}, {}
    if screening.min_speaker_similarity is not None:
        similarities = speaker_similarities(rows, screening.min_speaker_similarity)
    for key, row in rows.items():
        row["speaker_similarity"] = similarities.get(key)
        try:
            screen_figures(screening, {"speaker_similarity": row["speaker_similarity"]}, clips[key].source)
        except Rejected as error:
            strangers[key] = error
    return strangers
