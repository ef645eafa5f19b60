"""The form of a checkpoint's state.json: its values and their types."""

from typing import Any

from preprocess.common.record import Form
from preprocess.corpus.corpus_record import Amount, Count, Finite, LayoutForm, Sha256, SpeechForm


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


class OriginForm(Form):
    """engine.base.hub_origin.hub_origin."""

    id: str | None
    revision: str | None


class DataForm(Form):
    """What the corpora of a run hold together. speakers: {split: number}."""

    hours: Amount
    speakers: dict[str, Count]


class ValidationForm(Form):
    """The last validation: mean losses in nats. The gain is missing where it is not measured."""

    step: Count
    loss_audio: Finite
    loss_text: Finite
    conditioning_gain: Finite | None = None


class StateForm(Form):
    """state.json: sizes and hashes of the checkpoint's other files, facts of the run, its progress."""

    step: Count
    bytes: dict[str, Count]
    sha256: dict[str, Sha256]
    base: OriginForm
    data: DataForm
    hardware: str
    layout: LayoutForm
    speech: SpeechForm
    recipe: dict[str, Any]
    identity: IdentityForm
    world_size: Count
    total_steps: Count
    lineage: list[dict[str, Any]]
    validation: ValidationForm | None
    best_loss: Finite | None
    best_step: Count | None
    pending_evaluation: bool
