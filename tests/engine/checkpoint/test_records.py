"""Records that training and merge read: whatever one holds, it is used as it was written or refused by name."""

import contextlib
import json
import shutil
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.base.recipe import Lora
from engine.base.run_record import read_run, write_run
from engine.checkpoint.checkpoint import find_problem, read_state
from engine.checkpoint.identity import find_free_changes, refuse_other_run
from engine.checkpoint.init_adapter import check_adapter
from engine.checkpoint.resume import _progress
from engine.merge.folder import merge_checkpoint
from engine.merge.weights import read_adapter
from engine.speak.voice_training import read_facts, write_facts
from launch import stop
from preprocess.common.errors import InputError
from preprocess.common.record import write_record
from preprocess.judges.pace import length_warning, speech_facts
from tests.fixtures.adapter import random_lora, save_checkpoint
from tests.fixtures.strange import made_strange, used_or_refused
from tests.preprocess.helpers import assert_parts


@pytest.fixture(scope="module")
def step(tmp_path_factory, model_folder):
    """A checkpoint that no test changes."""
    return save_checkpoint(tmp_path_factory.mktemp("run"), model_folder, random_lora(model_folder, Lora(rank=4)))


@pytest.fixture(scope="module")
def job(step):
    """What a resume and --init-adapter compare with a checkpoint."""
    state = read_state(step)
    return SimpleNamespace(facts={name: state[name] for name in ("identity", "layout", "recipe", "world_size")})


def use(folder, job, model_folder, out):
    """What resume, --init-adapter, merge and generate do with a checkpoint's state.json."""
    problem = find_problem(folder)
    if problem is not None:
        assert (
            problem.startswith("state.json can't be used: ")
            or "sha256" in problem
            or "bytes" in problem
            or "is of step" in problem
        )
        return
    state = read_state(folder)
    _progress(folder.parent, folder, state)
    for act in (
        lambda: refuse_other_run(folder, state["identity"], job.facts["identity"], []),
        lambda: find_free_changes(state, job.facts),
        lambda: check_adapter(str(folder), job),
        lambda: merge_checkpoint(folder, None, out, verify="none"),
        lambda: write_facts(folder, folder, model_folder, state, state["base"]),
    ):
        used_or_refused(act)
    said = used_or_refused(lambda: length_warning(read_facts(folder).get("speech", {}), "صباح الخير", 1.0))
    assert isinstance(said, str | InputError | None)


@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_a_strange_value_anywhere_in_a_state_is_refused_or_used(data, step, job, model_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("strange") / "checkpoints" / step.name
    shutil.copytree(step, folder)
    write_record(folder / "state.json", data.draw(made_strange(read_state(step))))
    use(folder, job, model_folder, folder.parent.parent / "merged")


@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_a_strange_value_anywhere_in_an_adapter_s_config_is_refused_or_used(
    data, step, job, model_folder, tmp_path_factory
):
    folder = shutil.copytree(step, tmp_path_factory.mktemp("strange") / "adapter")
    (folder / "state.json").unlink()
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(data.draw(made_strange(config))))
    read, _ = used_or_refused(lambda: read_adapter(folder)), used_or_refused(lambda: check_adapter(str(folder), job))
    merged = used_or_refused(
        lambda: merge_checkpoint(folder, model_folder, folder.with_name("merged"), verify="none")
    )
    assert not isinstance(read, InputError) or isinstance(merged, InputError)
    assert folder.with_name("merged").exists() != isinstance(merged, InputError)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("init_lora_weights", value) for value in ("pissa", "olora", "corda", "evil")),
        *(("r", value) for value in ("2", 0, -2, 10**9)),
        *(("lora_alpha", value) for value in ("x", None, float("nan"), 1e300)),
        *(("lora_dropout", value) for value in (5, "x")),
        *(
            ("target_modules", value)
            for value in (5, "(((", "all-linear", [], r"(\w+)*\.q_proj", "a?" * 30 + "a" * 30)
        ),
        *(("exclude_modules", value) for value in (r"(?:.|\w)" * 30 + "Z", ["(a*)*"])),
        *(("modules_to_save", value) for value in (["([\\w.]*)*!"], "(")),
        ("layers_pattern", ["([\\w.]*)*!"]),
        ("rank_pattern", {r"(?:.|\w)" * 30 + "Z": 2}),
        *(("rank_pattern", value) for value in ({"(((": 2}, [1], {"q_proj": "x"})),
        ("alpha_pattern", {"q_proj": "x"}),
        ("megatron_config", {"a": 1}),
        ("modules_to_save", 5),
        ("layer_replication", [[0, 1]]),
        ("use_rslora", "false"),
    ],
)
def test_an_adapter_s_config_that_does_not_fit_is_one_sentence(name, value, step, model_folder, tmp_path):
    folder = shutil.copytree(step, tmp_path / "adapter")
    (folder / "state.json").unlink()
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, name: value}))
    with pytest.raises(InputError) as caught:
        merge_checkpoint(folder, model_folder, tmp_path / "merged", verify="none")
    assert caught.value.where.startswith(str(folder))
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    ("name", "value"), [("alpha_pattern", {"q_proj": 3.0}), ("rank_pattern", {"q_proj": 2}), ("use_rslora", "false")]
)
def test_an_adapter_that_a_recipe_can_not_describe_begins_no_run(name, value, step, job, tmp_path):
    folder = shutil.copytree(step, tmp_path / "adapter")
    (folder / "state.json").unlink()
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, name: value}))
    refusal = used_or_refused(lambda: check_adapter(str(folder), job))
    assert isinstance(refusal, InputError)
    assert refusal.where == str(folder / "adapter_config.json")


@given(data=st.data())
@settings(deadline=None, max_examples=100)
def test_no_byte_of_a_record_can_change_unseen(data, step, model_folder, tmp_path_factory):
    folder = shutil.copytree(step, tmp_path_factory.mktemp("changed") / step.name)
    write_facts(folder, step, model_folder, read_state(step), {"id": None, "revision": None})
    write_run(folder, {"base": str(model_folder)})
    name, read = data.draw(
        st.sampled_from([("state.json", read_state), ("voice_training.json", read_facts), ("run.json", read_run)])
    )
    path, before = folder / name, read(folder)
    changed = bytearray(path.read_bytes())
    changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(changed)
    with contextlib.suppress(InputError):
        assert read(folder) == before, "only a blank was changed"


@pytest.mark.parametrize("pid", [-1, 0, "1", None, 1.5, True])
def test_no_number_that_is_no_process_of_ours_is_signalled(pid, tmp_path):
    write_run(tmp_path, {})
    record = {**read_run(tmp_path), "rank0_pid": pid}
    write_record(tmp_path / "run.json", record)
    with pytest.raises(InputError) as caught:
        stop.main([str(tmp_path)])
    assert_parts(
        caught.value, str(tmp_path / "run.json"), f"rank0_pid = {pid!r}", "as it was written", "Name the --out"
    )


def test_facts_of_speech_fit_the_form_of_the_records():
    """Those that pace.py makes are those that the records' form names."""
    from preprocess.corpus.corpus_record import SpeechForm

    row = {"use": True, "duration_sec": 2.0, "rms_dbfs": -20.0, "letters_per_sec": 9.0}
    facts = speech_facts([row | {"leading_silence_sec": 0.1, "trailing_silence_sec": 0.2}])
    assert facts.keys() == SpeechForm.model_fields.keys()
    SpeechForm.model_validate(facts)
