"""The fused LoRA projections equal PEFT's module forward, gradients included, and stand aside where they can't."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from engine.model.lora_linear import project

GROUPS = {"one layer": [48], "three layers of two widths": [48, 16, 16]}


def adapted(outputs, dtype=torch.float32, bias=False, **settings):
    """PEFT's layers 0, 1, ... over one input of width 32, lora_B filled."""
    torch.manual_seed(0)
    layers = nn.Sequential(*(nn.Linear(32, out, bias=bias) for out in outputs))
    names = [str(number) for number in range(len(outputs))]
    settings = {"target_modules": names, "r": 4, "lora_alpha": 12, "init_lora_weights": False} | settings
    return get_peft_model(layers, LoraConfig(**settings)).base_model.model.to(dtype)


def run(forward, layers, num_rows=40, rounded_to=torch.float32, dtype=None):
    """Outputs, gradient of the input and gradients of the parameters that train.

    Inputs and upstream gradients are random numbers that `rounded_to` holds, in `dtype` (that one by default).
    """
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(shape, generator=generator).to(rounded_to).to(dtype or rounded_to)

    rows = draw(num_rows, 32).requires_grad_()
    outputs = forward(layers, rows)
    torch.autograd.backward(outputs, [draw(*out.shape) for out in outputs])
    gradients = {name: p.grad for name, p in layers.named_parameters() if p.requires_grad}
    layers.zero_grad(set_to_none=True)
    return {**{f"output {n}": out.detach() for n, out in enumerate(outputs)}, "input": rows.grad, **gradients}


def peft_forward(layers, rows):
    return [layer(rows) for layer in layers]


def fused_forward(layers, rows):
    outputs = project(rows, *layers)
    assert all("LoraGroup" in type(out.grad_fn).__name__ for out in outputs), "not the fused path"
    return outputs


def error(found, expected):
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"bias": True}], ids=["LoRA", "rsLoRA", "base bias"])
@pytest.mark.parametrize("outputs", GROUPS.values(), ids=GROUPS)
def test_fused_equals_peft_for_outputs_and_every_gradient(outputs, settings):
    layers = adapted(outputs, **settings)
    expected, found = run(peft_forward, layers), run(fused_forward, layers)
    assert found.keys() == expected.keys()
    assert len(found) == 3 * len(outputs) + 1
    for name, value in expected.items():
        assert error(found[name], value) < 1e-5, name


@pytest.mark.parametrize("outputs", GROUPS.values(), ids=GROUPS)
def test_in_bf16_fused_is_no_further_from_exact_than_peft(outputs):
    """PEFT rounds each output five times, the fused path twice; gradients are rounded as often."""
    layers = adapted(outputs, torch.bfloat16)
    exact = run(peft_forward, copy.deepcopy(layers).double(), 2000, torch.bfloat16, torch.float64)
    found, peft = (run(way, layers, 2000, torch.bfloat16) for way in (fused_forward, peft_forward))
    for name, value in exact.items():
        assert error(found[name], value) < 1.1 * error(peft[name], value) < 0.02, name


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_the_gradients_are_those_of_finite_differences_under_a_fixed_mask(dropout):
    layers = adapted([6, 5], torch.float64, lora_dropout=dropout)
    trained = [parameter for parameter in layers.parameters() if parameter.requires_grad]
    rows = torch.randn(7, 32, dtype=torch.float64, requires_grad=True)

    def outputs(*_):
        torch.manual_seed(3)
        return tuple(fused_forward(layers, rows))

    assert torch.autograd.gradcheck(outputs, (rows, *trained))


def test_the_layers_of_a_group_share_a_mask_that_keeps_and_scales_as_dropout_does():
    layers = adapted([48, 48], lora_dropout=0.25)
    with torch.no_grad():
        for layer in layers:
            layer.base_layer.weight.zero_()
        layers[1].lora_A.default.weight.copy_(layers[0].lora_A.default.weight)
        layers[1].lora_B.default.weight.copy_(layers[0].lora_B.default.weight)
        rows = torch.randn(50, 32)
        without = project(rows, *layers.eval())[0]
        layers.train()
        drawn = [project(rows, *layers) for _ in range(400)]
        mean = sum(first for first, _ in drawn) / len(drawn)
        noise = torch.stack([first for first, _ in drawn]).std(0).norm() / len(drawn) ** 0.5
    assert all(torch.equal(first, second) for first, second in drawn)
    assert not torch.equal(drawn[0][0], drawn[1][0])
    assert (mean - without).norm() < 1.5 * noise < 0.2 * without.norm()


def test_no_rows_give_gradients_of_zero_and_not_none():
    layers = adapted([48, 16], lora_dropout=0.1)
    results = run(fused_forward, layers, num_rows=0)
    gradients = {name: value for name, value in results.items() if "lora" in name}
    assert len(gradients) == 4
    assert all(value is not None and not value.any() for value in gradients.values())


def test_an_input_without_gradient_still_trains_the_adapters():
    layers = adapted([48, 16])
    torch.autograd.backward(fused_forward(layers, torch.randn(9, 32)), [torch.ones(9, 48), torch.ones(9, 16)])
    assert all(p.grad.any() for p in layers.parameters() if p.requires_grad)


def switched_off(layers):
    for layer in layers:
        layer.enable_adapters(False)


def merged(layers):
    for layer in layers:
        layer.merge()


def fp32_adapters_on_bf16(layers):
    layers.bfloat16()
    for name, parameter in layers.named_parameters():
        if "lora" in name:
            parameter.data = parameter.data.float()


def trained_base(layers):
    layers[0].base_layer.weight.requires_grad_()


OTHERS = {
    "DoRA": ({"use_dora": True}, None),
    "one layer without adapter": ({"target_modules": ["0"]}, None),
    "one layer trained whole": ({"target_modules": ["0"], "modules_to_save": ["1"]}, None),
    "adapters switched off": ({}, switched_off),
    "adapters merged": ({}, merged),
    "fp32 adapters on a bf16 model": ({}, fp32_adapters_on_bf16),
    "a base layer that trains": ({}, trained_base),
}


@pytest.mark.parametrize("other", OTHERS)
def test_everything_but_plain_lora_runs_its_own_forward(other):
    settings, change = OTHERS[other]
    layers = adapted([48, 16], **settings)
    if change:
        change(layers)
    rows = torch.randn(5, 32, dtype=layers[1].get_base_layer().weight.dtype if change else torch.float32)
    outputs = project(rows, *layers)
    for found, expected in zip(outputs, peft_forward(layers, rows), strict=True):
        assert torch.equal(found, expected)
        assert "LoraGroup" not in type(found.grad_fn).__name__
