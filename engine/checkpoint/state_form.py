"""The form of a checkpoint's state.json: its values and their types."""

from typing import Any

from preprocess.common.record import Form
from preprocess.corpus.corpus_record import Count, Finite, LayoutForm, Sha256, SpeechForm


class LoraForm(Form):
    """The recipe's `lora`, as far as --init-adapter compares it."""

    rank: int
    alpha: Finite
    rslora: bool
    dora: bool
    mode: str
    train_whole: list[str]


class IdentityForm(Form):
    """The facts of a run that must stay the same when it resumes."""

    base_fingerprint: str
    codec_fingerprint: str
    corpus_fingerprints: list[str]
    lora: LoraForm


class StateForm(Form):
    """state.json: sizes and hashes of the checkpoint's other files, facts of the run, its progress."""

    step: Count
    bytes: dict[str, Count]
    sha256: dict[str, Sha256]
    base: str
    layout: LayoutForm
    speech: SpeechForm
    recipe: dict[str, Any]
    identity: IdentityForm
    world_size: Count
    total_steps: Count
    lineage: list[dict[str, Any]]
    best_loss: Finite | None
    best_step: Count | None
    pending_evaluation: bool
