"""Reference consistency: the value of a plain loop, gradients of Boson's own hidden states, counts of the plan."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from engine.base.recipe import Lora, Loss
from engine.batch.sample import layout_cost
from engine.model.consistency import consistency_sum
from engine.model.forward import LossModel
from engine.model.lora import add_lora
from engine.model.weights import load_base
from engine.plan.plan import Pack, Plan, Sample
from tests.fixtures.steps import gradients_of_step, open_reader

TEMPERATURE = 0.2
RECIPE = ("loss.consistency_weight=3", f"loss.consistency_temperature={TEMPERATURE}")
# Two samples of speaker 0, who are no negatives of each other; one without a reference, who is no negative at all.
SAMPLES = [
    Sample(target=1, dialogue=-1, references=(0,), num_tokens=0, speaker=0),
    Sample(target=2, dialogue=-1, references=(3, 4), num_tokens=0, speaker=0),
    Sample(target=7, dialogue=-1, references=(8,), num_tokens=0, speaker=1),
    Sample(target=9, dialogue=-1, references=(), num_tokens=0, speaker=1),
    Sample(target=13, dialogue=-1, references=(12,), num_tokens=0, speaker=2),
]
ALONE = [
    Sample(target=3, dialogue=-1, references=(4,), num_tokens=0, speaker=0),
    Sample(target=10, dialogue=-1, references=(), num_tokens=0, speaker=1),
]


def plain(pooled, speakers):
    """InfoNCE by a loop; pooled: [(reference states or None, target states)] a sample, [columns, hidden] each."""
    total, count = torch.zeros(()), 0
    for i, (reference, target) in enumerate(pooled):
        others = [
            other
            for (other, _), speaker in zip(pooled, speakers, strict=True)
            if other is not None and speaker != speakers[i]
        ]
        if reference is None or not others:
            continue
        scores = [
            F.cosine_similarity(target.mean(0), voice.mean(0), dim=0) / TEMPERATURE for voice in (reference, *others)
        ]
        total = total - torch.stack(scores).log_softmax(0)[0]
        count += 1
    return total, count


def adapted_model(model_folder, loss):
    torch.manual_seed(0)
    model = LossModel(add_lora(load_base(model_folder, torch.float32), Lora(rank=8, dropout=0.0)), loss=loss)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape) * 0.05)
    return model


def gradients(model, loss):
    loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}
    model.zero_grad()
    return found


def boson_pooled(model, batch, samples, frames):
    """States of every sample's references and target, after the norm, by Boson's own forward on the padded batch."""
    config = model.higgs.config
    output = model.higgs(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        audio_out_ids=batch.audio_out_ids,
        audio_out_ids_start=batch.audio_out_ids_start,
        output_hidden_states=True,
    )
    states = output.hidden_states[config.text_config.num_hidden_layers]
    pooled = []
    for row, sample in enumerate(samples):
        columns = states[row][output.expanded_input_ids[row] == config.audio_out_token_idx]
        num_target = frames[sample.target] + config.audio_num_codebooks + 1
        references, target = columns[:-num_target], columns[-num_target:]
        assert len(references) == sum(frames[r] + config.audio_num_codebooks + 1 for r in sample.references)
        pooled.append((references if sample.references else None, target))
    return pooled


def test_value_and_gradients_are_those_of_a_loop_over_bosons_hidden_states(model_folder, random_corpus):
    model = adapted_model(model_folder, Loss(consistency_weight=0.1, consistency_temperature=TEMPERATURE))
    batch = open_reader(random_corpus.folder, model_folder)[Pack(tuple(SAMPLES))].batch
    frames = random_corpus.index.column("frames").to_pylist()
    expected, count = plain(boson_pooled(model, batch, SAMPLES, frames), [s.speaker for s in SAMPLES])
    assert count == 4 == Pack(tuple(SAMPLES)).num_contrasted
    found = model(open_reader(random_corpus.folder, model_folder, "packed")[Pack(tuple(SAMPLES))].batch).consistency
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    expected, found = gradients(model, expected), gradients(model, found)
    assert len(expected) > 20
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-7, name
    assert sum(gradient.norm() > 0 for gradient in expected.values()) > 20


def test_the_same_speakers_other_samples_are_no_negatives():
    states = torch.randn(8, 16, requires_grad=True)
    voice, speakers = torch.arange(8), torch.tensor([3, 3, 3, 3])
    alone = consistency_sum(states, voice, speakers, TEMPERATURE)
    alone.backward()
    assert float(alone.detach()) == 0
    assert torch.equal(states.grad, torch.zeros_like(states))
    one_other = consistency_sum(states, voice, torch.tensor([3, 3, 3, 5]), TEMPERATURE)
    assert float(one_other.detach()) > 0


def test_two_ranks_have_the_gradient_of_one_also_where_one_has_nothing_to_contrast(
    one_rank, two_ranks, model_folder, random_corpus
):
    arguments = (model_folder, random_corpus.folder, [SAMPLES, ALONE], "fp32", None, RECIPE)
    one = one_rank.run(gradients_of_step, *arguments)[0]
    off = one_rank.run(gradients_of_step, *arguments[:-1])[0]
    assert one["consistency"] > 0 == off["consistency"]
    changed = [
        name for name, gradient in one["gradients"].items() if not np.allclose(gradient, off["gradients"][name])
    ]
    assert len(changed) > 20
    for found in two_ranks.run(gradients_of_step, *arguments):
        assert found["consistency"] == pytest.approx(one["consistency"], rel=1e-5)
        for name, expected in one["gradients"].items():
            assert np.linalg.norm(found["gradients"][name] - expected) <= 1e-4 * np.linalg.norm(expected), name


def test_the_gradient_is_a_mean_over_the_contrasted_samples_of_the_whole_step(one_rank, model_folder, random_corpus):
    def added(packs):
        """The gradient that the consistency loss adds to the step's."""
        arguments = (model_folder, random_corpus.folder, packs, "fp32", None)
        on, off = (one_rank.run(gradients_of_step, *arguments, recipe)[0]["gradients"] for recipe in (RECIPE, ()))
        return {name: on[name] - off[name] for name in on}

    once, twice = added([SAMPLES, ALONE]), added([SAMPLES, SAMPLES])  # over 4 samples and over 8, 4 of them the same
    largest = max(np.linalg.norm(gradient) for gradient in once.values())
    assert largest > 0
    for name, expected in once.items():
        assert np.linalg.norm(twice[name] - expected) <= 1e-3 * largest, name


def test_the_plan_counts_the_samples_that_are_contrasted(model_folder, random_corpus):
    reader = open_reader(random_corpus.folder, model_folder, "packed")
    cost = layout_cost(reader.tokenizer, reader.config, reader.system_text)
    plan = Plan(reader.corpora.index, split="train", cost=cost, packs_per_step=2, max_tokens=400, seed=0)
    names = reader.corpora.index.column("speaker").to_pylist()
    counts = []
    for step in (plan.step(number) for number in range(plan.num_steps(0))):
        counted = 0
        for pack in step.packs:
            speakers = reader[pack].batch.speakers.tolist()
            assert len({*zip(speakers, (names[s.target] for s in pack.samples), strict=True)}) == len(set(speakers))
            referenced = [names[sample.target] for sample in pack.samples if sample.references]
            counted += sum(any(other != name for other in referenced) for name in referenced)
        assert step.num_contrasted == counted
        counts.append((counted, step.num_samples))
    assert any(counted > 0 for counted, _ in counts)
    assert any(counted < samples for counted, samples in counts)
