"""What a recipe's monitors need is there, or the run is refused with what to install."""

import sys

import pytest

from engine.monitor.metrics import RunLog
from preprocess.common.errors import InputError


def assert_refused(folder):
    with pytest.raises(InputError) as caught:
        RunLog(folder, 0, ["tensorboard", "wandb"])
    assert caught.value.where == "recipe: run.monitors"
    assert caught.value.found == "wandb, which is not installed here"
    assert "requirements-wandb.txt" in caught.value.action
    assert not list(folder.glob("*.jsonl")), "a refused run leaves no record"


def test_a_run_with_wandb_where_it_is_not_installed_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    assert_refused(tmp_path)


def test_a_folder_of_earlier_wandb_runs_is_not_taken_for_the_package(tmp_path, monkeypatch):
    (tmp_path / "wandb").mkdir()
    # Only this folder is searched, so that an installed wandb is not found.
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    assert_refused(tmp_path)
