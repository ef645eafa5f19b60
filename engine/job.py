"""A checked run, from the values of a command line: all that can be checked before a GPU is used."""

from collections import Counter
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from engine.base import zero
from engine.base.hub_origin import hub_origin
from engine.base.recipe import Recipe, load_recipe, recipe_dict
from engine.batch.loader import PackReader
from engine.batch.sample import layout_cost
from engine.batch.whisper import check_conditioning
from engine.model.base_tensors import check_tensors
from engine.model.fingerprint import agreed_fingerprint
from engine.model.weights import weight_dtype
from engine.plan.corpora import Corpora
from engine.plan.of_run import training_plan, validation_packs
from engine.plan.plan import Pack, Plan
from engine.plan.swapped import swap_references
from preprocess.common.errors import InputError
from preprocess.common.json_file import JsonObject
from preprocess.corpus.base_model import check_codec_fits, has_audio_tower
from preprocess.corpus.dialogue import AS_WRITTEN
from preprocess.corpus.shards import CORPUS_FILE
from preprocess.corpus.storage import Cache
from preprocess.corpus.text import normalise_text, tokenizer_fingerprint


@dataclass(frozen=True)
class Job:
    """A checked run: its recipe, model, data, order of the samples, and output folder."""

    recipe: Recipe
    deepspeed_config: JsonObject
    reader: PackReader
    plan: Plan
    validation: list[Pack]
    swapped_validation: list[Pack]  # with other speakers' references; [] if the conditioning gain is not measured
    summary: JsonObject  # of the plan's first epoch
    total_steps: int  # global steps of the whole run: all epochs, or run.max_steps if that is less
    facts: JsonObject  # for checkpoints: origins, recipe, and the identity that a resumed run must share
    places: JsonObject  # of base and corpora on this machine, for run.json alone: checkpoints are given to others
    out: Path


def prepare_job(
    deepspeed: str,
    recipe: str,
    overrides: list[str],
    model: str,
    data: list[str],
    out: str,
    world_size: int,
    cache: Cache | None = None,
) -> Job:
    """The job of a run: recipe, DeepSpeed JSON, base model and corpora read and checked, all steps planned.

    recipe, deepspeed, model: paths; data: folders or addresses of corpora; cache: where remote shards are kept.
    Raises InputError.
    """
    chosen = load_recipe(recipe, overrides)
    _check_monitors(chosen)
    check_tensors(model)
    deepspeed_config = zero.resolve_config(deepspeed, chosen, world_size)
    corpora = Corpora(data, cache)
    reader = PackReader(corpora, model, chosen.forward, chosen.conditioning, weight_dtype(chosen.run.precision))
    _check_corpus_fits_model(reader)
    _check_codebook_weights(chosen, reader)
    check_conditioning(chosen.conditioning, reader.config, corpora)
    _check_as_written(chosen, reader)

    cost = layout_cost(reader.tokenizer, reader.config, reader.system_text, chosen.conditioning)
    plan = training_plan(corpora, chosen, cost)
    summary = plan.summary()
    _check_samples_per_step(summary, chosen)
    total_steps = plan.total_steps(chosen.run.epochs, at_most=chosen.run.max_steps)
    validation = validation_packs(corpora, chosen, cost)
    recipe_facts = recipe_dict(chosen)
    facts = {
        "base": hub_origin(Path(model)),
        "data": _describe_data(corpora),
        "layout": corpora.info["layout"],
        "speech": corpora.info.get("speech", {}),
        "recipe": recipe_facts,
        "world_size": world_size,
        "total_steps": total_steps,
        "identity": {
            "base_fingerprint": agreed_fingerprint(model),
            "conditioning": chosen.conditioning,
            "codec_fingerprint": corpora.info["codec"]["fingerprint"],
            "corpus_fingerprints": corpora.fingerprints,
            "data": {**recipe_facts["data"], "repeat": plan.repeat},
            "lora": recipe_facts["lora"],
            "max_tokens": chosen.batch.max_tokens,
            "packs_per_step": chosen.batch.packs_per_step,
            "seed": chosen.run.seed,
        },
    }
    return Job(
        recipe=chosen,
        deepspeed_config=deepspeed_config,
        reader=reader,
        plan=plan,
        validation=validation,
        swapped_validation=swap_references(validation) if chosen.run.evaluate_conditioning else [],
        summary=summary,
        total_steps=total_steps,
        facts=facts,
        places={
            "base_folder": str(Path(model).resolve()),
            "corpora": [corpus.address for corpus in corpora.corpora],
        },
        out=Path(out),
    )


def _describe_data(corpora: Corpora) -> JsonObject:
    """{"hours": of all corpora, "speakers": {split: number}}, by what each corpus.json says."""
    infos = [corpus.info for corpus in corpora.corpora]
    speakers: Counter[str] = sum((Counter(info.get("speakers") or {}) for info in infos), Counter())
    return {"hours": round(sum(info.get("hours") or 0.0 for info in infos), 3), "speakers": dict(speakers)}


def _check_monitors(recipe: Recipe) -> None:
    if "wandb" not in recipe.run.monitors:
        return
    spec = find_spec("wandb")
    if spec is None or spec.origin is None:  # no origin: a folder wandb/ of an earlier run, which is no package
        raise InputError(
            "recipe: run.monitors",
            "wandb, which is not installed here",
            "monitors that are installed",
            "Install it with `python -m pip install --no-deps -r requirements-wandb.txt`, or leave wandb out.",
        )


def _check_corpus_fits_model(reader: PackReader) -> None:
    """Refuse corpora whose codec, text tokenizer or text normaliser is not that of this model and this release.

    All corpora of a run agree on these, so the first one is checked.
    """
    path, info = reader.corpora.folders[0] / CORPUS_FILE, reader.corpora.info
    check_codec_fits(reader.base, path, info["codec"]["num_codebooks"], info["codec"]["codebook_size"])
    found, expected = info["text_tokenizer"]["fingerprint"], tokenizer_fingerprint(reader.tokenizer)
    if found != expected:
        raise InputError(
            str(path),
            f"text lengths counted by tokenizer {found[:12]}",
            f"tokenizer {expected[:12]} of {reader.model_folder}",
            "Give --model the base that preprocess.shard was given, or run preprocess.shard again with this one.",
        )
    normalise_text("", info["layout"]["normaliser_version"])  # refuses an unknown version


def _check_as_written(recipe: Recipe, reader: PackReader) -> None:
    """Refuse what needs to know which audios are references: an as-written conversation does not say."""
    if reader.corpora.info["layout"].get("name") != AS_WRITTEN:
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


def _check_codebook_weights(recipe: Recipe, reader: PackReader) -> None:
    weights, num_codebooks = recipe.loss.codebook_weights, reader.config.audio_num_codebooks
    if weights and len(weights) != num_codebooks:
        raise InputError(
            "recipe: loss.codebook_weights",
            f"{len(weights)} weights",
            f"{num_codebooks}, one per codebook of the model, or [] for equal ones",
            "Correct the list.",
        )


def _check_samples_per_step(summary: JsonObject, recipe: Recipe) -> None:
    expected, mean = recipe.batch.expected_samples_per_step, summary["samples_per_step"]["mean"]
    if expected and not expected[0] <= mean <= expected[1]:
        raise InputError(
            "recipe: batch.expected_samples_per_step",
            f"{mean:.1f} samples per step on average with batch.max_tokens={recipe.batch.max_tokens} and "
            f"batch.packs_per_step={recipe.batch.packs_per_step}",
            f"{expected[0]} to {expected[1]}",
            "Change batch.max_tokens, or give the range that the learning rate was chosen for.",
        )
