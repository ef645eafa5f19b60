"""A signal to one rank stops all of them at the same step, saved; what follows is the run that was never stopped."""

import contextlib
import json
import multiprocessing
import os
import signal
from unittest import mock

import pytest
import torch.distributed as dist

from engine import loop
from engine.base import zero
from engine.base.launcher import Launcher
from engine.batch.loader import PackReader
from engine.checkpoint import checkpoint
from engine.run import train_job
from tests.fixtures import gate
from tests.fixtures.corpus import write_random_corpus
from tests.fixtures.hooks import after_each_pack
from tests.fixtures.ranks import RankError, Ranks
from tests.fixtures.steps import make_job

OVERRIDES = ["run.precision=fp32", "run.max_steps=6", "run.save_every=100", "run.evaluate_every=100"]
OVERRIDES += ["run.log_every=1", "lora.dropout=0.1"]


def train_with_a_signal(model, data, out, number, at_step):
    """The real loop; rank 1 gets signal `number` in the middle of global step `at_step` (from 0)."""
    original = loop.train_step

    def train_step(engine, clock, step, step_number, lr, recipe, watchdog):
        sums = original(engine, clock, step, step_number, lr, recipe, watchdog)
        if step_number == at_step and dist.get_rank() == 1:
            os.kill(os.getpid(), number)
        return sums

    before = signal.getsignal(number)
    with mock.patch.object(loop, "train_step", train_step):
        gate.train(model, data, out, OVERRIDES)
    return signal.getsignal(number) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_to_one_rank_stops_both_and_the_resumed_run_is_the_straight_one(
    number, tmp_path, two_ranks, model_folder, random_corpus
):
    stopped, straight = tmp_path / "stopped", tmp_path / "straight"
    handlers_back = two_ranks.run(train_with_a_signal, model_folder, random_corpus.folder, stopped, number, 2)
    assert handlers_back == [True, True]
    root = stopped / "checkpoints"
    assert [folder.name for folder in checkpoint.list_checkpoints(root)] == ["step-000003"]
    two_ranks.run(gate.train, model_folder, random_corpus.folder, stopped, OVERRIDES)
    two_ranks.run(gate.train, model_folder, random_corpus.folder, straight, OVERRIDES)
    for name in ("adapter_model.safetensors", "optimizer.safetensors"):
        same = [(out / "checkpoints" / "step-000006" / name).read_bytes() for out in (stopped, straight)]
        assert same[0] == same[1], name


MOMENTS = ["the first step", "evaluation", "saving", pytest.param("waiting for data", marks=pytest.mark.long)]


class AskingReader(PackReader):
    """In a loader worker: asks its rank, which waits for the pack, to stop. The loader starts in the first `next`."""

    def __getitem__(self, pack):
        os.kill(self.rank_pid, signal.SIGUSR1)
        return super().__getitem__(pack)


def train_with_a_signal_during(model, data, out, moment):
    """The real loop with a loader worker; the last rank gets SIGUSR1 twice, its workers all signals, in `moment`."""
    asked = []

    def ask(*_):
        if dist.get_rank() == dist.get_world_size() - 1 and not asked:
            asked.append(True)
            for worker in multiprocessing.active_children():
                for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
                    os.kill(worker.pid, number)
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGUSR1)

    overrides = ["run.precision=fp32", "run.max_steps=6", "run.save_every=2", "run.evaluate_every=2"]
    overrides += ["run.log_every=1", "batch.loader_workers=1"]
    overrides += ["batch.max_tokens=300"]  # short packs: each rank has some to evaluate
    job = make_job(model, data, out, overrides)
    if moment == "waiting for data" and dist.get_rank() == dist.get_world_size() - 1:
        job.reader.__class__ = AskingReader
        job.reader.rank_pid = os.getpid()
    gather_moments = zero.gather_moments
    during = {
        "the first step": after_each_pack(lambda is_training, sums: ask() if is_training else None),
        "evaluation": after_each_pack(lambda is_training, sums: None if is_training else ask()),
        "saving": mock.patch.object(zero, "gather_moments", lambda engine: (ask(), gather_moments(engine))[1]),
        "waiting for data": contextlib.nullcontext(),
    }[moment]
    with during:
        train_job(job, "auto", [], None, Launcher())


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_to_one_rank_is_heard_whenever_it_comes(moment, tmp_path, two_ranks, model_folder, random_corpus):
    two_ranks.run(train_with_a_signal_during, model_folder, random_corpus.folder, tmp_path, moment)
    # Evaluation of step 2 is cut short and step 2 saved; a signal while step 2 is saved is heard after step 3.
    stopped_at = {"the first step": 1, "evaluation": 2, "saving": 3, "waiting for data": 1}[moment]
    assert (tmp_path / "checkpoints" / "latest").resolve().name == f"step-{stopped_at:06d}"
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert max(steps) == stopped_at


