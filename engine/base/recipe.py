"""The recipe: every choice of a run, as strict dataclasses filled from one YAML file and `key=value` overrides.

Each key is defined here with its range, default, unit and meaning. An unknown key, a wrong type or a value out of
range is an error; all of them are reported together. Everything else is derived: shapes from the base model, batch
arithmetic from the plan, and the "auto" values of the DeepSpeed config from the recipe.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, Field, StrictBool, ValidationInfo, field_validator
from pydantic.dataclasses import dataclass

from preprocess.common.files import write_atomically
from preprocess.common.strict_yaml import STRICT, load_yaml, wrong_value

_LARGEST = 10**9  # upper limit of every count
_SMALLEST_FACTOR, _LARGEST_FACTOR = 1e-30, 1e9  # of factors and times; below the first, fp32 may have 0 instead


def _check_in_fp32(value: float) -> float:
    if value < _SMALLEST_FACTOR:
        raise wrong_value(f"at least {_SMALLEST_FACTOR}")
    return value


Count = Annotated[int, Field(strict=True, ge=0, le=_LARGEST)]
Positive = Annotated[int, Field(strict=True, ge=1, le=_LARGEST)]
Weight = Annotated[float, Field(strict=True, ge=0, le=_LARGEST_FACTOR)]
Above0 = Annotated[float, Field(strict=True, gt=0, le=_LARGEST_FACTOR), AfterValidator(_check_in_fp32)]
# Passes over the data: each is planned, and a sample's number in a run has 63 bits.
Passes = Annotated[int, Field(strict=True, ge=1, le=1_000_000)]
Repeat = Annotated[float, Field(strict=True, gt=0, le=1_000)]
Workers = Annotated[int, Field(strict=True, ge=0, le=1_024)]
Rank = Annotated[int, Field(strict=True, ge=1, le=65_536)]
Share = Annotated[float, Field(strict=True, ge=0, le=1)]
Below1 = Annotated[float, Field(strict=True, ge=0, lt=1)]


def _check_range(ends: list[int]) -> list[int]:
    if len(ends) not in (0, 2) or ends != sorted(ends):
        raise wrong_value("[] or [low, high]")
    return ends


def _check_timeout(seconds: float) -> float:
    if 0 < seconds < 1:
        raise wrong_value("0, or at least 1")
    return seconds


def _check_weights(weights: list[float]) -> list[float]:
    if weights and not any(weights):
        raise wrong_value("[] or weights with at least one above 0")
    return weights


@dataclass(frozen=True, config=STRICT)
class Batch:
    """Size of an optimiser step. A global step is `packs_per_step` packs; a pack is a micro-batch."""

    max_tokens: Positive = Field(default=8192, description="most text tokens plus audio columns per pack")
    packs_per_step: Positive = Field(default=8, description="packs per global step; a multiple of the world size")
    checkpointed_layers: Count = Field(
        default=0, description="how many of the first layers recompute activations: less memory, more time"
    )
    loader_workers: Workers = Field(
        default=16, description="reader processes per rank; 0 = the training process reads"
    )
    expected_samples_per_step: Annotated[list[Count], Field(strict=True), AfterValidator(_check_range)] = Field(
        default=[], description="[low, high] for the mean samples per step; a plan outside it is refused; [] = any"
    )


@dataclass(frozen=True, config=STRICT)
class Data:
    """The samples of an epoch, and how many references each has."""

    references_per_sample: Annotated[int, Field(strict=True, ge=1, le=3)] = Field(
        default=1, description="references drawn from the same speaker's other clips; fewer if there are fewer"
    )
    share_without_reference: Share = Field(
        default=0.0,
        description="share of the samples with drawn references to train without one, chosen anew each epoch",
    )
    repeat: Annotated[list[Repeat], Field(strict=True)] = Field(
        default=[],
        description="times an epoch takes each sample of a corpus, one number per --data; [] = 1 each. 0.25 takes a "
        "quarter of the samples, and the next quarter in the next epoch; 2.5 takes half of them twice and half "
        "three times; references are drawn afresh each time",
    )


@dataclass(frozen=True, config=STRICT)
class Lora:
    """PEFT LoRA."""

    mode: Literal["attention", "audio", "full"] = Field(
        default="full",
        description="adapted layers: attention; audio = attention, the audio_mlp of the DualFFN layers and the audio "
        "head; full = attention, both FFNs and both heads",
    )
    rank: Rank = Field(default=32, description="rank of the update of each adapted layer")
    alpha: Above0 = Field(default=64.0, description="scale of the update: alpha / rank (rslora: alpha / sqrt(rank))")
    dropout: Below1 = Field(default=0.05, description="share of an adapter's inputs set to 0 in a step")
    rslora: StrictBool = Field(default=False, description="rank-stabilised LoRA")
    dora: StrictBool = Field(default=False, description="weight-decomposed LoRA; slower")
    train_whole: Annotated[list[Literal["audio_head", "text_head"]], Field(strict=True)] = Field(
        default=[], description="heads whose full weights are trained, instead of a LoRA"
    )


@dataclass(frozen=True, config=STRICT)
class Loss:
    """The loss. Each of its parts is a mean over the whole global step: over labelled positions, or over samples."""

    text_weight: Weight = Field(default=1.0, description="factor of the text loss")
    audio_weight: Above0 = Field(default=1.0, description="factor of the audio loss")
    codebook_weights: Annotated[list[Weight], Field(strict=True), AfterValidator(_check_weights)] = Field(
        default=[], description="weight of each codebook in the audio loss, scaled to sum 1; [] = equal"
    )
    label_smoothing: Below1 = Field(
        default=0.0, description="of both losses, as in torch's cross_entropy; reported losses leave it out"
    )
    consistency_weight: Weight = Field(
        default=0.0, description="factor of the loss of engine.model.consistency; 0 = off, 0.1 is usual"
    )
    consistency_temperature: Above0 = Field(default=0.1, description="its cosine similarities are divided by this")


@dataclass(frozen=True, config=STRICT)
class Optimizer:
    """AdamW, clipping and the learning rate: linear warm-up, then cosine down to `lr * final_lr_share`."""

    lr: Above0 = Field(default=2e-4, description="learning rate after the warm-up")
    final_lr_share: Share = Field(default=0.1, description="learning rate of the last step, as a share of lr")
    warmup_steps: Count = Field(default=500, description="global steps in which the learning rate rises to lr")
    betas: Annotated[list[Below1], Field(strict=True, min_length=2, max_length=2)] = Field(
        default=[0.9, 0.99], description="AdamW's decay of the first and of the second moment"
    )
    eps: Above0 = Field(default=1e-8, description="AdamW's eps: keeps its division from being by 0")
    weight_decay: Weight = Field(default=0.01, description="AdamW's decay of the trained weights")
    gradient_clipping: Above0 = Field(default=1.0, description="largest L2 norm of all gradients together")


@dataclass(frozen=True, config=STRICT)
class Run:
    """Length, precision and randomness of the run, and the intervals of its logs, evaluations and checkpoints."""

    epochs: Passes = Field(default=3, description="passes over the training split")
    max_steps: Count = Field(default=0, description="global steps after which the run ends; 0 = all epochs")
    precision: Literal["bf16", "fp32"] = Field(default="bf16", description="dtype of weights and activations")
    seed: Annotated[int, Field(strict=True, ge=0, lt=2**63)] = Field(
        default=0, description="seed of the plan, dropout and the initial LoRA weights"
    )
    deterministic: StrictBool = Field(default=False, description="bit-exact CUDA kernels; slower")
    log_every: Positive = Field(default=10, description="global steps between two records of training metrics")
    evaluate_every: Positive = Field(default=500, description="global steps between two evaluations")
    evaluate_max_packs: Count = Field(
        default=64, description="packs of the validation split per evaluation, always the same ones; 0 = all"
    )
    evaluate_conditioning: StrictBool = Field(
        default=True, description="evaluate a second time with other speakers' references: the conditioning gain"
    )
    save_every: Positive = Field(default=500, description="global steps between two checkpoints")
    hang_timeout_sec: Annotated[Weight, AfterValidator(_check_timeout)] = Field(
        default=300.0,
        description="seconds without progress after which the run ends and names the rank that hangs; 0 = never",
    )
    keep_checkpoints: Positive = Field(default=3, description="newest checkpoints kept, besides the best")
    monitors: Annotated[list[Literal["tensorboard", "csv_monitor", "wandb"]], Field(strict=True)] = Field(
        default=["tensorboard"], description="where metrics are written besides metrics.jsonl"
    )


@dataclass(frozen=True, config=STRICT)
class Recipe:
    """One training run."""

    batch: Batch = Field(default_factory=Batch, description="size of an optimiser step")
    data: Data = Field(default_factory=Data, description="samples of an epoch and their references")
    lora: Lora = Field(default_factory=Lora, description="adapted layers and the size of their updates")
    loss: Loss = Field(default_factory=Loss, description="weights of the losses")
    optimizer: Optimizer = Field(default_factory=Optimizer, description="AdamW and the learning rate")
    run: Run = Field(default_factory=Run, description="length, precision, logs and checkpoints")
    forward: Literal["packed", "boson"] = Field(
        default="packed", description="packed (fast) or boson (Boson's own, on a padded batch: slow, the reference)"
    )
    conditioning: Literal["codes", "whisper", "both"] = Field(
        default="codes",
        description="what the model gets of a reference: its codes; with a base that has an audio tower also whisper "
        "(its 16 kHz waveform) or both, which Boson's serve engine does not offer",
    )

    # `info.data` holds the valid ones of the keys above.
    @field_validator("forward")
    @classmethod
    def _fits_batch_and_loss(cls, forward: str, info: ValidationInfo) -> str:
        batch, loss = info.data.get("batch"), info.data.get("loss")
        wrong = []
        if forward == "boson" and batch and batch.checkpointed_layers > 0:
            wrong.append(f"batch.checkpointed_layers={batch.checkpointed_layers}, which boson can't recompute")
        if forward == "boson" and loss and loss.consistency_weight > 0:
            wrong.append(f"loss.consistency_weight={loss.consistency_weight}: boson pools no hidden states")
        if wrong:
            raise wrong_value(f"packed with {', and with '.join(wrong)}")
        return forward

    @field_validator("conditioning")
    @classmethod
    def _fits_forward_and_loss(cls, conditioning: str, info: ValidationInfo) -> str:
        loss = info.data.get("loss")
        wrong = []
        if conditioning != "codes" and info.data.get("forward") == "boson":
            wrong.append("forward=boson, which leaves the projector without a gradient where a pack has no waveform")
        if conditioning == "whisper" and loss and loss.consistency_weight > 0:
            weight = f"loss.consistency_weight={loss.consistency_weight}"
            wrong.append(f"{weight}, which compares columns that waveforms do not have")
        if wrong:
            raise wrong_value(f"codes with {', and with '.join(wrong)}")
        return conditioning


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """The complete recipe: a YAML file with `group.key=value` overrides applied. Raises InputError."""
    return load_yaml(Path(path), Recipe, "engine/base/recipe.py", overrides, example="launch/recipes/*.yaml")


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write the complete recipe as YAML, so that a run can be repeated from its folder."""
    write_atomically(path, yaml.safe_dump(recipe_dict(recipe), sort_keys=False).encode())


def recipe_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as nested dictionaries that JSON can hold."""
    return asdict(recipe)
