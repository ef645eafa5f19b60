"""DeepSpeed does what the trainer needs of it, and its state goes out and in whole."""

import itertools
import json
from pathlib import Path

import deepspeed
import numpy as np
import pytest
import torch
import torch.distributed as dist

from engine.base import zero
from engine.base.recipe import Optimizer
from engine.base.zero import trainable_parameters
from engine.checkpoint.progress import Progress
from engine.loop import learning_rate
from engine.model.weights import load_base
from engine.run import announce_run, build_engine
from tests.fixtures.steps import make_job


def test_deepspeed_is_the_version_whose_internals_zero_uses():
    assert deepspeed.__version__ == "0.19.8"


def rotary_frequencies(model_folder, data):
    engine = build_engine(make_job(model_folder, data, Path("/nonexistent"), ["run.precision=bf16"]))
    higgs = engine.module.higgs
    dtypes = {parameter.dtype for parameter in engine.module.parameters()}
    frequencies = [higgs.rotary_emb.inv_freq.float().numpy(), higgs.rotary_emb.original_inv_freq.float().numpy()]
    engine.destroy()
    return dtypes, frequencies


def test_bf16_training_keeps_the_rotary_frequencies_that_inference_has(one_rank, model_folder, random_corpus):
    dtypes, frequencies = one_rank.run(rotary_frequencies, model_folder, random_corpus.folder)[0]
    assert dtypes == {torch.bfloat16}
    expected = load_base(model_folder, torch.bfloat16).rotary_emb.inv_freq.numpy()
    assert expected.dtype == np.float32
    for found in frequencies:
        assert np.array_equal(found, expected)
    rounded = torch.from_numpy(expected).bfloat16().float().numpy()
    assert not np.array_equal(rounded, expected), "bf16 could hold these: the test proves nothing"


def bucket_sizes(model_folder, data, out):
    job = make_job(model_folder, data, out, [])
    given = dict(job.deepspeed_config["zero_optimization"])
    engine = build_engine(job)
    announce_run(job, Progress(), engine.config)
    num_trainable = sum(parameter.numel() for _, parameter in trainable_parameters(engine.module))
    used = engine.config["zero_optimization"]
    engine.destroy()
    return given, used, num_trainable


def test_no_bucket_is_larger_than_the_adapter_and_the_run_folder_says_so(
    tmp_path, one_rank, model_folder, random_corpus
):
    given, used, num_trainable = one_rank.run(bucket_sizes, model_folder, random_corpus.folder, tmp_path)[0]
    written = json.loads((tmp_path / "deepspeed.json").read_text())["zero_optimization"]
    assert given["reduce_bucket_size"] > num_trainable
    assert written["reduce_bucket_size"] == written["allgather_bucket_size"] == num_trainable
    assert used == written


def update_of_broken_gradients(model_folder, data, value):
    """Whether a step was applied whose gradient has one `value`, on the last rank, under a finite loss."""
    job = make_job(model_folder, data, Path("/nonexistent"), ["run.precision=bf16"])
    engine = build_engine(job)
    before = zero.gather_masters(engine)
    parameters = [parameter for _, parameter in trainable_parameters(engine.module)]
    for _ in range(engine.gradient_accumulation_steps()):
        loss = sum(parameter.sum() for parameter in parameters)
        if dist.get_rank() == dist.get_world_size() - 1:
            loss.register_hook(lambda gradient: gradient * value)
        engine.backward(loss)
        engine.step()
    after = zero.gather_masters(engine)
    applied, same = engine.was_step_applied(), all(torch.equal(after[name], before[name]) for name in before)
    engine.destroy()
    return applied, same


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1.0])
def test_a_gradient_that_is_not_finite_on_one_rank_is_applied_on_none(value, two_ranks, model_folder, random_corpus):
    for applied, same in two_ranks.run(update_of_broken_gradients, model_folder, random_corpus.folder, value):
        assert applied == (value == 1.0)
        assert same == (value != 1.0)


def restored_step_against_adamw(model_folder, data):
    """One step of a restored engine and of torch's AdamW from the same masters, moments and gradients."""
    job = make_job(model_folder, data, Path("/nonexistent"), ["run.precision=fp32", "optimizer.weight_decay=0.1"])
    engine = build_engine(job)
    generator = torch.Generator().manual_seed(3)
    shapes = {name: parameter.shape for name, parameter in trainable_parameters(engine.module)}
    masters = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    moments = {
        "exp_avg": {name: torch.randn(shape, generator=generator) * 1e-2 for name, shape in shapes.items()},
        "exp_avg_sq": {name: torch.rand(shape, generator=generator) * 1e-3 for name, shape in shapes.items()},
    }
    zero.restore_state(engine, masters, moments, num_steps=7)
    zero.set_lr(engine, 1e-3)
    parameters = dict(trainable_parameters(engine.module))
    live = {name: torch.equal(parameter.detach(), masters[name]) for name, parameter in parameters.items()}
    same_state = all(
        torch.equal(found, moments[moment][name])
        for moment, tensors in zero.gather_moments(engine).items()
        for name, found in tensors.items()
    )
    # A loss whose gradient is the parameter itself, below the clipping threshold.
    scale = 0.1 / sum(float((value**2).sum()) for value in masters.values()) ** 0.5
    for _ in range(engine.gradient_accumulation_steps()):
        loss = sum((parameter**2).sum() for parameter in parameters.values()) * (0.5 * scale)
        engine.backward(loss)
        engine.step()
    after = zero.gather_masters(engine)
    optimizer = job.recipe.optimizer
    expected = {name: torch.nn.Parameter(value.clone()) for name, value in masters.items()}
    reference = torch.optim.AdamW(
        expected.values(),
        lr=1e-3,
        betas=tuple(optimizer.betas),
        eps=optimizer.eps,
        weight_decay=optimizer.weight_decay,
        fused=True,
    )
    for name, parameter in expected.items():
        reference.state[parameter] = {
            "step": torch.tensor(7.0),
            "exp_avg": moments["exp_avg"][name].clone(),
            "exp_avg_sq": moments["exp_avg_sq"][name].clone(),
        }
        parameter.grad = masters[name] * scale
    reference.step()
    differences = {name: float((after[name] - value.detach()).abs().max()) for name, value in expected.items()}
    moved = max(float((after[name] - masters[name]).abs().max()) for name in masters)
    engine.destroy()
    return all(live.values()), same_state, max(differences.values()), moved


@pytest.mark.parametrize("world_size", [1, 2])
def test_restored_state_is_whole_and_the_next_step_is_adamws(
    world_size, one_rank, two_ranks, model_folder, random_corpus
):
    ranks = one_rank if world_size == 1 else two_ranks
    for live, same_state, difference, moved in ranks.run(
        restored_step_against_adamw, model_folder, random_corpus.folder
    ):
        assert live, "the live weights are not the restored masters"
        assert same_state
        assert difference < 1e-7
        assert moved > 1e-4


def test_the_learning_rate_warms_up_and_ends_at_its_final_share():
    optimizer = Optimizer(lr=1e-3, warmup_steps=10, final_lr_share=0.1)
    rates = [learning_rate(step, 110, optimizer) for step in range(111)]
    assert rates[0] == pytest.approx(1e-4)
    assert rates[9] == rates[10] == max(rates) == 1e-3
    assert rates[60] == pytest.approx(0.55e-3)
    assert rates[110] == pytest.approx(1e-4)
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates[10:]))
