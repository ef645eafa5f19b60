"""DualFFN balance: the ratio of the two branches' updates, and what is said where one stands still."""

import contextlib
import io
import json

import pytest
import torch

from engine.monitor.balance import describe_balance, describe_untrained, ffn_update_ratios
from tests.fixtures import gate

OVERRIDES = ["run.precision=fp32", "run.max_steps=2", "run.save_every=1", "run.evaluate_every=9", "run.log_every=9"]


def lora(layer, branch, scale, seed):
    """Masters of a branch, {name: matrix}, whose B A is `scale` times that of the same seed."""
    generator = torch.Generator().manual_seed(seed)
    masters = {}
    for projection, (rows, columns) in {"gate_proj": (12, 6), "down_proj": (6, 12)}.items():
        name = f"model.base_model.model.layers.{layer}.{branch}.{projection}"
        masters[f"{name}.lora_A.default.weight"] = torch.randn(3, columns, generator=generator)
        masters[f"{name}.lora_B.default.weight"] = torch.randn(rows, 3, generator=generator) * scale
    return masters


def effective(masters, layer, branch):
    """[both projections' B A], flat."""
    prefix = f"model.base_model.model.layers.{layer}.{branch}."
    weights = []
    for projection in ("gate_proj", "down_proj"):
        a, b = (masters[f"{prefix}{projection}.lora_{side}.default.weight"] for side in "AB")
        weights.append((b @ a).flatten())
    return torch.cat(weights)


def test_the_ratio_is_that_of_the_effective_weights_updates():
    before = lora(0, "mlp", 1, 0) | lora(0, "audio_mlp", 1, 1) | lora(1, "mlp", 1, 2)
    now = lora(0, "mlp", 2, 3) | lora(0, "audio_mlp", 0.5, 4) | lora(1, "mlp", 2, 5)
    text, audio = (
        (effective(now, 0, branch) - effective(before, 0, branch)).norm() for branch in ("mlp", "audio_mlp")
    )
    assert ffn_update_ratios(before, now) == {0: pytest.approx(float(text / audio), rel=1e-5)}


def test_a_branch_that_stands_still_is_a_warning_and_one_that_is_not_trained_is_none():
    text, audio = lora(3, "mlp", 1, 0), lora(3, "audio_mlp", 1, 1)
    moved = lora(3, "audio_mlp", 1.1, 1)
    ratios = ffn_update_ratios(text | audio, text | moved)
    assert ratios == {3: 0.0}
    assert "warning: one branch hardly moves in layer 3: 0" in describe_balance(ratios)
    ratios = ffn_update_ratios(text | audio, lora(3, "mlp", 1.1, 0) | audio)
    assert "warning: one branch hardly moves in layer 3: 1e+06" in describe_balance(ratios)
    assert "warning" not in describe_balance({0: 1.0, 1: 9.0})
    assert ffn_update_ratios(audio, moved) == {}


def test_a_branch_that_lora_does_not_train_is_named():
    text, audio = lora(3, "mlp", 1, 0), lora(4, "audio_mlp", 1, 1)
    assert describe_untrained(text | audio) == ""
    assert describe_untrained(text) == "no DualFFN balance: audio FFN not trained (lora.mode)"
    assert describe_untrained(audio) == "no DualFFN balance: text FFN not trained (lora.mode)"
    assert describe_untrained({}) == "no DualFFN balance: text FFN and audio FFN not trained (lora.mode)"


def train(model, data, out, overrides):
    """The lines that the real loop prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        gate.train(model, data, out, [*OVERRIDES, *overrides])
    return printed.getvalue().splitlines()


@pytest.mark.parametrize(
    ("mode", "untrained"), [("audio", "text FFN not trained"), ("attention", "text FFN and audio FFN not trained")]
)
def test_a_mode_without_a_balance_says_so_once(mode, untrained, tmp_path, one_rank, model_folder, random_corpus):
    (printed,) = one_rank.run(train, model_folder, random_corpus.folder, tmp_path, [f"lora.mode={mode}"])
    assert [line for line in printed if "DualFFN" in line] == [f"no DualFFN balance: {untrained} (lora.mode)"]
    assert '"balance"' not in (tmp_path / "metrics.jsonl").read_text()


def test_the_start_names_what_is_trained_whole(tmp_path, one_rank, model_folder, random_corpus):
    whole = "lora.train_whole=[audio_head,text_head]"
    (printed,) = one_rank.run(train, model_folder, random_corpus.folder, tmp_path, [whole, "run.max_steps=1"])
    (line,) = [line for line in printed if line.startswith("LoRA on ")]
    heads = "audio_decoder_proj.audio_lm_head, audio_decoder_proj.text_lm_head"
    assert f"; trained whole: {heads}; " in line
    assert "lm_head x" not in line


def test_every_save_logs_the_balance_of_the_real_loop(tmp_path, one_rank, model_folder, random_corpus):
    (printed,) = one_rank.run(train, model_folder, random_corpus.folder, tmp_path, [])
    assert sum(line.startswith("DualFFN balance, text FFN's update over") for line in printed) == 2
    assert not any("not trained" in line or "trained whole" in line for line in printed)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    found = [line for line in lines if line["kind"] == "balance"]
    assert [line["step"] for line in found] == [1, 2]
    for line in found:
        assert 0.1 < line["ffn_balance_min"] <= line["ffn_balance_median"] <= line["ffn_balance_max"] < 10
