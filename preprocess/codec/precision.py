"""Codes in less than fp32, or on a GPU: where that can be done, how, and how many codes it changes.

The default, fp32 on the CPU, gives Boson's codes. Everything else is faster and gives some other codes: their share
is measured on the first clips of each run, printed, and kept in corpus.json.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from preprocess.common.errors import InputError

# What a processor calls multiplication in bf16; without it bf16 is slower than fp32.
_BF16_FLAGS = {"avx512_bf16", "amx_bf16"}
_ON = {"cpu": ("fp32", "bf16"), "cuda": ("fp32", "tf32", "bf16")}


class EncodeMode(NamedTuple):
    """How codes are computed: on "cpu", or "cuda", or one GPU ("cuda:1"), and in which precision."""

    device: str = "cpu"
    precision: str = "fp32"

    def on_gpu(self, number: int) -> "EncodeMode":
        """The same on one of this machine's GPUs, dealt out in turn; on the CPU no change."""
        if self.device == "cpu":
            return self
        return self._replace(device=f"cuda:{number % torch.cuda.device_count()}")


BOSON_MODE = EncodeMode()  # every code is Boson's


def check_mode(mode: EncodeMode, cpu_info: Path = Path("/proc/cpuinfo")) -> None:
    """Raise InputError where this machine can't compute codes so. Starts nothing on a GPU: workers will be forked."""
    if mode.precision not in _ON[mode.device]:
        raise InputError(
            f"--precision {mode.precision}",
            f"--device {mode.device}",
            f"{' or '.join(_ON[mode.device])} there",
            "tf32 is a format of GPUs: leave --precision out, or add --device cuda.",
        )
    if mode.device == "cuda" and torch.cuda.device_count() == 0:
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        raise InputError(
            "--device cuda",
            f"no GPU that torch {torch.__version__} ({built}) can see",
            "an NVIDIA GPU, its driver, and a torch for it",
            "Look at `nvidia-smi` and CUDA_VISIBLE_DEVICES, or leave --device out to encode on the CPU.",
        )
    if mode == EncodeMode("cpu", "bf16") and not _BF16_FLAGS & set(cpu_info.read_text().split()):
        raise InputError(
            "--precision bf16",
            "a processor without avx512_bf16 and amx_bf16 (/proc/cpuinfo)",
            "one that multiplies in bf16",
            "Leave --precision out: fp32 is faster on this processor.",
        )


def set_precision(tokenizer: torch.nn.Module, mode: EncodeMode) -> None:
    """Let both encoders of a loaded tokenizer run in this precision; the search for the nearest codes stays fp32."""
    if mode.device != "cpu":  # torch lets convolutions, though not matmuls, use TF32 by itself
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = mode.precision == "tf32"
    if mode.precision == "bf16":
        tokenizer.encoder.forward = _in_bf16(tokenizer.encoder.forward, mode)
        tokenizer.get_regress_target = _in_bf16(tokenizer.get_regress_target, mode)


def _in_bf16(run: Callable[[torch.Tensor], torch.Tensor], mode: EncodeMode) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(torch.device(mode.device).type, torch.bfloat16):
            return run(x).float()

    return forward
