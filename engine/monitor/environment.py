"""Facts for run.json about where a run ran: device, precision, attention kernel, versions."""

import platform
from importlib.metadata import version
from pathlib import Path

import torch

from engine.model.attention import attention_backend
from engine.model.weights import weight_dtype
from preprocess.common.json_file import JsonObject

_PACKAGES = ("deepspeed", "peft", "transformers", "boson-multimodal", "numpy")


def describe_environment(device: torch.device, precision: str, forward: str) -> JsonObject:
    """{"device": its name, "precision", "attention": backend of the recipe's `forward`, "versions"}."""
    ours = forward == "packed"
    return {
        "device": device_name(device),
        "precision": precision,
        "attention": attention_backend(device, weight_dtype(precision)) if ours else "Boson's, over a padded batch",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,  # with its CUDA build
            **{package: version(package) for package in _PACKAGES},
        },
    }


def device_name(device: torch.device) -> str:
    """The name of a GPU, or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()
