"""Every recipe we ship loads, plans and resolves; a wrong one says what is wrong."""

import json
import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.base.recipe import Recipe, load_recipe, recipe_dict, save_recipe
from engine.base.zero import resolve_config
from engine.plan.plan import Plan
from engine.plan.samples import LayoutCost
from preprocess.common.errors import InputError

ROOT = Path(__file__).parents[3]
DEMO = ROOT / "launch" / "recipes" / "demo.yaml"
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
        (
            ["run.monitors=[csv_monitor, tensorbord]"],
            "demo.yaml",
            "run.monitors.1='tensorbord'",
            "run.monitors.1 'tensorboard', 'csv_monitor' or 'wandb'",
        ),
        (
            ["forward=boson", "batch.checkpointed_layers=2"],
            "demo.yaml",
            "forward='boson'",
            "forward packed with batch.checkpointed_layers=2",
        ),
        (
            ["forward=boson", "batch.checkpointed_layers=2", "loss.consistency_weight=0.1"],
            "demo.yaml",
            "forward='boson'",
            "which boson can't recompute, and with loss.consistency_weight=0.1",
        ),
        (
            ["conditioning=whisper", "loss.consistency_weight=0.1"],
            "demo.yaml",
            "conditioning='whisper'",
            "conditioning codes with loss.consistency_weight=0.1",
        ),
        (
            ["conditioning=both", "forward=boson"],
            "demo.yaml",
            "conditioning='both'",
            "conditioning codes with forward=boson",
        ),
        (["loss.label_smoothing=1"], "demo.yaml", "loss.label_smoothing=1", "loss.label_smoothing less than 1"),
        (
            ["optimizer.eps=0", "run.seed=-1"],
            "demo.yaml",
            "optimizer.eps=0; run.seed=-1",
            "optimizer.eps greater than 0; run.seed greater than or equal to 0",
        ),
        *(
            ([f"{key}={value}"], "demo.yaml", found, f"{key.replace('repeat', 'repeat.0')} {expected}")
            for key, value, found, expected in (
                ("data.repeat", "[1e300]", "data.repeat.0=1e+300", "less than or equal to 1000"),
                ("data.repeat", "[1e9]", "data.repeat.0=1000000000.0", "less than or equal to 1000"),
                ("run.epochs", "1000000000", "run.epochs=1000000000", "less than or equal to 1000000"),
                ("batch.loader_workers", "1000000", "batch.loader_workers=1000000", "less than or equal to 1024"),
                ("lora.rank", "1000000000", "lora.rank=1000000000", "less than or equal to 65536"),
                ("lora.alpha", "1e300", "lora.alpha=1e+300", "less than or equal to 1000000000"),
                ("optimizer.lr", "1e300", "optimizer.lr=1e+300", "less than or equal to 1000000000"),
                ("optimizer.eps", "1e-320", "optimizer.eps=1e-320", "at least 1e-30"),
                ("loss.consistency_temperature", "5e-324", "consistency_temperature=5e-324", "at least 1e-30"),
                ("run.hang_timeout_sec", "1e-9", "run.hang_timeout_sec=1e-09", "0, or at least 1"),
            )
        ),
        (["lora.rank=many"], "demo.yaml", "lora.rank='many'", "lora.rank a valid integer"),
        (
            ["data.references_per_sample=4", "data.share_without_reference=2", "data.repeat=[1,0]"],
            "demo.yaml",
            "data.references_per_sample=4; data.share_without_reference=2; data.repeat.1=0",
            "data.references_per_sample less than or equal to 3; "
            "data.share_without_reference less than or equal to 1; data.repeat.1 greater than 0",
        ),
        (
            ["lora.mode=all", "optimizer.lr=-1"],
            "demo.yaml",
            "lora.mode='all'; optimizer.lr=-1",
            "lora.mode 'attention', 'audio' or 'full'; optimizer.lr greater than 0",
        ),
        (
            ["batch.max_token=4096", "lora.rank=0", "forward=fast", "optimizer=5"],
            "demo.yaml",
            "unknown key batch.max_token (nearest: batch.max_tokens); lora.rank=0; optimizer=5; forward='fast'",
            "only keys of engine/base/recipe.py; lora.rank greater than or equal to 1; optimizer keys and values",
        ),
    ],
)
def test_a_wrong_override_says_where_what_and_what_instead(overrides, where, found, expected):
    with pytest.raises(InputError) as caught:
        load_recipe(DEMO, overrides)
    assert where in caught.value.where
    assert found in caught.value.found
    assert expected in caught.value.expected
    assert "Correct" in caught.value.action


