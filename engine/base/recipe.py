"""The recipe: every choice of a run, as strict dataclasses filled from one YAML file and `key=value` overrides.

Each key stands with its range, default and meaning. An unknown key, a wrong type or a value out of range is an error;
all of them are reported together. What is not here is derived: shapes from the base model, batch arithmetic from the
plan, DeepSpeed's "auto" from here.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, Field, StrictBool, ValidationInfo, field_validator
from pydantic.dataclasses import dataclass

from preprocess.common.files import write_atomically
from preprocess.common.strict_yaml import STRICT, load_yaml, wrong_value

_LARGEST = 10**9  # of a number that counts something
Count = Annotated[int, Field(strict=True, ge=0, le=_LARGEST)]
Positive = Annotated[int, Field(strict=True, ge=1, le=_LARGEST)]
Weight = Annotated[float, Field(strict=True, ge=0)]
Above0 = Annotated[float, Field(strict=True, gt=0)]
Share = Annotated[float, Field(strict=True, ge=0, le=1)]
Below1 = Annotated[float, Field(strict=True, ge=0, lt=1)]


def _is_range(ends: list[int]) -> list[int]:
    if len(ends) not in (0, 2) or ends != sorted(ends):
        raise wrong_value("[] or [low, high]")
    return ends


def _has_one_above_0(weights: list[float]) -> list[float]:
    if weights and not any(weights):
        raise wrong_value("[] or weights with one above 0")
    return weights


@dataclass(frozen=True, config=STRICT)
class Batch:
    """What one optimiser step sees. A global step is `packs_per_step` packs; a pack is a micro-batch."""

    max_tokens: Positive = Field(8192, description="text tokens and audio columns that a pack may hold")
    packs_per_step: Positive = Field(8, description="packs per global step; must be a multiple of the world size")
    checkpointed_layers: Count = Field(
        0, description="layers, from the first, that recompute activations: less memory, more time"
    )
    loader_workers: Count = Field(
        16, description="processes per rank that read and tokenise; 0 reads in the training process"
    )
    expected_samples_per_step: Annotated[list[Count], Field(strict=True), AfterValidator(_is_range)] = Field(
        default_factory=list, description="[low, high] of the mean samples per step; outside is refused; [] = any"
    )


@dataclass(frozen=True, config=STRICT)
class Data:
    """Which samples an epoch takes, and with how many references."""

    references_per_sample: Annotated[int, Field(strict=True, ge=1, le=3)] = Field(
        1, description="references drawn from the same speaker's other clips; fewer where there are fewer"
    )
    share_without_reference: Share = Field(
        0.0, description="share of the samples with drawn references that train without, others each epoch"
    )
    repeat: Annotated[list[Above0], Field(strict=True)] = Field(
        default_factory=list,
        description="times an epoch takes each sample of a corpus, one number per --data; [] = 1 each. 0.25 takes a "
        "quarter per epoch, the next quarter in the next; 2.5 takes half of them twice and half three times; "
        "references are drawn afresh each time",
    )


@dataclass(frozen=True, config=STRICT)
class Lora:
    """PEFT LoRA."""

    mode: Literal["attention", "audio", "full"] = Field(
        "full",
        description="layers that are adapted: attention; audio = attention and audio_mlp of the DualFFN layers and "
        "the audio head; full = attention, both FFNs and both heads",
    )
    rank: Positive = Field(32, description="rank of each adapted layer's update")
    alpha: Above0 = Field(64.0, description="the update is scaled by alpha / rank (rslora: alpha / sqrt(rank))")
    dropout: Below1 = Field(0.05, description="share of an adapter's inputs that a step drops")
    rslora: StrictBool = Field(False, description="rank-stabilised LoRA")
    dora: StrictBool = Field(False, description="weight-decomposed LoRA; slower")
    train_whole: Annotated[list[Literal["audio_head", "text_head"]], Field(strict=True)] = Field(
        default_factory=list, description="heads that are trained whole, not by LoRA"
    )


@dataclass(frozen=True, config=STRICT)
class Loss:
    """What the gradient is of. Each loss is a mean over the whole global step: its labelled positions, or samples."""

    text_weight: Weight = Field(1.0, description="factor of the text loss")
    audio_weight: Above0 = Field(1.0, description="factor of the audio loss")
    codebook_weights: Annotated[list[Weight], Field(strict=True), AfterValidator(_has_one_above_0)] = Field(
        default_factory=list, description="one per codebook in the audio loss, scaled to sum 1; [] = equal"
    )
    label_smoothing: Below1 = Field(
        0.0, description="of text and audio, as torch's cross_entropy; reported losses stay without it"
    )
    consistency_weight: Weight = Field(
        0.0, description="factor of the reference consistency (engine.model.consistency); 0 = off, 0.1 when on"
    )
    consistency_temperature: Above0 = Field(0.1, description="what its cosine similarities are divided by")


@dataclass(frozen=True, config=STRICT)
class Optimizer:
    """AdamW, clipping and the learning rate: linear warm-up, then cosine down to `lr * final_lr_share`."""

    lr: Above0 = Field(2e-4, description="learning rate after the warm-up")
    final_lr_share: Share = Field(0.1, description="learning rate of the last step, as a share of lr")
    warmup_steps: Count = Field(500, description="global steps in which the learning rate rises to lr")
    betas: Annotated[list[Below1], Field(strict=True, min_length=2, max_length=2)] = Field(
        default_factory=lambda: [0.9, 0.99], description="AdamW's decay of the first and of the second moment"
    )
    eps: Above0 = Field(1e-8, description="AdamW's term against a division by 0")
    weight_decay: Weight = Field(0.01, description="AdamW's decay of the trained weights")
    gradient_clipping: Above0 = Field(1.0, description="largest L2 norm over all gradients")


@dataclass(frozen=True, config=STRICT)
class Run:
    """Length, precision, randomness and what happens every so many global steps."""

    epochs: Positive = Field(3, description="times the training split is gone through")
    max_steps: Count = Field(0, description="global steps after which the run ends; 0 = all epochs")
    precision: Literal["bf16", "fp32"] = Field("bf16", description="dtype of the model's weights and activations")
    seed: Annotated[int, Field(strict=True, ge=0, lt=2**63)] = Field(
        0, description="seed of the plan, of dropout and of the LoRA weights' start"
    )
    deterministic: StrictBool = Field(False, description="bit-exact CUDA kernels; slower")
    log_every: Positive = Field(10, description="global steps between two lines of training metrics")
    evaluate_every: Positive = Field(500, description="global steps between two evaluations")
    evaluate_max_packs: Count = Field(
        64, description="packs of the validation split in an evaluation, the same each time; 0 = all"
    )
    evaluate_conditioning: StrictBool = Field(
        True, description="a second pass over them with other speakers' references: conditioning gain"
    )
    save_every: Positive = Field(500, description="global steps between two checkpoints")
    keep_checkpoints: Positive = Field(3, description="newest checkpoints that are kept beside the best")
    monitors: Annotated[list[Literal["tensorboard", "csv_monitor", "wandb"]], Field(strict=True)] = Field(
        default_factory=lambda: ["tensorboard"], description="where metrics go beside metrics.jsonl"
    )


@dataclass(frozen=True, config=STRICT)
class Recipe:
    """One training run."""

    batch: Batch = Field(default_factory=Batch, description="what one optimiser step sees")
    data: Data = Field(default_factory=Data, description="which samples an epoch takes")
    lora: Lora = Field(default_factory=Lora, description="what is trained")
    loss: Loss = Field(default_factory=Loss, description="what the gradient is of")
    optimizer: Optimizer = Field(default_factory=Optimizer, description="AdamW and the learning rate")
    run: Run = Field(default_factory=Run, description="length, precision, logs and checkpoints")
    forward: Literal["packed", "boson"] = Field(
        "packed", description="packed (fast) or boson (Boson's own on a padded batch: slow, the oracle)"
    )
    conditioning: Literal["codes", "whisper", "both"] = Field(
        "codes",
        description="how references are shown: codes; for bases with an audio tower also whisper (16 kHz waveforms) "
        "or both, which Boson's stock serve engine does not offer",
    )

    # A key is checked against those before it; `info.data` holds the ones that are right.
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


def load_recipe(path: Path | str, overrides: list[str] = ()) -> Recipe:
    """The recipe of a YAML file with `group.key=value` overrides applied, complete and checked."""
    return load_yaml(Path(path), Recipe, "engine/base/recipe.py", overrides, example="launch/recipes/*.yaml")


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write the complete recipe, so that a run can be repeated from its folder."""
    write_atomically(path, yaml.safe_dump(recipe_dict(recipe), sort_keys=False).encode())


def recipe_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain JSON-able values."""
    return asdict(recipe)
