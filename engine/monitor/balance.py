"""DualFFN balance: how far the text FFN of each layer moved between two saves, relative to its audio FFN.

A ratio far from 1 means that one branch learns and the other hardly does. It is computed from the fp32 master weights
that a save gathers anyway, and costs nothing in a step.
"""

import re
import statistics
from collections import defaultdict

import torch

LOW, HIGH = 0.1, 10.0  # a ratio outside these is worth a warning
_LARGEST = 1e6  # instead of infinity, which JSON does not have

Masters = dict[str, torch.Tensor]


def ffn_masters(masters: Masters) -> Masters:
    """The LoRA matrices of the text FFNs and audio FFNs among the master weights."""
    return {name: tensor for name, tensor in masters.items() if _parse_name(name)}


def ffn_update_ratios(before: Masters, now: Masters) -> dict[int, float]:
    """{layer: norm of the text FFN's update / norm of the audio FFN's}, for the layers in which LoRA trains both.

    The update is that of the effective weights: B A now minus B A before (LoRA's scale cancels out in the ratio). The
    norm is the Frobenius norm over all projections of an FFN.
    """
    squares: dict[int, dict[str, float]] = {}  # {layer: {branch: squared norm of its update}}
    for name, b in now.items():
        match = _parse_name(name)
        if match and match["side"] == "B":
            name_a = name.replace(".lora_B.", ".lora_A.")
            branches = squares.setdefault(int(match["layer"]), defaultdict(float))
            branches[match["branch"]] += _squared_update(before[name], before[name_a], b, now[name_a])
    ratios = {}
    for layer, branches in sorted(squares.items()):
        if len(branches) == 2 and any(branches.values()):
            audio = branches["audio_mlp"]
            ratios[layer] = min(_LARGEST, (branches["mlp"] / audio) ** 0.5) if audio else _LARGEST
    return ratios


def describe_balance(ratios: dict[int, float]) -> str:
    """A line for the log, with a warning that names the layers whose ratio is outside LOW to HIGH."""
    far = {layer: ratio for layer, ratio in ratios.items() if not LOW <= ratio <= HIGH}
    named = ", ".join(f"layer {layer}: {ratio:.2g}" for layer, ratio in far.items())
    return (
        f"DualFFN balance, text FFN's update over audio FFN's: median {statistics.median(ratios.values()):.2f} "
        f"({min(ratios.values()):.2f} to {max(ratios.values()):.2f})"
        + (f"; warning: one branch hardly moves in {named}" if far else "")
    )


def describe_untrained(masters: Masters) -> str:
    """A line for the log if there is no balance, since LoRA trains only one FFN or none; "" if it trains both."""
    trained = {match["branch"] for name in masters if (match := _parse_name(name))}
    names = [name for branch, name in (("mlp", "text FFN"), ("audio_mlp", "audio FFN")) if branch not in trained]
    return f"no DualFFN balance: {' and '.join(names)} not trained (lora.mode)" if names else ""


def balance_metrics(ratios: dict[int, float]) -> dict[str, float]:
    """Lowest, median and highest ratio."""
    return {
        "ffn_balance_min": min(ratios.values()),
        "ffn_balance_median": statistics.median(ratios.values()),
        "ffn_balance_max": max(ratios.values()),
    }


def _parse_name(name: str) -> re.Match[str] | None:
    """`layer`, `branch` and `side` of the parameter name of an FFN's LoRA matrix; None for any other name."""
    return re.search(r"\.layers\.(?P<layer>\d+)\.(?P<branch>mlp|audio_mlp)\.\w+\.lora_(?P<side>[AB])\.", name)


def _squared_update(b0: torch.Tensor, a0: torch.Tensor, b1: torch.Tensor, a1: torch.Tensor) -> float:
    """Squared Frobenius norm of B1 A1 - B0 A0, without computing these large products.

    The difference is L R with L = [B1 - B0, B0] and R = [A1; A1 - A0], so its squared norm is the sum over the
    elementwise product of the Gram matrices L^T L and R R^T, which are as small as twice the rank.
    """
    left = torch.cat([b1 - b0, b0], dim=1).double()
    right = torch.cat([a1, a1 - a0]).double()
    return float(((left.T @ left) * (right @ right.T)).sum())
