"""Speed of training between two log lines: tokens, audio, FLOPs, waiting for data."""

import torch

from engine.batch.loader import WaitClock
from engine.model.flops import peak_flops
from engine.plan.plan import Step


class Window:
    """Throughput of the training steps since the last log line, without the time for evaluation and saving."""

    def __init__(self) -> None:
        self.elapsed_sec = self.flops = 0.0
        self.tokens = self.frames = self.steps = 0

    def add(self, step: Step, flops: float, elapsed_sec: float) -> None:
        """Add one step that took `elapsed_sec`; flops: those of this rank's packs, 0 if unknown."""
        self.elapsed_sec += elapsed_sec
        self.flops += flops
        self.tokens += step.num_tokens
        self.frames += step.audio_frames
        self.steps += 1

    def rates(self, clock: WaitClock, frame_rate_hz: float, device: torch.device) -> dict[str, float]:
        """{metric: value}: tokens and audio of all ranks; TFLOP/s, MFU, waiting and memory of this rank."""
        rates = {
            "step_sec": self.elapsed_sec / self.steps,
            "tokens_per_sec": self.tokens / self.elapsed_sec,
            "audio_sec_per_sec": self.frames / frame_rate_hz / self.elapsed_sec,
            "data_wait_share": clock.waited_sec / self.elapsed_sec,
            "memory_peak_gb": torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else 0.0,
        }
        if self.flops:
            rates["tflops_per_sec"] = self.flops / self.elapsed_sec / 1e12
            peak = peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
            if peak:
                rates["mfu"] = self.flops / self.elapsed_sec / peak
        return rates