NUMBER, WHOLE, YES_NO = "a valid number", "a valid integer", "a valid boolean"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        *(
            (f"lora.rank={value}", WHOLE)
            for value in ("'8'", "true", "8.0", "1e1", "null", "", "[8]", "{a: 8}", ".nan")
        ),
        *((f"lora.rank={value}", "equal to 1") for value in (0, -8)),
        *((f"lora.rank={value}", "equal to 65536") for value in (10**9 + 1, 10**30, hex(10**5000))),
        *((f"lora.alpha={value}", NUMBER) for value in ("'8'", "true", "null", "", "[8]", "2026-01-01", 10**400)),
        *((f"lora.alpha={value}", "a finite number") for value in (".inf", "1e400", ".nan")),
        ("lora.alpha=-.inf", ""),
        ("lora.alpha=1e-400", "greater than 0"),
        *((f"lora.dora={value}", YES_NO) for value in ("1", "0.0", "'true'", "null", "maybe")),
        *(
            (f"lora.mode={value}", "'attention', 'audio' or 'full'")
            for value in ("null", "1", "[full]", "${run.seed}")
        ),
        *((f"lora.train_whole={value}", "a valid list") for value in ("audio_head", "null", "{audio_head: 1}")),
        ("lora.train_whole=!!set {audio_head}", "a valid list"),
        ("lora.train_whole=[audio_head, 3]", "'audio_head' or 'text_head'"),
        ("lora.rank=!!python/none", "YAML"),
        ("lora.rank=!!python/object/apply:os.getpid []", "YAML"),
        ("lora.rank=!!timestamp soon", "YAML"),
        ("lora.rank=!!bool soon", "YAML"),
        ("lora.rank=[", "YAML"),
        ("lora.rank=*a", "YAML"),
        ("lora.rank=" + "[" * 700, "YAML"),
        ("lora.rank=" + "9" * 10000, "YAML"),
        ("lora.rank=${oc.env:HOME}", WHOLE),
        ("lora.rank=&a {rank: *a}", WHOLE),
        ("lora.rank.rank=8", WHOLE),
        ("lora.rank", "group.key=value"),
        ("lora=full", "keys and values"),
        ("lora=", "keys and values"),
        ("lora=[rank, 8]", "keys and values"),
        ("lora={1: 2}", "only keys of engine/base/recipe.py"),
        ("lora={null: 2}", "only keys of engine/base/recipe.py"),
        ("lora={[1]: 2}", "YAML"),
        ("lora={rank: 8, rank: 9}", "YAML"),
        ("lora..rank=8", "only keys of engine/base/recipe.py"),
        ("lora.rank.=8", WHOLE),
        ("batch.expected_samples_per_step=[{}, 8]", WHOLE),
        ("batch.expected_samples_per_step=[8]", "[] or [low, high]"),
        ("batch.expected_samples_per_step=[9, 8]", "[] or [low, high]"),
        ("optimizer.betas=[0.9]", "List should have at least 2 items"),
        ("optimizer.betas=[0.9, 0.9, 0.9]", "List should have at most 2 items"),
        ("optimizer.betas=[0.9, 1]", "optimizer.betas.1 less than 1"),
        ("loss.codebook_weights=[0, 0]", "one above 0"),
        (f"run.seed={2**63}", f"less than {2**63}"),
    ],
)
def test_a_value_of_the_wrong_kind_is_an_error_that_names_its_key(override, expected):
    with pytest.raises(InputError) as caught:
        load_recipe(DEMO, [override])
    error = caught.value
    assert override.partition("=")[0].split(".")[0] in error.found + error.where
    if override.startswith(("lora.rank=", "lora.alpha=", "lora.dora=", "lora.mode=")):
        assert override.partition("=")[0] in error.found + error.where
    assert expected in error.expected
    assert "Correct" in error.action
    assert len(error.found) < 1000


