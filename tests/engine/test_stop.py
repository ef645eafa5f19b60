"""A signal to one rank stops all of them at the same step, saved; what follows is the run that was never stopped."""

import json
import multiprocessing
import os
import signal
from unittest import mock

import pytest
import torch.distributed as dist

from engine import checkpoint, loop
from engine.loader import PackReader
from tests.fixtures import gate
from tests.fixtures.ranks import RankError, Ranks
from tests.fixtures.steps import make_job

OVERRIDES = ["run.precision=fp32", "run.max_steps=6", "run.save_every=100", "run.evaluate_every=100"]
OVERRIDES += ["run.log_every=1", "lora.dropout=0.1"]


def train_with_a_signal(model, data, out, number, at_step):
    """The real loop; rank 1 gets signal `number` in the middle of global step `at_step` (from 0)."""
    original = loop.train_step

    def train_step(engine, clock, step, step_number, lr, recipe):
        sums = original(engine, clock, step, step_number, lr, recipe)
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

    def then(original):
        return lambda *arguments, **keywords: (ask(), original(*arguments, **keywords))[1]

    def make_asking_job(*arguments):
        job = make_job(*arguments)
        if dist.get_rank() == dist.get_world_size() - 1:
            job.reader.__class__ = AskingReader
            job.reader.rank_pid = os.getpid()
        return job

    place, name, replace = {
        "the first step": (loop, "weigh", then),
        "evaluation": (loop, "evaluate", then),
        "saving": (loop.zero, "gather_moments", then),
        "waiting for data": (gate, "make_job", lambda original: make_asking_job),
    }[moment]
    overrides = ["run.precision=fp32", "run.max_steps=6", "run.save_every=2", "run.evaluate_every=2"]
    with mock.patch.object(place, name, replace(getattr(place, name))):
        gate.train(model, data, out, [*overrides, "run.log_every=1", "batch.loader_workers=1"])


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_to_one_rank_is_heard_whenever_it_comes(moment, tmp_path, two_ranks, model_folder, random_corpus):
    two_ranks.run(train_with_a_signal_during, model_folder, random_corpus.folder, tmp_path, moment)
    # Evaluation of step 2 ends, and its save holds; a signal that comes while step 2 is saved is heard after step 3.
    stopped_at = {"the first step": 1, "evaluation": 2, "saving": 3, "waiting for data": 1}[moment]
    assert (tmp_path / "checkpoints" / "latest").resolve().name == f"step-{stopped_at:06d}"
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert max(steps) == stopped_at


def die_in_step(model, data, out, at_step):
    """The real loop; the last rank is killed in global step `at_step`. What the others raise comes back."""
    original = loop.train_step

    def train_step(engine, clock, step, step_number, lr, recipe):
        if step_number == at_step and dist.get_rank() == dist.get_world_size() - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(engine, clock, step, step_number, lr, recipe)

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
