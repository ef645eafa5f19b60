"""A signal to one rank stops all of them at the same step, saved; what follows is the run that was never stopped."""

import os
import signal
from unittest import mock

import pytest
import torch.distributed as dist

from engine import checkpoint, loop
from tests.fixtures import gate

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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
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
