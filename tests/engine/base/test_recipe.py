"""Every recipe we ship loads, plans and resolves; a wrong one says what is wrong."""

import json
from pathlib import Path

import pytest

from engine.base.recipe import load_recipe, recipe_dict, save_recipe
from engine.base.zero import resolve_config
from engine.plan.plan import LayoutCost, Plan
from preprocess.common.errors import InputError

ROOT = Path(__file__).parents[3]
ZERO2 = ROOT / "ds_configs" / "zero2.json"
RECIPES = sorted(p for p in (ROOT / "launch" / "recipes").glob("*.yaml") if not p.stem.startswith("screening_"))
# The released model's layout with its tokenizer: 8 codebooks, some 60 tokens of headers and markers.
COST = LayoutCost(tokens_base=40, tokens_per_reference=18, columns_extra=9, text_labels=3)


def test_there_are_recipes():
    assert {"demo.yaml", "arabic_8xh200.yaml", "arabic_1gpu.yaml"} <= {path.name for path in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_plans_a_large_corpus_within_its_stated_batch(path, speech_index):
    recipe = load_recipe(path)
    plan = Plan(
        speech_index,
        split="train",
        cost=COST,
        packs_per_step=recipe.batch.packs_per_step,
        max_tokens=recipe.batch.max_tokens,
        seed=recipe.run.seed,
    )
    summary = plan.summary()
    assert summary["samples"] + len(summary["dropped"]) == 100_000
    if recipe.batch.expected_samples_per_step:
        low, high = recipe.batch.expected_samples_per_step
        assert low <= summary["samples_per_step"]["mean"] <= high


@pytest.mark.parametrize("world_size", [1, 8])
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_zero2_resolves_without_an_auto_left(path, world_size):
    recipe = load_recipe(path)
    if recipe.batch.packs_per_step % world_size:
        with pytest.raises(InputError, match=f"found 8 ranks; .* batch.packs_per_step={recipe.batch.packs_per_step}"):
            resolve_config(ZERO2, recipe, world_size)
        return
    config = resolve_config(ZERO2, recipe, world_size)
    assert "auto" not in json.dumps(config)
    assert config["gradient_accumulation_steps"] * world_size == recipe.batch.packs_per_step
    assert config["optimizer"]["params"]["lr"] == recipe.optimizer.lr
    assert config["bf16"]["enabled"] == (recipe.run.precision == "bf16")


def test_a_saved_recipe_loads_as_the_same_one(tmp_path):
    recipe = load_recipe(RECIPES[0], ["optimizer.lr=1e-3", "lora.train_whole=[audio_head]"])
    assert recipe.optimizer.lr == 1e-3
    assert recipe.lora.train_whole == ["audio_head"]
    save_recipe(recipe, tmp_path / "recipe.yaml")
    assert recipe_dict(load_recipe(tmp_path / "recipe.yaml")) == recipe_dict(recipe)


@pytest.mark.parametrize(
    ("overrides", "where", "found", "expected"),
    [
        (
            ["batch.max_token=4096"],
            "demo.yaml",
            "unknown key batch.max_token (nearest: batch.max_tokens)",
            "recipe.py",
        ),
        (["lr=1"], "demo.yaml", "unknown key lr", "recipe.py"),
        (["run.monitors=[tensorbord]"], "demo.yaml", "tensorbord", "tensorboard, csv_monitor, wandb"),
        (["forward=boson", "batch.checkpointed_layers=2"], "demo.yaml", "checkpointed_layers=2", "forward=boson"),
        (["forward=boson", "loss.consistency_weight=0.1"], "demo.yaml", "consistency_weight=0.1", "forward=boson"),
        (
            ["conditioning=whisper", "loss.consistency_weight=0.1"],
            "demo.yaml",
            "consistency_weight=0.1",
            "0 with conditioning=whisper",
        ),
        (["loss.label_smoothing=1"], "demo.yaml", "loss.label_smoothing=1.0", "0 to below 1"),
        (["optimizer.eps=0", "run.seed=-1"], "demo.yaml", "optimizer.eps=0.0; run.seed=-1", "run.seed 0 or more"),
        (["lora.rank=many"], "demo.yaml: lora.rank", "many", "type"),
        (
            ["data.references_per_sample=4", "data.share_without_reference=2", "data.repeat=[1,0]"],
            "demo.yaml",
            "data.references_per_sample=4; data.share_without_reference=2.0; data.repeat=[1.0, 0.0]",
            "data.references_per_sample 1 to 3; data.share_without_reference 0 to 1; data.repeat [] or numbers above",
        ),
        (
            ["lora.mode=all", "optimizer.lr=-1"],
            "demo.yaml",
            "lora.mode=all; optimizer.lr=-1.0",
            "lora.mode attention, audio or full; optimizer.lr above 0",
        ),
    ],
)
def test_a_wrong_override_says_where_what_and_what_instead(overrides, where, found, expected):
    with pytest.raises(InputError) as caught:
        load_recipe(ROOT / "launch" / "recipes" / "demo.yaml", overrides)
    assert where in caught.value.where
    assert found in caught.value.found
    assert expected in caught.value.expected
    assert "Correct" in caught.value.action


def test_a_file_that_is_no_yaml_is_named_with_the_line(tmp_path):
    (tmp_path / "broken.yaml").write_text("batch:\n  max_tokens: [1\nlora: {}")
    with pytest.raises(InputError, match=r"(?s)broken.yaml: found text that is no YAML: .*line 3.*; expected YAML"):
        load_recipe(tmp_path / "broken.yaml")


@pytest.mark.parametrize(
    ("change", "where", "found", "action"),
    [
        ({"wall_clock_breakdown": "auto"}, "zero2.json: wall_clock_breakdown", '"auto"', "Write a value"),
        ({"gradient_clipping": 0.5}, "zero2.json: gradient_clipping", "0.5", 'Write "auto"'),
        ({"zero_optimization": {"stage": 3}}, "zero2.json: zero_optimization.stage", "3", "Set it so"),
        ({"data_types": {}}, "zero2.json: data_types.grad_accum_dtype", "null", "Set it so"),
    ],
)
def test_a_json_that_would_train_something_else_is_refused(tmp_path, change, where, found, action):
    path = tmp_path / "zero2.json"
    path.write_text(json.dumps({**json.loads(ZERO2.read_text()), **change}))
    with pytest.raises(InputError) as caught:
        resolve_config(path, load_recipe(ROOT / "launch" / "recipes" / "demo.yaml"), 1)
    assert where in caught.value.where
    assert caught.value.found == found
    assert caught.value.expected
    assert action in caught.value.action


def test_a_world_size_that_does_not_divide_the_packs_names_those_that_do():
    recipe = load_recipe(ROOT / "launch" / "recipes" / "arabic_8xh200.yaml")
    with pytest.raises(InputError) as caught:
        resolve_config(ZERO2, recipe, 3)
    assert caught.value.where == "world size"
    assert caught.value.found == "3 ranks"
    assert caught.value.expected == "1, 2, 4, 8: a number that divides batch.packs_per_step=8"
    assert "--num_gpus" in caught.value.action
    assert "batch.packs_per_step to a multiple of 3" in caught.value.action
