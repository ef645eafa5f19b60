"""The command that preprocess.shard prints at its end is one line for a shell, and training takes it as it is."""

import shlex

import numpy as np
import pyarrow as pa
import pytest

from engine.base.recipe import load_recipe
from engine.base.zero import resolve_config
from engine.batch.sample import layout_cost
from engine.job import _check_samples_per_step, prepare_job
from engine.plan.plan import Plan
from launch.train import parse_arguments
from preprocess.corpus.base_model import read_base_model
from preprocess.corpus.dialogue import DEFAULT_SYSTEM_TEXT
from preprocess.corpus.shards import INDEX_SCHEMA
from preprocess.finish.next_command import train_command
from preprocess.plan.recipe_choice import choose_recipe
from preprocess.plan.sample_lengths import ClipLength, measure_samples
from tests.fixtures.corpus import WORDS, random_clip, write_clips
from tests.fixtures.steps import ROOT, ZERO2


def write_corpus(folder, model_folder, num_clips, mean_sec, num_speakers=4):
    """A corpus of random codes whose clips have `mean_sec` on average."""
    rng = np.random.default_rng(num_clips)
    frames = rng.uniform(0.5, 1.5, num_clips) * mean_sec * 25
    texts = [" ".join(rng.choice(WORDS, size=max(int(count / 12), 1))) for count in frames]
    clips = [random_clip(f"clip{n:04d}", text, int(frames[n]), 8, 1024, n) for n, text in enumerate(texts)]
    speakers = {clip.key: f"voice{number % num_speakers}" for number, clip in enumerate(clips)}
    return write_clips(folder, model_folder, clips, codebook_size=1024, speakers=speakers)


def accepted_job(command, monkeypatch):
    """The job of a printed command, prepared on one rank and where the recipe allows it on eight."""
    monkeypatch.chdir(ROOT)
    words = shlex.split(command)
    program = words.index("launch/train.py")
    assert words[:program] in (["deepspeed"], ["deepspeed", "--num_gpus", "1"])
    given = parse_arguments(words[program + 1 :])
    options = {name: getattr(given, name) for name in ("deepspeed", "recipe", "overrides", "model", "data", "out")}
    for world_size in (1, 8) if program == 1 else (1,):
        job = prepare_job(world_size=world_size, **options)
    return job


@pytest.mark.parametrize(
    ("num_clips", "mean_sec", "overrides"),
    [
        (1, 3, ["batch.packs_per_step=1", "batch.expected_samples_per_step=[]", "optimizer.warmup_steps=1"]),
        (5, 3, ["batch.packs_per_step=1", "batch.expected_samples_per_step=[]", "optimizer.warmup_steps=1"]),
        (30, 3, ["optimizer.warmup_steps=1"]),
        (300, 3, []),
        (300, 15, ["batch.packs_per_step=8"]),
    ],
)
def test_training_takes_the_command_for_small_corpora_and_long_clips(
    tmp_path, model_folder, monkeypatch, num_clips, mean_sec, overrides
):
    folder = tmp_path / "it's a corpus"
    corpus = write_corpus(folder, model_folder, num_clips, mean_sec)
    command = train_command(corpus, read_base_model(model_folder))
    assert "\n" not in command
    job = accepted_job(command, monkeypatch)
    assert job.summary["samples"] == num_clips
    assert job.reader.corpora.folders == [folder]
    if num_clips != 300 or overrides:
        assert shlex.split(command)[-len(overrides) :] == overrides
    assert "small_corpus.yaml" in command


def test_a_corpus_that_is_held_out_whole_has_no_command(tmp_path, model_folder):
    clips = [random_clip(f"clip{n}", "نعم", 30, 8, 1024, n) for n in range(2)]
    splits = dict.fromkeys(("clip0", "clip1"), "val")
    corpus = write_clips(tmp_path / "out", model_folder, clips, codebook_size=1024, splits=splits)
    assert train_command(corpus, read_base_model(model_folder)) is None


def plan_chosen(base, frames, text_tokens, speakers):
    """(name of the recipe, overrides, summary of the plan that the engine makes with them)."""
    keys = [f"clip{number:06d}" for number in range(len(frames))]
    clips = [
        ClipLength(*values) for values in zip(keys, speakers, text_tokens.tolist(), frames.tolist(), strict=True)
    ]
    name, overrides = choose_recipe(measure_samples(base, DEFAULT_SYSTEM_TEXT, clips, []))
    recipe = load_recipe(ROOT / "launch/recipes" / name, overrides)
    columns = {field.name: pa.nulls(len(keys), field.type) for field in INDEX_SCHEMA}
    columns |= {"key": keys, "frames": frames, "text_tokens": text_tokens, "speaker": speakers}
    columns |= {"split": ["train"] * len(keys), "draws_reference": [True] * len(keys), "use": [True] * len(keys)}
    plan = Plan(
        pa.table({name: pa.array(values) for name, values in columns.items()}).cast(INDEX_SCHEMA),
        split="train",
        cost=layout_cost(base.tokenizer, base.config, DEFAULT_SYSTEM_TEXT),
        packs_per_step=recipe.batch.packs_per_step,
        max_tokens=recipe.batch.max_tokens,
        seed=recipe.run.seed,
    )
    resolve_config(ZERO2, recipe, 8 if name == "arabic_8xh200.yaml" else 1)
    _check_samples_per_step(plan.summary(), recipe)
    return name, recipe, [plan.summary(epoch) for epoch in range(recipe.run.epochs)]


def test_the_engine_accepts_the_recipe_chosen_for_any_corpus(model_folder):
    base, rng = read_base_model(model_folder), np.random.default_rng(5)
    chosen = set()
    for _ in range(80):
        num_clips = int(2 ** rng.uniform(0, 13))
        mean_sec = rng.choice([0.7, 2, 4, 7, 12, 20, 28])
        duration_sec = np.clip(rng.lognormal(np.log(mean_sec), rng.choice([0.05, 0.5]), num_clips), 0.5, 30)
        frames, text_tokens = (
            (duration_sec * 25).astype(np.int32),
            (duration_sec * rng.uniform(1, 12)).astype(np.int32),
        )
        speakers = [f"voice{number}" for number in rng.integers(rng.integers(1, 50), size=num_clips)]
        name, recipe, summaries = plan_chosen(base, frames, text_tokens, speakers)
        assert [summary["dropped"] for summary in summaries] == [[]] * len(summaries)
        total_steps = sum(summary["steps"] for summary in summaries)
        assert recipe.optimizer.warmup_steps <= 0.6 * total_steps
        chosen.add((name, recipe.batch.packs_per_step, tuple(recipe.batch.expected_samples_per_step)))
    assert len(chosen) > 3


def test_a_large_corpus_gets_the_large_recipe(model_folder):
    base, rng = read_base_model(model_folder), np.random.default_rng(0)
    duration_sec = np.clip(rng.lognormal(np.log(5), 0.5, 80_000), 0.5, 30)
    speakers = [f"voice{number}" for number in rng.integers(400, size=80_000)]
    frames, text_tokens = (duration_sec * 25).astype(np.int32), (duration_sec * 4).astype(np.int32)
    name, recipe, summaries = plan_chosen(base, frames, text_tokens, speakers)
    assert name == "arabic_8xh200.yaml"
    assert recipe == load_recipe(ROOT / "launch/recipes" / name)
    assert sum(summary["steps"] for summary in summaries) >= 2 * recipe.optimizer.warmup_steps
