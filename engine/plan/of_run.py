"""The plans of a run, as its recipe asks: for training and for evaluations."""

from engine.base.recipe import Recipe
from engine.plan.corpora import Corpora
from engine.plan.plan import Pack, Plan
from engine.plan.samples import LayoutCost
from preprocess.common.errors import InputError


def training_plan(corpora: Corpora, recipe: Recipe, cost: LayoutCost) -> Plan:
    """The plan of the train split. Raises InputError unless data.repeat is [] or has one number per corpus."""
    folders, repeat = [str(folder) for folder in corpora.folders], recipe.data.repeat
    if repeat and len(repeat) != len(folders):
        raise InputError(
            "recipe: data.repeat",
            f"{len(repeat)} numbers",
            f"{len(folders)}, one per --data in the same order ({', '.join(folders)}), or [] for 1 each",
            "Correct the list.",
        )
    return Plan(
        corpora.index,
        split="train",
        cost=cost,
        packs_per_step=recipe.batch.packs_per_step,
        max_tokens=recipe.batch.max_tokens,
        seed=recipe.run.seed,
        references_per_sample=recipe.data.references_per_sample,
        share_without_reference=recipe.data.share_without_reference,
        repeat=recipe.data.repeat,
    )


def validation_packs(corpora: Corpora, recipe: Recipe, cost: LayoutCost) -> list[Pack]:
    """The packs of every evaluation. Their seed is fixed, so that runs with different seeds can be compared."""
    plan = Plan(
        corpora.index,
        split="val",
        cost=cost,
        packs_per_step=1,
        max_tokens=recipe.batch.max_tokens,
        seed=0,
        references_per_sample=recipe.data.references_per_sample,
    )
    return plan.evaluation_packs()[: recipe.run.evaluate_max_packs or None]
