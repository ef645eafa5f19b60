"""Which of the recipes in launch/recipes fits a corpus, by arithmetic on the numbers in these files.

A recipe that says which number of samples per step its learning rate was chosen for is refused with a corpus whose
samples are longer, shorter or fewer. The overrides that are then needed stand behind the recipe.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from preprocess.plan.sample_lengths import SampleLengths

RECIPES = Path("launch/recipes")  # in the repository, where the printed command runs
_ROOT = Path(__file__).resolve().parents[2]
LARGE_CORPUS, SMALL_CORPUS = "arabic_8xh200.yaml", "small_corpus.yaml"
_TOKENS_STEP = 1024  # a raised batch.max_tokens is a multiple of it
# Drawn references differ from epoch to epoch, and so does an epoch's total.
_TOTAL_MAY_DIFFER = 0.05


@dataclass(frozen=True)
class Batch:
    """The numbers of a recipe that decide about a step and the number of steps."""

    max_tokens: int
    packs_per_step: int
    expected_samples: tuple[int, int] | None  # None: any number
    warmup_steps: int
    epochs: int

    def steps_per_epoch(self, lengths: SampleLengths) -> tuple[int, int]:
        """Fewest and most steps. The longer the samples, the more of a pack may stay empty."""
        fullest, emptiest = 1.0, 1 - min(lengths.total_tokens / lengths.num_samples / self.max_tokens / 2, 0.5)
        return (
            self._num_steps(lengths.total_tokens * (1 - _TOTAL_MAY_DIFFER), fullest),
            self._num_steps(lengths.total_tokens * (1 + _TOTAL_MAY_DIFFER), emptiest),
        )

    def _num_steps(self, total_tokens: float, fill: float) -> int:
        return max(math.ceil(math.ceil(total_tokens / (self.max_tokens * fill)) / self.packs_per_step), 1)

    def fits(self, lengths: SampleLengths) -> bool:
        """Whether steps have as many samples as expected, and every sample has room in a pack."""
        fewest, most = self.steps_per_epoch(lengths)
        low, high = self.expected_samples or (0, math.inf)
        means = lengths.num_samples / most, lengths.num_samples / fewest
        return lengths.longest_tokens <= self.max_tokens and low <= means[0] and means[1] <= high


def read_batch(name: str) -> Batch:
    """The numbers of launch/recipes/NAME."""
    recipe = yaml.safe_load((_ROOT / RECIPES / name).read_text(encoding="utf-8"))
    batch = recipe["batch"]
    low, high = batch["expected_samples_per_step"]
    numbers = batch["max_tokens"], batch["packs_per_step"]
    return Batch(*numbers, (low, high), recipe["optimizer"]["warmup_steps"], recipe["run"]["epochs"])


def choose_recipe(lengths: SampleLengths) -> tuple[str, list[str]]:
    """(file in launch/recipes, overrides group.key=value that it needs) for samples of these lengths, at least one.

    The large recipe is for a corpus on which its run has twice as many steps as its warm-up.
    """
    for name in (LARGE_CORPUS, SMALL_CORPUS):
        recipe = read_batch(name)
        batch = next((batch for batch in _variants(recipe, lengths) if batch.fits(lengths)), None)
        if batch and batch.steps_per_epoch(lengths)[0] * batch.epochs >= 2 * batch.warmup_steps:
            return name, _overrides(recipe, batch)
    return SMALL_CORPUS, _overrides_of_few(recipe, batch, lengths)


def _variants(recipe: Batch, lengths: SampleLengths) -> Iterator[Batch]:
    """The recipe, then with more packs per step for long samples, then with smaller packs for short ones."""
    room = max(recipe.max_tokens, _round_up(lengths.longest_tokens))
    for factor in range(1, 17):
        yield replace(recipe, max_tokens=room, packs_per_step=recipe.packs_per_step * factor)
    for divisor in (2, 4, 8):
        yield replace(recipe, max_tokens=room // divisor)


def _overrides_of_few(recipe: Batch, batch: Batch | None, lengths: SampleLengths) -> list[str]:
    """Those of a corpus with few steps: a shorter warm-up, and where no step has as many samples as expected, any."""
    lasting = batch or replace(
        recipe,
        max_tokens=max(recipe.max_tokens, _round_up(lengths.longest_tokens)),
        packs_per_step=1,
        expected_samples=None,
    )
    overrides = _overrides(recipe, lasting)
    total_steps = lasting.steps_per_epoch(lengths)[0] * recipe.epochs
    if total_steps < 2 * recipe.warmup_steps:
        overrides.append(f"optimizer.warmup_steps={total_steps // 10}")
    return overrides


def _overrides(recipe: Batch, batch: Batch) -> list[str]:
    changed = []
    if batch.max_tokens != recipe.max_tokens:
        changed.append(f"batch.max_tokens={batch.max_tokens}")
    if batch.packs_per_step != recipe.packs_per_step:
        changed.append(f"batch.packs_per_step={batch.packs_per_step}")
    if batch.expected_samples != recipe.expected_samples:
        changed.append("batch.expected_samples_per_step=[]")
    return changed


def _round_up(tokens: float) -> int:
    return math.ceil(tokens / _TOKENS_STEP) * _TOKENS_STEP
