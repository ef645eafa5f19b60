"""A checkpoint is whole or it is not used, and what it holds is the run's one truth."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter

import pytest
import torch
from peft import PeftModel

from engine.checkpoint import checkpoint
from engine.model.forward import LossModel
from engine.model.losses import LossSums
from engine.model.weights import load_base
from preprocess.common.errors import InputError
from tests.fixtures import gate
from tests.fixtures.steps import ROOT, make_job

OVERRIDES = ["run.precision=fp32", "run.max_steps=4", "run.save_every=2", "run.log_every=1", "run.evaluate_every=2"]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, one_rank, model_folder, random_corpus):
    """A run of 4 steps with checkpoints at 2 and 4."""
    out = tmp_path_factory.mktemp("run")
    one_rank.run(gate.train, model_folder, random_corpus.folder, out, OVERRIDES)
    return out


@pytest.fixture
def run_copy(run_folder, tmp_path):
    """The run, to be broken."""
    return shutil.copytree(run_folder, tmp_path / "run", symlinks=True)


def validation_packs(model_folder, data, out):
    job = make_job(model_folder, data, out, [*OVERRIDES, "lora.rank=16"])
    return [job.reader[pack] for pack in job.validation]


def test_the_saved_adapter_has_the_live_loss(run_folder, one_rank, model_folder, random_corpus):
    lines = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    recorded = [line for line in lines if line["kind"] == "validation" and line["step"] == 4]
    assert len(recorded) == 1
    model = PeftModel.from_pretrained(
        load_base(model_folder, torch.float32), run_folder / "checkpoints" / "step-000004"
    )
    loss_model = LossModel(model).eval()
    sums = LossSums.zeros(8, torch.device("cpu"))
    with torch.no_grad():
        for loaded in one_rank.run(validation_packs, model_folder, random_corpus.folder, run_folder)[0]:
            sums = sums.plus(loss_model(loaded.batch))
    val_rows = [row for row in random_corpus.index.to_pylist() if row["split"] == "val"]
    audio_count = sum(row["frames"] + 1 for row in val_rows)
    assert float(sums.audio.mean()) / audio_count == pytest.approx(recorded[0]["loss_audio"], rel=1e-6)
    assert float(sums.text) / (3 * len(val_rows)) == pytest.approx(recorded[0]["loss_text"], rel=1e-6)


def test_a_checkpoint_names_no_place_on_this_machine_and_says_what_it_learnt(run_folder, model_folder, random_corpus):
    folder = (run_folder / "checkpoints" / "latest").resolve()
    for path in folder.iterdir():
        for place in (run_folder, model_folder, random_corpus.folder):
            assert str(place).encode() not in path.read_bytes(), path
    card = (folder / "README.md").read_text()
    state = json.loads((folder / "state.json").read_text())
    assert state["validation"]["step"] == 4
    assert f"loss_audio {state['validation']['loss_audio']:.4f}" in card
    assert "| step | 4 of 4 |" in card
    assert json.loads((run_folder / "run.json").read_text())["base_folder"] == str(model_folder)


def test_checkpoints_hold_the_adapter_both_moments_and_links(run_folder):
    root = run_folder / "checkpoints"
    assert [folder.name for folder in checkpoint.list_checkpoints(root)] == ["step-000002", "step-000004"]
    assert (root / "latest").resolve().name == "step-000004"
    state = json.loads((root / "latest" / "state.json").read_text())
    assert (root / "best").resolve().name == f"step-{state['best_step']:06d}"
    assert sorted(path.name for path in (root / "latest").iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]
    adapter, optimizer = ((root / "latest" / name).stat().st_size for name in checkpoint._HASHED_FILES[::2])
    assert optimizer == pytest.approx(2 * adapter, rel=0.05)


def _truncate(path, size):
    path.write_bytes(path.read_bytes()[:size])


def _edit_state(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: (path / "optimizer.safetensors").unlink(), "optimizer.safetensors is missing"),
        (lambda path: _truncate(path / "optimizer.safetensors", 9000), "optimizer.safetensors has 9,000 bytes, "),
        (lambda path: _truncate(path / "adapter_model.safetensors", 40), "adapter_model.safetensors has 40 bytes, "),
        (lambda path: _flip(path / "adapter_model.safetensors"), "adapter_model.safetensors has another sha256"),
        (lambda path: (path / "state.json").unlink(), "state.json can't be used: no state.json"),
        (lambda path: (path / "state.json").write_text('{"step": 4'), "state.json can't be used: no JSON object"),
        (lambda path: (path / "state.json").write_text("[]"), "state.json can't be used: JSON of type list"),
        (
            lambda path: _edit_state(path / "state.json", step=5),
            "state.json can't be used: values with sha256 ",
        ),
    ],
)
def test_a_broken_checkpoint_is_named_and_the_one_before_is_taken(damage, reason, run_copy):
    root = run_copy / "checkpoints"
    damage(root / "step-000004")
    said = []
    assert checkpoint.find_newest(root, said.append) == root / "step-000002"
    assert len(said) == 1
    assert said[0].startswith(f"checkpoint {root / 'step-000004'} is passed over: {reason}")


def test_a_checkpoint_under_another_step_s_name_is_passed_over(run_copy):
    root, said = run_copy / "checkpoints", []
    shutil.copytree(root / "step-000002", root / "step-000009")
    assert checkpoint.find_newest(root, said.append) == root / "step-000004"
    assert said == [f"checkpoint {root / 'step-000009'} is passed over: state.json is of step 2"]


def test_links_that_point_nowhere_are_named_and_the_newest_that_is_there_is_taken(run_copy):
    root = run_copy / "checkpoints"
    shutil.rmtree(root / "step-000004")
    (root / "best").unlink()
    (root / "best").symlink_to("step-000003")
    said = []
    assert checkpoint.find_newest(root, said.append) == root / "step-000002"
    assert said == [
        f"{root / 'latest'} is passed over: it points to step-000004, which is not there",
        f"{root / 'best'} is passed over: it points to step-000003, which is not there",
    ]
    shutil.rmtree(root / "step-000002")
    with pytest.raises(InputError) as caught:
        checkpoint.find_newest(root, said.append)
    assert caught.value.found == "0 checkpoints, none of them whole"


def test_damaged_checkpoints_do_not_push_whole_ones_out(run_copy):
    root = run_copy / "checkpoints"
    shutil.copytree(root / "step-000004", root / "step-000003")
    checkpoint.update_state(root / "step-000003", {"step": 3})
    _flip(root / "step-000004" / "optimizer.safetensors")
    (root / "best").unlink()  # it would keep a folder of its own
    checkpoint.prune_checkpoints(root, 1, root / "step-000003")
    assert [folder.name for folder in checkpoint.list_checkpoints(root)] == ["step-000003", "step-000004"]
    assert checkpoint.find_newest(root, lambda line: None) == root / "step-000003"


@pytest.mark.long
def test_a_save_killed_at_any_call_leaves_the_old_checkpoint_or_the_new(tmp_path, record_property):
    library = tmp_path / "dying.so"
    source = ROOT / "tests" / "fixtures" / "dying.cpp"
    subprocess.run(["g++", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    command = [sys.executable, "-m", "tests.fixtures.killed_saves", tmp_path]
    environment = {**os.environ, "LD_PRELOAD": str(library)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    kills = json.loads(done.stdout)
    for name, number in Counter(kill["name"] for kill in kills if kill["name"]).items():
        record_property(f"faults: {name}", number)  # for bench/faults.py
    scenarios = {kill["scenario"] for kill in kills}
    assert scenarios == {"first", "second", "damaged", "second, power cut"}
    for scenario in scenarios:
        found = [kill for kill in kills if kill["scenario"] == scenario]
        assert len(found) > 25, "few calls were seen: the library hooks others than the writer makes"
        assert [kill["name"] is None for kill in found] == [False] * (len(found) - 1) + [True]
        before = None if scenario == "first" else "step-000002"
        newest = [kill["newest"] for kill in found]
        moved = newest.index("step-000004")
        assert newest == [before] * moved + ["step-000004"] * (len(newest) - moved)
        assert newest.count(before) > 10
        for kill in found:
            assert kill["best"] is not False, kill
            assert all(any(name in line for line in kill["said"]) for name in kill["leftovers"]), kill
            assert kill["next"] == ["best", "latest", "step-000006"], kill
            assert kill["next_newest"] == "step-000006"
        assert any(kill["leftovers"] for kill in found)


def _flip(path):
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def test_no_whole_checkpoint_left_stops_the_run_instead_of_starting_over(run_copy):
    root = run_copy / "checkpoints"
    for folder in checkpoint.list_checkpoints(root):
        _flip(folder / "optimizer.safetensors")
    with pytest.raises(InputError) as caught:
        checkpoint.find_newest(root, lambda line: None)
    assert caught.value.where == str(root)
    assert "2 checkpoints, none of them whole" in caught.value.found
    assert "hashes" in caught.value.expected
    assert "--out" in caught.value.action


def test_an_unfinished_save_is_not_a_checkpoint(run_copy):
    root = run_copy / "checkpoints"
    shutil.copytree(root / "step-000004", root / ".step-000006.partial")
    assert checkpoint.find_newest(root, lambda line: None) == root / "step-000004"
