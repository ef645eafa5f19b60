"""The loss of a global step does not depend on how its samples are cut into packs or spread over ranks."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from engine.base.recipe import Lora
from engine.batch.sample import layout_cost
from engine.model.forward import LossModel
from engine.model.lora import add_lora
from engine.model.weights import load_base
from engine.plan.plan import Pack, Plan, Sample
from tests.fixtures.steps import gradients_of_step, initial_lora_weights, open_reader


def planned_samples(reader, count: int) -> list[Sample]:
    """`count` samples of uneven lengths: each clip after the first, with the clip before it as reference."""
    return [Sample(target=row, dialogue=-1, references=(row - 1,), num_tokens=0) for row in range(1, count + 1)]


@pytest.fixture(params=["eight codebooks", "four codebooks"])
def shape(request, model_folder, random_corpus, other_model_folder, other_random_corpus):
    """(model folder, corpus folder) of two shapes."""
    first = request.param == "eight codebooks"
    return (model_folder, random_corpus.folder) if first else (other_model_folder, other_random_corpus.folder)


def plain_loss_and_gradients(model_folder, corpus_folder, samples, lora_weights, smoothing=0.0):
    """Boson's forward sample by sample and torch's cross-entropy over all labels: what any split must equal.

    The losses are without smoothing; the gradients are with it.
    """
    reader = open_reader(corpus_folder, model_folder)
    peft_model = add_lora(load_base(model_folder, torch.float32), Lora(rank=16, alpha=32, dropout=0.0))
    parameters = {
        f"model.{name}": parameter for name, parameter in peft_model.named_parameters() if parameter.requires_grad
    }
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(torch.from_numpy(lora_weights[name]))
    model = peft_model.get_base_model()
    text_logits, text_labels, audio_logits, audio_labels = [], [], [], []
    for sample in samples:
        batch = reader[Pack((sample,))].batch
        output = model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            audio_out_ids=batch.audio_out_ids,
            audio_out_ids_start=batch.audio_out_ids_start,
            label_ids=batch.label_ids,
            label_audio_ids=batch.label_audio_ids,
        )
        text_logits.append(output.logits[0, :-1])
        text_labels.append(output.expanded_labels[0, 1:])
        audio_logits.append(output.audio_logits[:-1])
        audio_labels.append(batch.label_audio_ids[:, 1:].T)

    def losses(label_smoothing):
        text = F.cross_entropy(torch.cat(text_logits), torch.cat(text_labels), label_smoothing=label_smoothing)
        logits, labels = torch.cat(audio_logits), torch.cat(audio_labels)
        audio = [
            F.cross_entropy(logits[:, k], labels[:, k], label_smoothing=label_smoothing)
            for k in range(labels.shape[1])
        ]
        return text, audio

    text, audio = losses(smoothing)
    (text + sum(audio) / len(audio)).backward()
    text, audio = losses(0.0)
    gradients = {name: parameter.grad.numpy() for name, parameter in parameters.items()}
    return text.item(), [value.item() for value in audio], gradients


def assert_same_step(found, text, audio, gradients, loss_tolerance=1e-5, gradient_tolerance=1e-4):
    assert found["text"] == pytest.approx(text, rel=loss_tolerance)
    assert found["audio"] == pytest.approx(audio, rel=loss_tolerance)
    assert found["gradients"].keys() == gradients.keys()
    for name, expected in gradients.items():
        difference = np.linalg.norm(found["gradients"][name] - expected)
        assert difference <= gradient_tolerance * np.linalg.norm(expected) + 1e-9, name
        assert np.linalg.norm(expected) > 0, f"{name} has no gradient: the comparison proves nothing"


def test_any_split_into_packs_and_ranks_gives_the_same_loss_and_gradients(shape, one_rank, two_ranks):
    model_folder, corpus_folder = shape
    samples = planned_samples(open_reader(corpus_folder, model_folder), 4)
    weights = one_rank.run(initial_lora_weights, model_folder, corpus_folder)[0]
    expected = plain_loss_and_gradients(model_folder, corpus_folder, samples, weights)
    splits = {
        "1x4": [samples],
        "2x2": [samples[:2], samples[2:]],
        "uneven": [samples[:1], samples[1:]],
        "4x1": [[sample] for sample in samples],
    }
    for split in splits.values():
        assert_same_step(one_rank.run(gradients_of_step, model_folder, corpus_folder, split)[0], *expected)
    for name in ("2x2", "uneven", "4x1"):
        for found in two_ranks.run(gradients_of_step, model_folder, corpus_folder, splits[name]):
            assert_same_step(found, *expected)


def test_label_smoothing_is_torchs_in_the_gradient_and_not_in_the_reported_loss(
    one_rank, two_ranks, model_folder, random_corpus
):
    samples = planned_samples(open_reader(random_corpus.folder, model_folder), 4)
    weights = one_rank.run(initial_lora_weights, model_folder, random_corpus.folder)[0]
    expected = plain_loss_and_gradients(model_folder, random_corpus.folder, samples, weights, smoothing=0.2)
    recipe = ("loss.label_smoothing=0.2",)
    arguments = (model_folder, random_corpus.folder, [samples[:1], samples[1:]], "fp32", None, recipe)
    for found in two_ranks.run(gradients_of_step, *arguments):
        assert_same_step(found, *expected)


def test_sixty_four_uneven_packs_accumulate_to_the_gradient_of_one(one_rank, model_folder, random_corpus):
    rows = np.random.default_rng(0).permutation(np.tile(np.arange(1, 23), 3))[:64].tolist()
    samples = [Sample(target=row, dialogue=-1, references=(row - 1,) * (row % 2), num_tokens=0) for row in rows]
    for precision, tolerance in (("fp32", 1e-4), ("bf16", 0.03)):
        together, apart = (
            one_rank.run(gradients_of_step, model_folder, random_corpus.folder, packs, precision)[0]
            for packs in ([samples], [[sample] for sample in samples])
        )
        # In bf16 the forward's rounding differs; gradients accumulated in bf16 would lose about half.
        assert_same_step(apart, together["text"], together["audio"], together["gradients"], tolerance, tolerance)


def test_a_pack_without_text_labels_on_one_rank_changes_nothing_else(
    one_rank, two_ranks, model_folder, random_corpus
):
    samples = planned_samples(open_reader(random_corpus.folder, model_folder), 4)
    packs = [samples[:2], samples[2:]]
    one = one_rank.run(gradients_of_step, model_folder, random_corpus.folder, packs, "fp32", 1)[0]
    both = two_ranks.run(gradients_of_step, model_folder, random_corpus.folder, packs, "fp32", 1)
    whole = one_rank.run(gradients_of_step, model_folder, random_corpus.folder, packs)[0]
    for found in both:
        assert_same_step(found, one["text"], one["audio"], one["gradients"])
    assert one["audio"] == pytest.approx(whole["audio"], rel=1e-6)
    assert one["text"] < 0.7 * whole["text"], "half of the text labels are gone, the count is not"


def test_fresh_lora_has_the_loss_of_the_base_and_a_random_model_knows_nothing(shape):
    model_folder, corpus_folder = shape
    reader = open_reader(corpus_folder, model_folder)
    batch = reader[Pack(tuple(planned_samples(reader, 4)))].batch
    base = LossModel(load_base(model_folder, torch.float32))
    before = base(batch)
    adapted = LossModel(add_lora(load_base(model_folder, torch.float32), Lora(dropout=0.1)))
    after = adapted(reader[Pack(tuple(planned_samples(reader, 4)))].batch)
    assert torch.equal(before.text, after.text)
    assert torch.equal(before.audio, after.audio)
    config = reader.config
    labels_a_codebook = (batch.label_audio_ids != -100).sum(1)
    per_codebook = (before.audio / labels_a_codebook).tolist()
    assert per_codebook == pytest.approx([math.log(config.audio_codebook_size + 2)] * len(per_codebook), rel=0.02)


def test_label_counts_of_the_plan_are_those_of_the_batches(shape):
    model_folder, corpus_folder = shape
    reader = open_reader(corpus_folder, model_folder)
    cost = layout_cost(reader.tokenizer, reader.config, reader.system_text)
    plan = Plan(reader.corpora.index, split="train", cost=cost, packs_per_step=2, max_tokens=600, seed=0)
    for number in range(plan.epoch(0).num_steps):
        step = plan.step(number)
        batches = [reader[pack].batch for pack in step.packs]
        text_labels = sum(int((batch.label_ids != -100).sum()) for batch in batches)
        audio_labels = sum((batch.label_audio_ids != -100).sum(1) for batch in batches)
        assert text_labels == step.text_count
        assert audio_labels.tolist() == [step.audio_count] * reader.config.audio_num_codebooks
        # Placeholders stand for columns: every other token is text.
        placeholders = sum(int((b.input_ids == reader.config.audio_out_token_idx).sum()) for b in batches)
        tokens = sum(int(b.attention_mask.sum()) + b.audio_out_ids.shape[1] for b in batches) - placeholders
        assert tokens == step.num_tokens
