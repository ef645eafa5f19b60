"""`run.monitors: [wandb]`: the optional package runs beside the pinned protobuf, and records a run offline."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("wandb", reason="wandb is not installed: pip install --no-deps -r requirements-wandb.txt")
pytestmark = pytest.mark.long

SCRIPT = """
from pathlib import Path
import torch.distributed as dist
import deepspeed
from engine.monitor.metrics import RunLog

dist.init_process_group("gloo", init_method=f"file://{Path.cwd()}/meeting", rank=0, world_size=1)
deepspeed.init_distributed("gloo", dist_init_required=False)
log = RunLog(Path.cwd(), 0, ["wandb"])
for step in (1, 2):
    log.write(step, {"loss": 1.0 / step}, "train")
"""


def test_wandb_keeps_the_metrics_of_a_run_offline(tmp_path):
    environment = {**os.environ, "WANDB_MODE": "offline", "DS_ACCELERATOR": "cpu"}
    subprocess.run([sys.executable, "-c", SCRIPT], cwd=tmp_path, env=environment, check=True)
    (stored,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    content = stored.read_bytes()
    assert b"train/loss" in content
    assert b"0.5" in content