# Three steps, evaluated after the second and the last.
EVALUATED = ["run.precision=fp32", "run.max_steps=3", "run.save_every=2", "run.evaluate_every=2", "run.log_every=1"]
EVALUATED += ["batch.max_tokens=300", "run.evaluate_max_packs=7", "optimizer.warmup_steps=1", "lora.dropout=0.1"]
CLOCK = ("step_sec", "tokens_per_sec", "audio_sec_per_sec", "data_wait_share", "memory_peak_gb", "tflops_per_sec")


def record(out):
    """{(kind, step): metrics without what the clock says}, without `balance`, which spans the steps between saves"""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {
        (line["kind"], line["step"]): {name: value for name, value in line.items() if name not in CLOCK}
        for line in lines
        if line["kind"] != "balance"
    }


def train_with_a_signal_in_evaluation(model, data, out, at_pack=None):
    """The real loop; the last rank gets SIGTERM as it evaluates its pack `at_pack` (from 0).

    Back come the packs that this rank evaluated: how many in all, and how many one pass over the split has.
    """
    evaluated = [0]

    def count(is_training, sums):
        if is_training:
            return
        if evaluated[0] == at_pack and dist.get_rank() == dist.get_world_size() - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        evaluated[0] += 1

    job = make_job(model, data, out, EVALUATED)
    assert len(job.swapped_validation) == len(job.validation)
    with after_each_pack(count):
        train_job(job, "auto", [], None, Launcher())
    return evaluated[0], len(job.validation[dist.get_rank() :: dist.get_world_size()])


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, two_ranks, model_folder):
    """(corpus of two held-out voices, run never stopped, packs of the last rank in a pass)"""
    corpus = write_random_corpus(tmp_path_factory.mktemp("corpus"), model_folder, val_speakers=2).folder
    out = tmp_path_factory.mktemp("straight")
    counts = two_ranks.run(train_with_a_signal_in_evaluation, model_folder, corpus, out)
    assert [total for total, _ in counts] == [4 * in_pass for _, in_pass in counts]  # own and swapped, two times
    assert [in_pass for _, in_pass in counts] == [4, 3], "ranks with unequally many packs"
    return corpus, out, 3


@pytest.mark.parametrize(
    ("passes_before", "step"),
    [pytest.param(0, 2, id="own references"), pytest.param(1, 2, id="swapped"), pytest.param(2, 3, id="last step")],
)
def test_a_signal_in_evaluation_ends_it_at_once_and_it_is_made_up_for_when_the_run_goes_on(
    passes_before, step, evaluated, tmp_path, two_ranks, model_folder
):
    corpus, straight, in_pass = evaluated
    at_pack = passes_before * in_pass
    first, last = two_ranks.run(train_with_a_signal_in_evaluation, model_folder, corpus, tmp_path, at_pack)
    assert last[0] == at_pack + 1, "the pack in which the signal came is the last"
    assert first[0] == passes_before * (in_pass + 1) + 1
    root = tmp_path / "checkpoints"
    newest = checkpoint.find_newest(root, print)
    assert newest.name == f"step-{step:06d}"
    assert ("validation", step) not in record(tmp_path)
    assert checkpoint.read_state(newest)["pending_evaluation"]

    two_ranks.run(gate.train, model_folder, corpus, tmp_path, EVALUATED)
    assert record(tmp_path) == record(straight)
    for name in ("latest", "best"):
        folders = [out / "checkpoints" / name for out in (straight, tmp_path)]
        assert folders[0].resolve().name == folders[1].resolve().name
        assert checkpoint.find_problem(folders[1]) is None
        states = [checkpoint.read_state(folder) for folder in folders]
        for fact in ("step", "best_step", "best_loss", "pending_evaluation"):
            assert states[0][fact] == states[1][fact], (name, fact)
        weights = [(folder / checkpoint.ADAPTER_FILE).read_bytes() for folder in folders]
        assert weights[0] == weights[1], name
    assert not checkpoint.read_state(root / "latest")["pending_evaluation"]


def die_in_step(model, data, out, at_step):
    """The real loop; the last rank is killed in global step `at_step`. What the others raise comes back."""
    original = loop.train_step

    def train_step(engine, clock, step, step_number, lr, recipe, watchdog):
        if step_number == at_step and dist.get_rank() == dist.get_world_size() - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(engine, clock, step, step_number, lr, recipe, watchdog)

    with mock.patch.object(loop, "train_step", train_step):
        gate.train(model, data, out, [*OVERRIDES, "run.save_every=1"])


def test_with_a_dead_peer_no_save_is_tried(tmp_path, model_folder, random_corpus):
    ranks = Ranks(2)
    with pytest.raises((EOFError, RankError)):
        ranks.run(die_in_step, model_folder, random_corpus.folder, tmp_path, 2)
    ranks.close()
    root = tmp_path / "checkpoints"
    assert (root / "latest").resolve().name == "step-000002"
    assert list(root.glob(".step-*")) == []
