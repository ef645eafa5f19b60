"""Session fixtures: each tiny folder is built once and shared by all tests. Tests never write into them."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A tiny model of 8 codebooks x 1,024, DualFFN in layers 0 and 2 of 4."""
    from tests.fixtures.model import build_model

    return build_model(tmp_path_factory.mktemp("model"))