@pytest.mark.parametrize(
    ("content", "found", "expected"),
    [
        (b"", "no keys", "keys and values"),
        (b"# all: commented out", "no keys", "keys and values"),
        (b"just words", "a str", "keys and values"),
        (b"- batch", "a list", "keys and values"),
        (b"batch: {}\nbatch: {max_tokens: 3}", "batch twice", "YAML"),
        (b"batch: {max_tokens: 1,\n max_tokens: 2}", "max_tokens twice", "YAML"),
        (b"batch: {}\n---\nlora: {}", "but found another document", "YAML"),
        ("batch: {max_tokens: 512}".encode("utf-16"), "can't decode byte", "YAML"),
        (bytes(range(256)), "can't decode byte", "YAML"),
        (b"\x00\x01", "special characters are not allowed", "YAML"),
        (b"&a [*a]", "a list", "keys and values"),
        (b"batch: &a {max_tokens: *a}", "batch.max_tokens={'max_tokens': {'max_tokens'", "a valid integer"),
        (b"batch:", "batch=None", "batch keys and values"),
        (b"batch: 8192", "batch=8192", "batch keys and values"),
        (b"batches: {max_tokens: 1}", "unknown key batches (nearest: batch.", "keys of engine/base/recipe.py"),
        (
            b"batch: {tokens: 1}",
            "unknown key batch.tokens (nearest: batch.max_tokens)",
            "keys of engine/base/recipe.py",
        ),
        (b"lora: {optimizer: {lr: 1}}", "unknown key lora.optimizer", "keys of engine/base/recipe.py"),
        (b"1: 2", "unknown key 1", "keys of engine/base/recipe.py"),
    ],
)
def test_a_file_that_holds_no_recipe_is_named_with_what_it_holds(tmp_path, content, found, expected):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_recipe(path)
    assert caught.value.where == str(path)
    assert found in caught.value.found
    assert expected in caught.value.expected
    assert "Correct" in caught.value.action


def test_aliases_that_unfold_to_a_billion_values_are_an_error_like_any_other(tmp_path):
    names = "abcdefghij"
    lines = ["a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]" for old, new in pairwise(names)]
    (tmp_path / "recipe.yaml").write_text("\n".join([*lines, "lora: {rank: *j}"]))
    with pytest.raises(InputError) as caught:
        load_recipe(tmp_path / "recipe.yaml")
    assert "lora.rank=[[[[" in caught.value.found
    assert "unknown key j" in caught.value.found


@pytest.mark.parametrize(("name", "found"), [("none.yaml", "no such file or directory"), (".", "is a directory")])
def test_no_file_at_the_path_is_said_with_where_to_find_one(tmp_path, name, found):
    with pytest.raises(InputError) as caught:
        load_recipe(tmp_path / name)
    assert caught.value.where == str(tmp_path / name)
    assert caught.value.found == found
    assert caught.value.expected == "a recipe in YAML"
    assert "launch/recipes/*.yaml" in caught.value.action


@pytest.mark.parametrize(
    ("overrides", "value"),
    [
        (["optimizer.lr=1e-3"], 1e-3),
        (["optimizer.lr=1.5E+2"], 150.0),
        (["optimizer.lr=.5e-3"], 5e-4),
        (["optimizer.lr=1"], 1.0),
        (["optimizer={lr: 3, eps: 0.1}", "optimizer.lr=4"], 4.0),
        (["optimizer=5", "optimizer.lr=4"], 4.0),
        (["optimizer.lr=x", "optimizer.lr=4"], 4.0),
    ],
)
def test_the_last_override_of_a_key_holds_and_numbers_may_be_written_as_one_does(overrides, value):
    lr = load_recipe(DEMO, overrides).optimizer.lr
    assert (type(lr), lr) == (float, value)


def test_an_override_of_a_group_leaves_its_other_keys_as_the_file_has_them():
    assert load_recipe(DEMO, ["lora={rank: 3}"]).lora.alpha == load_recipe(DEMO).lora.alpha == 32
    assert load_recipe(DEMO, ["lora={rank: 3}"]).lora.rank == 3


def keys_of(template, prefix=""):
    """[(dotted name, field)] of a recipe's groups and keys."""
    found = []
    for item in fields(template):
        found.append((prefix + item.name, item))
        value = getattr(template, item.name)
        found += keys_of(value, f"{prefix}{item.name}.") if is_dataclass(value) else []
    return found


