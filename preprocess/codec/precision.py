"""Codes computed below fp32 or on a GPU: where that works, and how it is switched on.

The default, fp32 on the CPU, gives Boson's codes. Every other mode is faster and changes some codes: their share is
measured on the first clips of each run (preprocess.encode.agreement), printed, and stored in corpus.json.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from preprocess.common.errors import InputError

UntypedModule = Any  # a torch.nn.Module; mypy takes each of its attributes for `Tensor | Module`
Forward = Callable[[torch.Tensor], torch.Tensor]
# /proc/cpuinfo's names for multiplication in bf16; without it bf16 is slower than fp32.
_BF16_FLAGS = {"avx512_bf16", "amx_bf16"}
_PRECISIONS = {"cpu": ("fp32", "bf16"), "cuda": ("fp32", "tf32", "bf16")}


class EncodeMode(NamedTuple):
    """How codes are computed: device ("cpu", "cuda", or one GPU: "cuda:1") and precision ("fp32", "tf32", "bf16")."""

    device: str = "cpu"
    precision: str = "fp32"

    def on_gpu(self, number: int) -> "EncodeMode":
        """The mode of worker `number`: workers share this machine's GPUs round robin. A CPU mode stays as it is."""
        if self.device == "cpu":
            return self
        return self._replace(device=f"cuda:{number % torch.cuda.device_count()}")


BOSON_MODE = EncodeMode()  # every code is Boson's


def check_mode(mode: EncodeMode, cpu_info: Path = Path("/proc/cpuinfo")) -> None:
    """Raise InputError if this machine can't compute in `mode`. Does not start CUDA, so workers can be forked."""
    if mode.precision not in _PRECISIONS[mode.device]:
        raise InputError(
            f"--precision {mode.precision}",
            f"--device {mode.device}",
            f"{' or '.join(_PRECISIONS[mode.device])} there",
            "tf32 is a format of GPUs: leave --precision out, or add --device cuda.",
        )
    if mode.device == "cuda" and torch.cuda.device_count() == 0:
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        raise InputError(
            "--device cuda",
            f"no GPU that torch {torch.__version__} ({built}) can see",
            "an NVIDIA GPU, its driver, and a torch for it",
            "Check `nvidia-smi` and CUDA_VISIBLE_DEVICES, or leave --device out to encode on the CPU.",
        )
    if mode == EncodeMode("cpu", "bf16") and not _BF16_FLAGS & set(cpu_info.read_text().split()):
        raise InputError(
            "--precision bf16",
            "a processor without avx512_bf16 and amx_bf16 (/proc/cpuinfo)",
            "one that multiplies in bf16",
            "Leave --precision out: fp32 is faster on this processor.",
        )


def set_precision(tokenizer: UntypedModule, mode: EncodeMode) -> None:
    """Run a tokenizer's two encoders in the mode's precision; the search for the nearest codes stays fp32."""
    if mode.device != "cpu":  # torch's own default: TF32 in convolutions, not in matmuls
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = mode.precision == "tf32"
    if mode.precision == "bf16":
        tokenizer.encoder.forward = _in_bf16(tokenizer.encoder.forward, mode)
        tokenizer.get_regress_target = _in_bf16(tokenizer.get_regress_target, mode)


def _in_bf16(run: Forward, mode: EncodeMode) -> Forward:
    def forward(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(torch.device(mode.device).type, torch.bfloat16):
            return run(x).float()

    return forward
