"""FLOPs by rule equal those that torch counts while the packed forward and backward run."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from engine.base.recipe import Lora, Loss
from engine.model.flops import flop_rates, peak_flops
from engine.model.forward import LossModel
from engine.model.lora import add_lora
from engine.model.losses import codebook_weights, weighted_loss
from engine.model.weights import load_base
from engine.plan.plan import Pack, Sample
from tests.fixtures.steps import open_reader

MATMULS = (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_)
SAMPLES = tuple(Sample(target=row, dialogue=-1, references=(row - 1,), num_tokens=0) for row in (1, 2, 5))


def counted_matmuls(model, batch):
    # torch counts addmm but not its in-place form, which fused LoRA uses.
    in_place = {torch.ops.aten.addmm_: lambda total, left, right, **rest: 2 * left[0] * left[1] * right[1]}
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        sums = model(batch)
        weighted_loss(sums, 9, 60, Loss(), codebook_weights(Loss(), len(sums.audio))).backward()
    counts = counter.get_flop_counts()["Global"]
    # The rest: rotary angles as a bmm; attention on a CPU is not counted.
    return sum(counts.get(operation, 0) for operation in MATMULS)


def not_needed(model, stream):
    """What autograd saves against the rule: nothing below the first projections asks for a gradient."""
    attention, saved = model.higgs.layers[0].self_attn, 0
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
        saved += 2 * projection.weight.numel()
        saved += sum(2 * matrix.weight.numel() for matrix in projection.lora_A.values())
    return saved * len(stream.position_ids)


@pytest.mark.parametrize("train_whole", [[], ["audio_head"]])
@pytest.mark.parametrize("folders", ["fast forward in half of the layers", "DualFFN in every layer"])
def test_the_rule_equals_torchs_count_of_the_matmuls(
    folders, train_whole, model_folder, random_corpus, other_model_folder, other_random_corpus
):
    fast = folders.startswith("fast")
    model_folder, corpus = (model_folder, random_corpus) if fast else (other_model_folder, other_random_corpus)
    stream = open_reader(corpus.folder, model_folder, "packed")[Pack(SAMPLES)].batch
    lora = Lora(rank=8, dropout=0.0, train_whole=train_whole)
    model = LossModel(add_lora(load_base(model_folder, torch.float32), lora))
    rates = flop_rates(model.higgs)
    lengths, text_lengths = stream.segments.diff().tolist(), stream.text_segments.diff().tolist()
    assert lengths[0] > text_lengths[0] > 0
    config = model.higgs.config.text_config
    num_text_only = 2 if fast else 0
    attention = sum(
        6 * config.hidden_size * length**2 * layers
        for layers, many in ((config.num_hidden_layers - num_text_only, lengths), (num_text_only, text_lengths))
        for length in many
    )
    expected = counted_matmuls(model, stream) + not_needed(model, stream) + attention
    assert rates.of_pack(stream) == expected


def test_a_gpu_is_known_by_its_name_or_not_at_all():
    assert peak_flops("NVIDIA H200") == peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_flops("NVIDIA GeForce RTX 3060") is None
