"""The recipe: every choice of a run, as strict dataclasses filled from one YAML file and `key=value` overrides.

An unknown key, a wrong type or a value out of range is an error; all of them are reported together. What is
not here is derived: shapes from the base model, batch arithmetic from the plan, DeepSpeed's "auto" from here.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from preprocess.common.files import write_atomically
from preprocess.common.strict_yaml import load_yaml, refuse_wrong_values

CONDITIONINGS = ("codes", "whisper", "both")


@dataclass
class Batch:
    """What one optimiser step sees. A global step is `packs_per_step` packs; a pack is a micro-batch."""

    max_tokens: int = 8192  # tokens of text and audio columns a pack may hold
    packs_per_step: int = 8  # M; must be a multiple of the world size
    checkpointed_layers: int = 0  # layers, from the first, that recompute activations: less memory, more time
    loader_workers: int = 16  # processes a rank that read and tokenise; 0 reads in the training process
    expected_samples_per_step: list[int] = field(default_factory=list)  # [low, high] refused outside; [] = any


@dataclass
class Data:
    """Which samples an epoch takes, and with how many references."""

    references_per_sample: int = 1  # 1 to 3 drawn from the same speaker's other clips; fewer where there are fewer
    share_without_reference: float = 0.0  # of the samples with drawn references: trains without, others each epoch
    # Times an epoch takes each sample of a corpus, one number a --data; [] = 1 each. 0.25 takes a quarter an epoch,
    # the next quarter in the next; 2.5 takes half of them twice and half three times; references are fresh each time.
    repeat: list[float] = field(default_factory=list)


@dataclass
class Lora:
    """PEFT LoRA. `mode` is attention, audio (attention and audio_mlp of DualFFN layers, audio head) or full."""

    mode: str = "full"
    rank: int = 32
    alpha: float = 64.0
    dropout: float = 0.05
    rslora: bool = False
    dora: bool = False
    train_whole: list[str] = field(default_factory=list)  # of audio_head, text_head: trained whole, not by LoRA


@dataclass
class Loss:
    """What the gradient is of. Each loss is a mean over the whole global step: its labelled positions, or samples."""

    text_weight: float = 1.0
    audio_weight: float = 1.0
    codebook_weights: list[float] = field(default_factory=list)  # one a codebook, scaled to sum 1; [] = equal
    label_smoothing: float = 0.0  # of text and audio, as torch's cross_entropy; reported losses stay without it
    consistency_weight: float = 0.0  # of the reference consistency (engine.model.consistency); 0 = off, 0.1 when on
    consistency_temperature: float = 0.1  # that its cosine similarities are divided by


@dataclass
class Optimizer:
    """AdamW, clipping and the learning rate: linear warm-up, then cosine down to `lr * final_lr_share`."""

    lr: float = 2e-4
    final_lr_share: float = 0.1
    warmup_steps: int = 500
    betas: list[float] = field(default_factory=lambda: [0.9, 0.99])
    eps: float = 1e-8
    weight_decay: float = 0.01
    gradient_clipping: float = 1.0  # L2 norm over all gradients


@dataclass
class Run:
    """Length, precision, randomness and what happens every so many global steps."""

    epochs: int = 3
    max_steps: int = 0  # stop after so many global steps; 0 = all epochs
    precision: str = "bf16"  # bf16 or fp32
    seed: int = 0
    deterministic: bool = False  # bit-exact CUDA kernels; slower
    log_every: int = 10
    evaluate_every: int = 500
    evaluate_max_packs: int = 64  # of the validation split, the same each time; 0 = all
    evaluate_conditioning: bool = True  # a second pass over them with other speakers' references: conditioning gain
    save_every: int = 500
    keep_checkpoints: int = 3  # newest ones kept beside the best
    monitors: list[str] = field(default_factory=lambda: ["tensorboard"])  # also csv_monitor, wandb


@dataclass
class Recipe:
    """One training run.

    `forward` is packed (fast) or boson (Boson's own on a padded batch: slow, the oracle). `conditioning` says how
    references are shown: codes; for bases with an audio tower also whisper (heard as 16 kHz waveforms) or both,
    which Boson's stock serve engine does not offer.
    """

    batch: Batch = field(default_factory=Batch)
    data: Data = field(default_factory=Data)
    lora: Lora = field(default_factory=Lora)
    loss: Loss = field(default_factory=Loss)
    optimizer: Optimizer = field(default_factory=Optimizer)
    run: Run = field(default_factory=Run)
    forward: str = "packed"
    conditioning: str = "codes"


def load_recipe(path: Path | str, overrides: list[str] = ()) -> Recipe:
    """The recipe of a YAML file with `group.key=value` overrides applied, complete and checked."""
    path = Path(path)
    recipe = load_yaml(path, Recipe, "engine/base/recipe.py", overrides, example="launch/recipes/*.yaml")
    _check_values(str(path), recipe)
    return recipe


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write the complete recipe, so that a run can be repeated from its folder."""
    write_atomically(path, OmegaConf.to_yaml(OmegaConf.structured(recipe)).encode())


def recipe_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain JSON-able values."""
    return OmegaConf.to_container(OmegaConf.structured(recipe))


def _check_values(where: str, recipe: Recipe) -> None:
    """Refuse values out of range and keys that do not go together, all of them in one message."""
    batch, lora, loss, optimizer, run = recipe.batch, recipe.lora, recipe.loss, recipe.optimizer, recipe.run
    data = recipe.data
    ranges = [
        ("forward", recipe.forward, "packed or boson", recipe.forward in ("packed", "boson")),
        (
            "conditioning",
            recipe.conditioning,
            f"one of {', '.join(CONDITIONINGS)}",
            recipe.conditioning in CONDITIONINGS,
        ),
        ("batch.max_tokens", batch.max_tokens, "1 or more", batch.max_tokens >= 1),
        ("batch.packs_per_step", batch.packs_per_step, "1 or more", batch.packs_per_step >= 1),
        ("batch.checkpointed_layers", batch.checkpointed_layers, "0 or more", batch.checkpointed_layers >= 0),
        ("batch.loader_workers", batch.loader_workers, "0 or more", batch.loader_workers >= 0),
        (
            "batch.expected_samples_per_step",
            batch.expected_samples_per_step,
            "[] or [low, high]",
            len(batch.expected_samples_per_step) in (0, 2)
            and batch.expected_samples_per_step == sorted(batch.expected_samples_per_step),
        ),
        ("data.references_per_sample", data.references_per_sample, "1 to 3", 1 <= data.references_per_sample <= 3),
        (
            "data.share_without_reference",
            data.share_without_reference,
            "0 to 1",
            0 <= data.share_without_reference <= 1,
        ),
        ("data.repeat", data.repeat, "[] or numbers above 0", all(0 < times < math.inf for times in data.repeat)),
        ("lora.mode", lora.mode, "attention, audio or full", lora.mode in ("attention", "audio", "full")),
        ("lora.rank", lora.rank, "1 or more", lora.rank >= 1),
        ("lora.alpha", lora.alpha, "above 0", lora.alpha > 0),
        ("lora.dropout", lora.dropout, "0 to below 1", 0 <= lora.dropout < 1),
        (
            "lora.train_whole",
            lora.train_whole,
            "audio_head, text_head or both",
            set(lora.train_whole) <= {"audio_head", "text_head"},
        ),
        ("loss.text_weight", loss.text_weight, "0 or more", loss.text_weight >= 0),
        ("loss.audio_weight", loss.audio_weight, "above 0", loss.audio_weight > 0),
        (
            "loss.codebook_weights",
            loss.codebook_weights,
            "[] or weights of 0 or more, one above 0",
            not loss.codebook_weights or (min(loss.codebook_weights) >= 0 and max(loss.codebook_weights) > 0),
        ),
        ("loss.label_smoothing", loss.label_smoothing, "0 to below 1", 0 <= loss.label_smoothing < 1),
        ("loss.consistency_weight", loss.consistency_weight, "0 or more", loss.consistency_weight >= 0),
        ("loss.consistency_temperature", loss.consistency_temperature, "above 0", loss.consistency_temperature > 0),
        ("optimizer.lr", optimizer.lr, "above 0", 0 < optimizer.lr < math.inf),
        ("optimizer.eps", optimizer.eps, "above 0", optimizer.eps > 0),
        ("optimizer.weight_decay", optimizer.weight_decay, "0 or more", optimizer.weight_decay >= 0),
        ("optimizer.final_lr_share", optimizer.final_lr_share, "0 to 1", 0 <= optimizer.final_lr_share <= 1),
        ("optimizer.warmup_steps", optimizer.warmup_steps, "0 or more", optimizer.warmup_steps >= 0),
        (
            "optimizer.betas",
            optimizer.betas,
            "two numbers from 0 to below 1",
            len(optimizer.betas) == 2 and all(0 <= b < 1 for b in optimizer.betas),
        ),
        ("optimizer.gradient_clipping", optimizer.gradient_clipping, "above 0", optimizer.gradient_clipping > 0),
        ("run.epochs", run.epochs, "1 or more", run.epochs >= 1),
        ("run.max_steps", run.max_steps, "0 or more", run.max_steps >= 0),
        ("run.precision", run.precision, "bf16 or fp32", run.precision in ("bf16", "fp32")),
        ("run.seed", run.seed, "0 or more", run.seed >= 0),
        (
            "run.monitors",
            run.monitors,
            "some of tensorboard, csv_monitor, wandb",
            set(run.monitors) <= {"tensorboard", "csv_monitor", "wandb"},
        ),
        ("run.log_every", run.log_every, "1 or more", run.log_every >= 1),
        ("run.evaluate_every", run.evaluate_every, "1 or more", run.evaluate_every >= 1),
        ("run.evaluate_max_packs", run.evaluate_max_packs, "0 or more", run.evaluate_max_packs >= 0),
        ("run.save_every", run.save_every, "1 or more", run.save_every >= 1),
        ("run.keep_checkpoints", run.keep_checkpoints, "1 or more", run.keep_checkpoints >= 1),
    ]
    refuse_wrong_values(where, ranges + _combinations(recipe))


def _combinations(recipe: Recipe) -> list[tuple[str, object, str, bool]]:
    """What a key must be beside others, as `refuse_wrong_values` takes it."""
    batch, loss, is_boson = recipe.batch, recipe.loss, recipe.forward == "boson"
    return [
        (
            "conditioning",
            recipe.conditioning,
            "codes with forward=boson, which leaves the projector without a gradient where a pack hears nothing",
            not is_boson or recipe.conditioning == "codes",
        ),
        (
            "batch.checkpointed_layers",
            batch.checkpointed_layers,
            "0 with forward=boson, which can't recompute",
            not is_boson or batch.checkpointed_layers == 0,
        ),
        (
            "loss.consistency_weight",
            loss.consistency_weight,
            "0 with forward=boson, which pools no hidden states",
            not is_boson or loss.consistency_weight == 0,
        ),
        (
            "loss.consistency_weight",
            loss.consistency_weight,
            "0 with conditioning=whisper, whose references have no columns to compare with",
            recipe.conditioning != "whisper" or loss.consistency_weight == 0,
        ),
    ]
