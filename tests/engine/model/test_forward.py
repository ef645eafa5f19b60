"""The packed forward equals Boson's forward: losses, right answers and every LoRA gradient, in every shape."""

import numpy as np
import pytest
import torch
from peft.tuners.lora import Linear as LoraLinear

from engine.model.forward import LossModel
from engine.model.weights import load_base
from engine.plan.plan import Pack, Sample
from launch.demo.small_model import build_model
from tests.fixtures.corpus import write_random_corpus
from tests.fixtures.steps import adapted_model, loss_and_gradients, open_reader

SHAPES = {
    "fast forward outside layers 0 and 2": {},
    "DualFFN everywhere": {"adapter_type": "dual_ffn", "dual_ffn_layers": (0, 1, 2, 3)},
    "DualFFN in the last layer, plain elsewhere": {"adapter_type": "dual_ffn", "dual_ffn_layers": (3,)},
    "no DualFFN": {"adapter_type": "stack", "dual_ffn_layers": ()},
    "four codebooks, no grouped heads": {
        "num_codebooks": 4,
        "codebook_size": 64,
        "hidden_size": 64,
        "num_key_value_heads": 4,
    },
}


@pytest.fixture(scope="module", params=SHAPES)
def shape(request, tmp_path_factory):
    """(model folder, corpus folder)."""
    folder = tmp_path_factory.mktemp("shape")
    settings = SHAPES[request.param]
    model = build_model(folder / "model", seed=5, **settings)
    codes = {name: settings[name] for name in ("num_codebooks", "codebook_size") if name in settings}
    return model, write_random_corpus(folder / "corpus", model, **codes).folder


SAMPLES = tuple(
    Sample(target=target, dialogue=-1, references=references, num_tokens=0)
    for target, references in [(1, (0,)), (4, ()), (2, (3, 0)), (5, (1,)), (7, (6,))]
)


def assert_same(found, expected):
    found_sums, found_gradients = found
    expected_sums, expected_gradients = expected
    for ours, theirs in zip(found_sums, expected_sums, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    for name, gradient in expected_gradients.items():
        difference = (found_gradients[name] - gradient).norm()
        assert difference <= 1e-5 * gradient.norm() + 1e-9, (name, float(difference), float(gradient.norm()))


def test_packed_equals_boson_for_losses_answers_and_every_gradient(shape):
    model_folder, corpus_folder = shape
    model = adapted_model(model_folder)
    boson, packed = (
        loss_and_gradients(
            model, open_reader(corpus_folder, model_folder, forward)[Pack(SAMPLES)].batch, len(SAMPLES)
        )
        for forward in ("boson", "packed")
    )
    assert_same(packed, boson)
    silent = {name for name, gradient in boson[1].items() if gradient.norm() == 0}
    assert not silent, "these have no gradient, so the comparison proves nothing for them"


def test_a_pack_equals_its_samples_one_by_one_and_changing_one_changes_no_other(shape):
    model_folder, corpus_folder = shape
    model = LossModel(load_base(model_folder, torch.float32))
    reader = open_reader(corpus_folder, model_folder, "packed")
    with torch.no_grad():
        alone = [model(reader[Pack((sample,))].batch) for sample in SAMPLES]
        together = model(reader[Pack(SAMPLES)].batch)
        other = (*SAMPLES[:-1], Sample(target=9, dialogue=-1, references=(8, 10), num_tokens=0))
        changed = model(reader[Pack(other)].batch)
        last = model(reader[Pack(other[-1:])].batch)
    for field in ("text", "audio"):
        summed = sum(getattr(sums, field) for sums in alone)
        torch.testing.assert_close(getattr(together, field), summed, rtol=1e-5, atol=1e-5)
        rest = summed - getattr(alone[-1], field)
        torch.testing.assert_close(getattr(changed, field) - getattr(last, field), rest, rtol=1e-5, atol=1e-3)


def test_recomputed_layers_give_the_same_gradients_dropout_included(shape):
    model_folder, corpus_folder = shape
    batch = open_reader(corpus_folder, model_folder, "packed")[Pack(SAMPLES)].batch
    results = []
    for layers in (0, 3):
        model = adapted_model(model_folder, num_checkpointed_layers=layers, dropout=0.3)
        torch.manual_seed(11)
        results.append(loss_and_gradients(model, batch, len(SAMPLES)))
    assert_same(results[1], results[0])


def test_every_adapted_layer_runs_fused_and_none_through_pefts_own_forward(shape):
    model_folder, corpus_folder = shape
    model = adapted_model(model_folder)
    layers = [module for module in model.modules() if isinstance(module, LoraLinear)]
    ran = []
    for layer in layers:
        layer.register_forward_hook(lambda *_: ran.append(1))
    model(open_reader(corpus_folder, model_folder, "packed")[Pack(SAMPLES)].batch)
    assert not ran
    model(open_reader(corpus_folder, model_folder, "boson")[Pack(SAMPLES)].batch)
    assert len(ran) == len(layers), "Boson's forward, the oracle, no longer goes through PEFT"


def test_the_streams_two_orders_are_inverse_and_positions_restart_in_each_sample(shape):
    model_folder, corpus_folder = shape
    stream = open_reader(corpus_folder, model_folder, "packed")[Pack(SAMPLES)].batch
    length = len(stream.position_ids)
    assert torch.equal(stream.split_to_stream[stream.stream_to_split], torch.arange(length))
    assert np.array_equal(stream.position_ids[stream.segments[:-1].long()], np.zeros(len(SAMPLES)))
    assert int(stream.segments[-1]) == length == len(stream.text_tokens) + stream.audio_columns.shape[1]
