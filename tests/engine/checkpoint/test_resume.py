"""A run goes on where it stopped, as if it had not; what does not fit is refused before any model is loaded."""

import contextlib
import io
import json
import os
import shutil
import signal
from pathlib import Path
from unittest import mock

import pytest
from boson_multimodal.model.higgs_audio import HiggsAudioModel
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from engine.checkpoint import checkpoint, resume
from preprocess.common.errors import InputError
from preprocess.common.files import replace_link
from preprocess.common.record import write_record
from tests.fixtures import gate
from tests.fixtures.ranks import RankError

OVERRIDES = ["run.precision=fp32", "run.max_steps=4", "run.save_every=2", "run.log_every=1", "run.evaluate_every=2"]
OVERRIDES += ["optimizer.warmup_steps=1"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, one_rank, model_folder, random_corpus):
    """A run of 4 steps, checkpoints at 2 and 4."""
    out = tmp_path_factory.mktemp("finished")
    one_rank.run(gate.train, model_folder, random_corpus.folder, out, OVERRIDES)
    return out


@pytest.fixture
def run(finished, tmp_path):
    """A copy of it, to go on with."""
    return shutil.copytree(finished, tmp_path / "run", symlinks=True)


def state_of(out):
    return checkpoint.read_state(out / "checkpoints" / "latest")


def validation(out):
    """{step: validation metrics}"""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line for line in lines if line["kind"] == "validation"}


def printed_without_a_model(model, data, out, overrides, **arguments):
    """What rank 0 says of a run that ends before it builds anything: loading a model would fail here."""
    with (
        mock.patch.object(HiggsAudioModel, "from_pretrained", side_effect=AssertionError("a model was loaded")),
        contextlib.redirect_stdout(io.StringIO()) as printed,
    ):
        gate.train(model, data, out, overrides, **arguments)
    return printed.getvalue()


def refusal(ranks, model, data, out, overrides=(), **arguments):
    """The InputError of a run that is refused before it loads a model."""
    with pytest.raises(RankError) as caught:
        ranks.run(_start, model, data, out, [*OVERRIDES, *overrides], arguments)
    assert isinstance(caught.value.original, InputError), caught.value
    return caught.value.original


def _start(model, data, out, overrides, arguments):
    return printed_without_a_model(model, data, out, overrides, **arguments)


@pytest.mark.parametrize(
    ("overrides", "name", "was", "now"),
    [
        (["lora.rank=8"], "lora.rank", "16", "8"),
        (["lora.mode=audio"], "lora.mode", "full", "audio"),
        (["run.seed=1"], "seed", "0", "1"),
        (["batch.max_tokens=900"], "max_tokens", "2048", "900"),
        (["batch.packs_per_step=1"], "packs_per_step", "2", "1"),
    ],
)
def test_another_recipe_is_refused_by_name(overrides, name, was, now, run, one_rank, model_folder, random_corpus):
    error = refusal(one_rank, model_folder, random_corpus.folder, run, overrides)
    assert error.where.endswith(f"step-000004: {name}")
    assert error.found == f"{name} {was} in the checkpoint"
    assert error.expected == f"{name} {now}, as this command says"
    assert "another --out" in error.action
    way = "--init-adapter" if name.startswith("lora") else f"--allow-change {name} "
    assert way in error.action


