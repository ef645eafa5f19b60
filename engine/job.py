"""From a command line to a run: everything checked before a GPU is touched, then the engine."""

from dataclasses import dataclass
from pathlib import Path

from engine.base import zero
from engine.base.recipe import Recipe, load_recipe, recipe_dict
from engine.batch.loader import PackReader
from engine.batch.sample import layout_cost
from engine.batch.whisper import check_conditioning
from engine.model.weights import base_fingerprint, weight_dtype
from engine.plan.corpora import Corpora
from engine.plan.of_run import training_plan, validation_packs
from engine.plan.plan import Pack, Plan
from engine.plan.swapped import swap_references
from preprocess.common.errors import InputError
from preprocess.corpus.base_model import check_codec_fits, has_audio_tower
from preprocess.corpus.dialogue import AS_WRITTEN
from preprocess.corpus.shards import CORPUS_FILE
from preprocess.corpus.storage import Cache
from preprocess.corpus.text import normalise_text, tokenizer_fingerprint


@dataclass(frozen=True)
class Job:
    """A checked run: what to train on, in which order, how, and where to."""

    recipe: Recipe
    deepspeed_config: dict
    model_folder: Path
    reader: PackReader
    plan: Plan
    validation: list[Pack]
    swapped_validation: list[Pack]  # with other speakers' references; [] where the gain is not measured
    summary: dict  # of the plan's first epoch
    total_steps: int  # global steps of the whole run: all epochs, or max_steps where that is less
    facts: dict  # written into checkpoints: where things came from, and the identity that a resume must share
    out: Path


def prepare(
    deepspeed: str,
    recipe: str,
    overrides: list[str],
    model: str,
    data: list[str],
    out: str,
    world_size: int,
    cache: Cache | None = None,
) -> Job:
    """Read and check recipe, DeepSpeed JSON, base model and corpora, and plan the run. Raises InputError."""
    chosen = load_recipe(recipe, overrides)
    deepspeed_config = zero.resolve_config(deepspeed, chosen, world_size)
    corpora = Corpora(data, cache)
    reader = PackReader(corpora, model, chosen.forward, chosen.conditioning, weight_dtype(chosen.run.precision))
    _refuse_other_encoding(reader)
    _refuse_other_number_of_weights(chosen, reader)
    check_conditioning(chosen.conditioning, reader.config, corpora)
    _refuse_as_written(chosen, reader)

    cost = layout_cost(reader.tokenizer, reader.config, reader.system_text, chosen.conditioning)
    plan = training_plan(corpora, chosen, cost)
    summary = plan.summary()
    _refuse_other_batch(summary, chosen)
    total_steps = plan.total_steps(chosen.run.epochs, at_most=chosen.run.max_steps)
    validation = validation_packs(corpora, chosen, cost)
    facts = {
        "base": str(Path(model).resolve()),
        "corpora": [corpus.address for corpus in corpora.corpora],
        "layout": corpora.info["layout"],
        "speech": corpora.info.get("speech", {}),
        "recipe": recipe_dict(chosen),
        "world_size": world_size,
        "total_steps": total_steps,
        "identity": {
            "base_fingerprint": base_fingerprint(model),
            "conditioning": chosen.conditioning,
            "codec_fingerprint": corpora.info["codec"]["fingerprint"],
            "corpus_fingerprints": corpora.fingerprints,
            "data": {**recipe_dict(chosen)["data"], "repeat": plan.repeat},
            "lora": recipe_dict(chosen)["lora"],
            "max_tokens": chosen.batch.max_tokens,
            "packs_per_step": chosen.batch.packs_per_step,
            "seed": chosen.run.seed,
        },
    }
    return Job(
        recipe=chosen,
        deepspeed_config=deepspeed_config,
        model_folder=Path(model),
        reader=reader,
        plan=plan,
        validation=validation,
        swapped_validation=swap_references(validation) if chosen.run.evaluate_conditioning else [],
        summary=summary,
        total_steps=total_steps,
        facts=facts,
        out=Path(out),
    )


def _refuse_other_encoding(reader: PackReader) -> None:
    """Codes, tokens and texts of the corpora, which agree, must be those that this model and this release read."""
    corpora = reader.corpus
    path, codec = corpora.folders[0] / CORPUS_FILE, corpora.info["codec"]
    check_codec_fits(reader.base, path, codec["num_codebooks"], codec["codebook_size"])
    found, live = corpora.info["text_tokenizer"]["fingerprint"], tokenizer_fingerprint(reader.tokenizer)
    if found != live:
        raise InputError(
            str(path),
            f"text lengths counted by tokenizer {found[:12]}",
            f"tokenizer {live[:12]} of {reader.model_folder}",
            "Give --model the base that preprocess.shard was given, or run preprocess.shard again with this one.",
        )
    normalise_text("", corpora.info["layout"]["normaliser_version"])  # refuses a version that it does not know


def _refuse_as_written(recipe: Recipe, reader: PackReader) -> None:
    """Conversations as they are written say neither whose voice an audio is nor how a tower would hear it."""
    if reader.corpus.info["layout"].get("name") != AS_WRITTEN:
        return
    refused = {
        f"conditioning={recipe.conditioning}": recipe.conditioning != "codes",
        f"loss.consistency_weight={recipe.loss.consistency_weight}": recipe.loss.consistency_weight > 0,
        f"a base with an audio tower ({reader.model_folder})": has_audio_tower(reader.config),
    }
    if any(refused.values()):
        raise InputError(
            f"a corpus of --layout {AS_WRITTEN}",
            ", ".join(what for what, is_refused in refused.items() if is_refused),
            "conditioning=codes, loss.consistency_weight=0, a base without an audio tower",
            "Change it, or run preprocess.shard with --layout canonical into a new folder.",
        )


def _refuse_other_number_of_weights(recipe: Recipe, reader: PackReader) -> None:
    weights, num_codebooks = recipe.loss.codebook_weights, reader.config.audio_num_codebooks
    if weights and len(weights) != num_codebooks:
        raise InputError(
            "recipe: loss.codebook_weights",
            f"{len(weights)} weights",
            f"{num_codebooks}, one a codebook of the model, or [] for equal ones",
            "Correct the list.",
        )


def _refuse_other_batch(summary: dict, recipe: Recipe) -> None:
    expected, mean = recipe.batch.expected_samples_per_step, summary["samples_per_step"]["mean"]
    if expected and not expected[0] <= mean <= expected[1]:
        raise InputError(
            "recipe: batch.expected_samples_per_step",
            f"{mean:.1f} samples a step on average with batch.max_tokens={recipe.batch.max_tokens} and "
            f"batch.packs_per_step={recipe.batch.packs_per_step}",
            f"{expected[0]} to {expected[1]}",
            "Change batch.max_tokens, or state the range you mean: the learning rate was chosen for it.",
        )