def test_every_key_says_what_it_means():
    keys = keys_of(Recipe())
    assert len(keys) > 40
    assert [name for name, item in keys if len((item.default.description or "").split()) < 2] == []


def test_the_pages_name_keys_that_exist():
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "launch" / "recipes").glob("*.yaml")]
    text = "".join(path.read_text(encoding="utf-8") for path in pages)
    named = re.findall(r"\b((?:batch|data|lora|loss|optimizer|run)\.(?!json|md|safetensors)[a-z]\w+)", text)
    assert len(named) > 10
    assert set(named) - {name for name, _ in keys_of(Recipe())} == set()


SCALARS = st.none() | st.booleans() | st.integers() | st.integers(-3, 3) | st.floats() | st.floats(0, 1) | st.text()
SCALARS |= st.sampled_from(
    [1, 1.0, 0.5, "1", "full", "boson", "whisper", "fp32", "wandb", "audio_head", 10**12, 10**400]
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)
LEAVES = [name for name, item in keys_of(Recipe()) if not is_dataclass(getattr(Recipe(), item.name, None))]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("recipes") / "recipe.yaml"


def outcome(path: Path, overrides: Sequence[str] = ()) -> Recipe | InputError:
    try:
        return load_recipe(path, list(overrides))
    except InputError as error:
        return error


def written(path, values):
    """What comes of a file with {dotted key: value}."""
    groups = {}
    for name, value in values.items():
        *parents, last = name.split(".")
        group = groups
        for parent in parents:
            group = group.setdefault(parent, {})
        group[last] = value
    path.write_text(yaml.safe_dump(groups))
    return outcome(path)


def loaded(recipe, name):
    for part in name.split("."):
        recipe = getattr(recipe, part)
    return recipe


def same(found, given):
    """Whether the recipe holds what was written: no text for a number, no 1 for true; but 1.0 for 1."""
    if isinstance(given, list):
        return isinstance(found, list) and len(found) == len(given) and all(map(same, found, given))
    return found == given and (type(found) is type(given) or (type(found), type(given)) == (float, int))


@settings(max_examples=50, deadline=None)
@given(VALUES)
@example(True)
@example(1.0)
@example("1")
def test_any_value_at_any_key_is_a_recipe_that_holds_it_or_an_error_that_names_every_key_it_is_wrong_at(path, value):
    wrong = []
    for name in LEAVES:
        found = written(path, {name: value})
        if isinstance(found, InputError):
            assert name in found.found
            wrong.append(name)
        else:
            assert same(loaded(found, name), value), name
    together = written(path, dict.fromkeys(LEAVES, value))
    assert isinstance(together, InputError), "no value fits all keys"
    assert [name for name in wrong if name not in together.found] == []


@given(st.text() | st.text("abl.=[]{}:&*!'\"-? \n1") | st.binary())
def test_any_file_and_any_override_is_a_recipe_or_an_error(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    found = [outcome(path)]
    if isinstance(content, str):
        found += [outcome(DEMO, [content]), outcome(DEMO, [f"lora.rank={content}"])]
    for recipe in found:
        assert isinstance(recipe, Recipe) or all((recipe.where, recipe.found, recipe.expected, recipe.action))


def test_a_file_that_is_no_yaml_is_named_with_the_line(tmp_path):
    (tmp_path / "broken.yaml").write_text("batch:\n  max_tokens: [1\nlora: {}")
    with pytest.raises(InputError, match=r"(?s)broken.yaml: found text that is no YAML: .*line 3.*; expected YAML"):
        load_recipe(tmp_path / "broken.yaml")


@pytest.mark.parametrize(
    ("change", "where", "found", "action"),
    [
        ({"wall_clock_breakdown": "auto"}, "zero2.json: wall_clock_breakdown", '"auto"', "Write a value"),
        ({"gradient_clipping": 0.5}, "zero2.json: gradient_clipping", "0.5", 'Write "auto"'),
        ({"zero_optimization": {"stage": 3}}, "zero2.json: zero_optimization.stage", "3", "Set it to that value"),
        ({"data_types": {}}, "zero2.json: data_types.grad_accum_dtype", "null", "Set it to that value"),
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