def test_another_base_codec_and_corpus_are_refused_by_name(tmp_path, run, one_rank, model_folder, random_corpus):
    base = shutil.copytree(model_folder, tmp_path / "base")
    data = bytearray((base / "model.safetensors").read_bytes())
    data[len(data) // 2] ^= 1  # where a block of the fingerprint begins
    (base / "model.safetensors").write_bytes(data)
    corpus = shutil.copytree(random_corpus.folder, tmp_path / "corpus")
    facts = json.loads((corpus / "corpus.json").read_text())
    facts["codec"]["fingerprint"] = "another codec"
    facts["shards"][0]["sha256"] = "0" * 64
    write_record(corpus / "corpus.json", facts)
    error = refusal(one_rank, base, corpus, run)
    assert error.where.endswith("step-000004: base, codec, corpus")
    for name in ("base", "codec", "corpus"):
        assert f"{name} " in error.found
        assert f"{name} " in error.expected
    assert "codec random codes in the checkpoint" in error.found
    assert "codec another code, as this command says" in error.expected
    assert "--allow-change" not in error.action


def test_a_change_that_is_allowed_is_said_and_recorded(run, one_rank, model_folder, random_corpus):
    overrides = [*OVERRIDES, "run.max_steps=5", "batch.max_tokens=900", "optimizer.lr=1e-4"]
    one_rank.run(gate.train, model_folder, random_corpus.folder, run, overrides, None, "auto", ["max_tokens"])
    state = state_of(run)
    assert state["step"] == 5
    assert state["identity"]["max_tokens"] == 900
    assert {entry["changed"]: (entry["step"], entry["was"], entry["now"]) for entry in state["lineage"]} == {
        "max_tokens": (4, 2048, 900),
        "optimizer.lr": (4, 0.003, 0.0001),
        "run.max_steps": (4, 4, 5),
    }
    # The same command again is a resume like any other: nothing has changed since.
    said = one_rank.run(_start, model_folder, random_corpus.folder, run, overrides, {"allow_change": ["max_tokens"]})[
        0
    ]
    assert "finished at step 5 of 5" in said
    assert "changed" not in said


def test_a_change_that_leaves_no_step_to_train_is_refused(run, one_rank, model_folder, random_corpus):
    error = refusal(
        one_rank, model_folder, random_corpus.folder, run, ["batch.max_tokens=900"], allow_change=["max_tokens"]
    )
    assert "step 4 done, of 4" in error.found
    assert "run.max_steps" in error.action


def test_what_can_not_be_allowed_is_said_with_what_can(run, one_rank, model_folder, random_corpus):
    error = refusal(one_rank, model_folder, random_corpus.folder, run, allow_change=["lora", "max_token"])
    assert error.where == "--allow-change"
    assert error.found == "lora, max_token"
    assert {"corpus", "max_tokens", "packs_per_step", "seed"} < set(
        error.expected.removeprefix("some of ").split(", ")
    )
    assert "--init-adapter" in error.action


def test_fresh_never_writes_over_a_run(run, one_rank, model_folder, random_corpus):
    error = refusal(one_rank, model_folder, random_corpus.folder, run, mode="fresh")
    assert error.where == str(run / "checkpoints")
    assert error.found == "2 checkpoints with --resume fresh"
    assert error.expected.startswith("none")
    assert "another --out" in error.action


def test_a_run_whose_checkpoints_are_gone_does_not_begin_again_unasked(run, one_rank, model_folder, random_corpus):
    shutil.rmtree(run / "checkpoints")
    before = (run / "metrics.jsonl").read_bytes()
    error = refusal(one_rank, model_folder, random_corpus.folder, run)
    assert error.where == str(run / "checkpoints")
    assert error.found == "no checkpoint, though metrics.jsonl records steps up to 4"
    assert "--resume fresh" in error.action
    assert (run / "metrics.jsonl").read_bytes() == before
    for kept in ("metrics.1.jsonl", "metrics.2.jsonl"):
        one_rank.run(gate.train, model_folder, random_corpus.folder, run, OVERRIDES, None, "fresh")
        assert (run / kept).read_bytes() == before
        assert sorted(validation(run)) == [2, 4]
        before = (run / "metrics.jsonl").read_bytes()
        shutil.rmtree(run / "checkpoints")


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(
    tmp_path, one_rank, model_folder, random_corpus
):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "kind": "train"}\n{"step": 2, "kind": "train"}\n')
    one_rank.run(gate.train, model_folder, random_corpus.folder, tmp_path, OVERRIDES)
    assert sorted(validation(tmp_path)) == [2, 4]


def test_checkpoints_are_in_the_order_of_their_steps(tmp_path):
    for step in (999_999, 1_000_000, 2, 10_000_000):
        (tmp_path / f"step-{step:06d}").mkdir()
    steps = [int(path.name[5:]) for path in checkpoint.list_checkpoints(tmp_path)]
    assert steps == [2, 999_999, 1_000_000, 10_000_000]


