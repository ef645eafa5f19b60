"""Training equals inference: what the real loop learns, Boson's serve engine speaks, code for code.

A mutant trains or merges with one named fault and must fail the gate that the product passes.
"""

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.fixtures import gate
from tests.fixtures.mutants import INPUT_MUTANTS, LABEL_MUTANTS, MERGE_MUTANTS

OVERRIDES = [
    "batch.packs_per_step=1",
    "batch.max_tokens=4096",
    "run.precision=fp32",
    "run.max_steps=110",
    "run.log_every=10",
    "run.save_every=1000",
]


@pytest.fixture(scope="session")
def learnt(tmp_path_factory, one_rank, model_folder, telling):
    """The last checkpoint of a run without any fault."""
    out = tmp_path_factory.mktemp("learnt")
    one_rank.run(gate.train, model_folder, telling[0], out, OVERRIDES)
    return out / "checkpoints" / "best"


def test_the_merged_model_speaks_its_targets_code_for_code(one_rank, learnt, telling, codec_folder, hubert_folder):
    failures = one_rank.run(gate.merge_and_judge, learnt, codec_folder, hubert_folder, telling[1])[0]
    assert failures == []


def test_every_lora_matrix_has_trained(learnt):
    tensors = load_file(learnt / "adapter_model.safetensors")
    still = [name for name, tensor in tensors.items() if "lora_B" in name and not np.abs(tensor).max() > 1e-4]
    assert len(tensors) > 50
    assert still == []


@pytest.mark.parametrize("mutant", MERGE_MUTANTS)
def test_a_faulty_merge_fails_the_gate(mutant, one_rank, learnt, telling, codec_folder, hubert_folder):
    failures = one_rank.run(gate.merge_and_judge, learnt, codec_folder, hubert_folder, telling[1], mutant)[0]
    assert failures != []


def assert_fails_the_gate(mutant, tmp_path, one_rank, model_folder, telling, codec_folder, hubert_folder):
    one_rank.run(gate.train, model_folder, telling[0], tmp_path / "run", OVERRIDES, mutant)
    checkpoint = tmp_path / "run" / "checkpoints" / "best"
    failures = one_rank.run(gate.merge_and_judge, checkpoint, codec_folder, hubert_folder, telling[1])[0]
    assert failures != []


@pytest.mark.parametrize("mutant", LABEL_MUTANTS)
def test_faulty_labels_fail_the_gate(mutant, tmp_path, one_rank, model_folder, telling, codec_folder, hubert_folder):
    assert_fails_the_gate(mutant, tmp_path, one_rank, model_folder, telling, codec_folder, hubert_folder)


@pytest.mark.long
@pytest.mark.parametrize("mutant", INPUT_MUTANTS)
def test_faulty_inputs_fail_the_gate(mutant, tmp_path, one_rank, model_folder, telling, codec_folder, hubert_folder):
    assert_fails_the_gate(mutant, tmp_path, one_rank, model_folder, telling, codec_folder, hubert_folder)
