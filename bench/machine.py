"""The machine that a figure was measured on."""

import platform

import torch

from engine.monitor.environment import device_name


def describe_machine(device: torch.device) -> dict:
    """Device, threads and versions, for a result's JSON."""
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