def test_a_finished_run_says_so_at_once_and_names_the_two_ways_on(run, one_rank, model_folder, random_corpus):
    said = one_rank.run(_start, model_folder, random_corpus.folder, run, OVERRIDES, {})[0]
    assert "finished at step 4 of 4" in said
    assert "run.max_steps=8" in said
    assert "the learning rate, 3.00e-04 now, goes on from" in said
    assert f"--init-adapter {run} with another --out" in said


def test_where_the_best_is_not_there_the_best_before_it_is(run, one_rank, model_folder, random_corpus):
    root = run / "checkpoints"
    path = root / "step-000004" / checkpoint.STATE_FILE
    state = {**json.loads(path.read_text()), "best_step": 3}
    write_record(path, state)
    replace_link(root / "best", "step-000003")
    said = one_rank.run(_start, model_folder, random_corpus.folder, run, OVERRIDES, {})[0]
    assert f"{root / 'best'} is passed over: it points to step-000003, which is not there" in said
    assert f"{root / 'step-000003'}, the best as of step-000004, is passed over: state.json can't be used" in said
    assert (root / "best").resolve().name == "step-000002"


def test_after_a_kill_every_record_has_each_step_once(tmp_path, one_rank, model_folder, random_corpus):
    """Steps 3 and 4 are logged and not saved; the resumed run comes by them again."""
    overrides = [*OVERRIDES, "run.monitors=[tensorboard,csv_monitor]"]
    one_rank.run(gate.train, model_folder, random_corpus.folder, tmp_path, overrides)
    shutil.rmtree(tmp_path / "checkpoints" / "step-000004")
    logs = tmp_path / "logs"
    with open(logs / "train_loss.csv", "a") as file:
        file.write("1")  # all that a kill left of a row of step 13, say
    with open(tmp_path / "metrics.jsonl", "ab") as file:  # whatever stands in a line, it never ends a resume
        for line in (b"5", b"null", b"[1]", b'{"step": 1}', b'{"step": "1", "kind": "train"}', b"\xff", b"[" * 9999):
            file.write(line + b"\n")
    one_rank.run(gate.train, model_folder, random_corpus.folder, tmp_path, [*overrides, "run.max_steps=5"])
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    steps = {kind: [line["step"] for line in lines if line["kind"] == kind] for kind in ("train", "validation")}
    assert steps == {"train": [1, 2, 3, 4, 5], "validation": [2, 4, 5]}
    board = EventAccumulator(str(logs)).Reload()
    for kind, name in (("train", "loss"), ("train", "lr"), ("validation", "loss_audio")):
        logged = {line["step"]: line[name] for line in lines if line["kind"] == kind}
        events = board.Scalars(f"{kind}/{name}")
        assert [event.step for event in events] == steps[kind]
        assert [event.value for event in events] == pytest.approx(list(logged.values()))
        header, *rows = (logs / f"{kind}_{name}.csv").read_text().splitlines()
        assert header == f"step,{name}"
        assert [(int(row.split(",")[0]), float(row.split(",")[1])) for row in rows] == list(logged.items())


def test_an_evaluation_that_is_owed_is_logged_once_though_the_run_is_killed_when_it_is_done(
    run, one_rank, model_folder, random_corpus
):
    checkpoint.update_state(run / "checkpoints" / "step-000004", {"pending_evaluation": True})
    one_rank.run(gate.train, model_folder, random_corpus.folder, run, OVERRIDES)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    found = [(line["step"], line["kind"]) for line in map(json.loads, lines) if line["kind"] == "validation"]
    assert found == [(2, "validation"), (4, "validation")]
    assert not state_of(run)["pending_evaluation"]


def test_a_change_is_recorded_once_though_a_pending_evaluation_is_done_between_two_starts(
    run, one_rank, model_folder, random_corpus
):
    checkpoint.update_state(run / "checkpoints" / "step-000004", {"pending_evaluation": True})
    changed = [*OVERRIDES, "optimizer.weight_decay=0.02"]
    one_rank.run(gate.train, model_folder, random_corpus.folder, run, changed)
    assert not state_of(run)["pending_evaluation"]
    one_rank.run(gate.train, model_folder, random_corpus.folder, run, [*changed, "run.max_steps=5"])
    names = [change["changed"] for change in state_of(run)["lineage"]]
    assert sorted(names) == ["optimizer.weight_decay", "run.max_steps"]


