"""DualFFN balance: how far the text FFN and the audio FFN of each layer moved between two saves.

A ratio far from 1 says that one branch learns and the other stands still. Computed from master weights that a save
gathers anyway: no hooks in the step.
"""

import re
import statistics

import torch

LOW, HIGH = 0.1, 10.0  # a ratio beyond these is worth a warning
_LARGEST = 1e6  # stands for a division by nought, which JSON can't hold

Masters = dict[str, torch.Tensor]


def ffn_masters(masters: Masters) -> Masters:
    """The LoRA matrices of both FFNs among the master weights."""
    return {name: tensor for name, tensor in masters.items() if _parse(name)}


def ffn_update_ratios(before: Masters, now: Masters) -> dict[int, float]:
    """{layer: norm of the text FFN's update over that of the audio FFN's}, for layers in which LoRA trains both.

    The update is that of the effective weights, B A now minus B A before (LoRA's scale is the same on both sides);
    the norm is Frobenius' over a branch's projections. {} where LoRA does not train both branches of any layer.
    """
    squares: dict[int, dict[str, float]] = {}
    for name, b in now.items():
        match = _parse(name)
        if not match or match["side"] != "B":
            continue
        name_a = name.replace(".lora_B.", ".lora_A.")
        square = _squared_update(before[name], before[name_a], b, now[name_a])
        branches = squares.setdefault(int(match["layer"]), {})
        branches[match["branch"]] = branches.get(match["branch"], 0.0) + square
    ratios = {}
    for layer, branches in sorted(squares.items()):
        if len(branches) == 2 and any(branches.values()):
            audio = branches["audio_mlp"]
            ratios[layer] = min(_LARGEST, (branches["mlp"] / audio) ** 0.5) if audio else _LARGEST
    return ratios


def describe_balance(ratios: dict[int, float]) -> str:
    """A line for the log, with a warning where a layer's ratio is beyond LOW or HIGH."""
    far = {layer: ratio for layer, ratio in ratios.items() if not LOW <= ratio <= HIGH}
    named = ", ".join(f"layer {layer}: {ratio:.2g}" for layer, ratio in far.items())
    return (
        f"DualFFN balance, text FFN's update over audio FFN's: median {statistics.median(ratios.values()):.2f} "
        f"({min(ratios.values()):.2f} to {max(ratios.values()):.2f})"
        + (f"; warning: one branch hardly moves in {named}" if far else "")
    )


def describe_untrained(masters: Masters) -> str:
    """A line for the log where LoRA trains one FFN or none, so that there is no balance; "" where it trains both."""
    trained = {match["branch"] for name in masters if (match := _parse(name))}
    names = [name for branch, name in (("mlp", "text FFN"), ("audio_mlp", "audio FFN")) if branch not in trained]
    return f"no DualFFN balance: {' and '.join(names)} not trained (lora.mode)" if names else ""


def balance_metrics(ratios: dict[int, float]) -> dict[str, float]:
    """Lowest, median and highest ratio."""
    return {
        "ffn_balance_min": min(ratios.values()),
        "ffn_balance_median": statistics.median(ratios.values()),
        "ffn_balance_max": max(ratios.values()),
    }


def _parse(name: str) -> re.Match | None:
    return re.search(r"\.layers\.(?P<layer>\d+)\.(?P<branch>mlp|audio_mlp)\.\w+\.lora_(?P<side>[AB])\.", name)


def _squared_update(b0: torch.Tensor, a0: torch.Tensor, b1: torch.Tensor, a1: torch.Tensor) -> float:
    """Squared Frobenius norm of B1 A1 - B0 A0, from the small Gram matrices of its factors."""
    left = torch.cat([b1 - b0, b0], dim=1).double()  # B1 A1 - B0 A0 = (B1 - B0) A1 + B0 (A1 - A0)
    right = torch.cat([a1, a1 - a0]).double()
    return float(((left.T @ left) * (right @ right.T)).sum())