def test_a_finished_run_trains_longer(run, one_rank, model_folder, random_corpus):
    one_rank.run(gate.train, model_folder, random_corpus.folder, run, [*OVERRIDES, "run.max_steps=6"])
    assert state_of(run)["step"] == 6
    assert sorted(validation(run)) == [2, 4, 6]


@pytest.mark.parametrize("what", ["run folder", "checkpoint", "plain adapter"])
def test_a_run_begun_with_an_adapter_has_its_loss_at_step_0(
    what, tmp_path, finished, one_rank, model_folder, random_corpus
):
    newest = finished / "checkpoints" / "step-000004"
    given = {"run folder": finished, "checkpoint": newest}.get(what)
    if given is None:
        given = shutil.copytree(newest, tmp_path / "adapter", ignore=shutil.ignore_patterns("o*", "state*"))
    out, overrides = tmp_path / "new", [*OVERRIDES, "optimizer.lr=1e-4", "run.seed=3"]
    one_rank.run(gate.train, model_folder, random_corpus.folder, out, overrides, None, "auto", (), str(given))
    expected, found = validation(finished)[4], validation(out)[0]
    assert found == {**expected, "step": 0}
    assert sorted(validation(out)) == [0, 2, 4]
    origin = state_of(out)["lineage"]
    assert len(origin) == 1
    assert (out / origin[0]["init_adapter"]).resolve() == given
    assert not Path(origin[0]["init_adapter"]).is_absolute()
    assert origin[0]["checkpoint_step"] == (None if what == "plain adapter" else 4)
    assert json.loads((out / "run.json").read_text())["lineage"] == origin
    # What was begun so resumes with the same flags, and with no others.
    arguments = {"init_adapter": str(given)}
    said = one_rank.run(_start, model_folder, random_corpus.folder, out, overrides, arguments)[0]
    assert "finished at step 4 of 4" in said
    error = refusal(one_rank, model_folder, random_corpus.folder, finished, init_adapter=str(given))
    assert error.found == f"a run that did not begin with --init-adapter {given}"
    assert "another --out" in error.action


@pytest.mark.parametrize(
    ("overrides", "name"),
    [(["lora.rank=8"], "lora.rank"), (["lora.alpha=3"], "lora.alpha"), (["lora.mode=audio"], "mode")],
)
def test_an_adapter_of_another_shape_is_refused_by_name(
    overrides, name, tmp_path, finished, one_rank, model_folder, random_corpus
):
    arguments = {"init_adapter": str(finished)}
    error = refusal(one_rank, model_folder, random_corpus.folder, tmp_path / "new", overrides, **arguments)
    assert error.where.startswith(f"--init-adapter {finished}")
    assert error.where.endswith(name)
    assert "in the adapter" in error.found
    assert "as this command says" in error.expected
    assert "--model and the lora" in error.action


def test_a_folder_without_adapter_is_refused(tmp_path, one_rank, model_folder, random_corpus):
    error = refusal(one_rank, model_folder, random_corpus.folder, tmp_path / "new", init_adapter=str(tmp_path))
    assert error.where == f"--init-adapter {tmp_path}"
    assert error.found == "no adapter_model.safetensors"
    assert "a checkpoint, or a PEFT adapter" in error.expected
    assert "Name one" in error.action


def test_a_run_folder_is_free_once_its_holder_is_killed_though_loader_workers_outlive_it(tmp_path):
    ready, report = os.pipe()
    holder = os.fork()
    if not holder:
        try:
            with resume.lock_run_folder(tmp_path):
                worker = os.fork()
                if worker:
                    os.write(report, worker.to_bytes(4, "little"))
                while True:
                    signal.pause()
        finally:
            os._exit(1)
    os.close(report)
    worker = int.from_bytes(os.read(ready, 4), "little")
    assert worker, "the holder ended before it had the folder"
    try:
        with pytest.raises(InputError) as caught, resume.lock_run_folder(tmp_path):
            pass
        assert "another run that is writing here" in caught.value.found
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
        os.kill(worker, 0)
        with resume.lock_run_folder(tmp_path):
            pass
    finally:
        for pid in (holder, worker):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
