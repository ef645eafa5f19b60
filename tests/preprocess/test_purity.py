"""The same manifest makes the same bytes: with any number of workers, anywhere, and after any kill."""

import os
import signal
import subprocess
import sys
import time
from multiprocessing import Process, get_context
from pathlib import Path

import pytest

from preprocess.shards import Corpus
from tests.preprocess.helpers import flags, folder_bytes, shard

NUM_SHARDS = 4
HOURS_PER_SHARD = 0.0004  # two clips of 0.8 s


@pytest.fixture(scope="module")
def given(short_folder, model_folder, codec_folder, hubert_folder):
    """Flags of a command that makes 4 shards of 8 clips, but --out and --workers."""
    tools = {"model": model_folder, "audio_tokenizer": codec_folder, "hubert": hubert_folder}
    return {"manifest": short_folder / "corpus.jsonl", "hours_per_shard": HOURS_PER_SHARD, **tools}


@pytest.fixture(scope="module")
def expected(tmp_path_factory, given):
    """Every file of the corpus as one worker makes it in one go."""
    out = tmp_path_factory.mktemp("expected") / "out"
    assert shard(out=out, workers=1, **given) == 0
    assert len(Corpus(out).info["shards"]) == NUM_SHARDS
    return folder_bytes(out)


def start(out: Path, given: dict) -> Process:
    """The command with one worker, in a process group of its own; forked from here, so that nothing is imported."""

    def run() -> None:
        os.setsid()
        sys.exit(shard(out=out, workers=1, **given))

    process = get_context("fork").Process(target=run)
    process.start()
    return process


def wait_for(condition, process: Process) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert process.is_alive(), "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)


def finished_shards(out: Path) -> list[Path]:
    return sorted((out / "fragments").glob("*.json")) if (out / "fragments").is_dir() else []


def children(process: Process) -> list[int]:
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in path.read_text().split()] if path.exists() else []


def test_same_bytes_with_one_and_three_workers(tmp_path, given, expected):
    assert shard(out=tmp_path / "out", workers=3, **given) == 0
    assert folder_bytes(tmp_path / "out") == expected


def test_same_bytes_under_another_hash_seed_from_another_working_directory(tmp_path, given, expected):
    """With relative paths."""
    given = {n: os.path.relpath(v, tmp_path) if isinstance(v, Path) else v for n, v in given.items()}
    command = [sys.executable, "-m", "preprocess.shard", *flags(out="out", workers=1, **given)]
    subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": "1"}, cwd=tmp_path, check=True)
    assert folder_bytes(tmp_path / "out") == expected


def test_same_bytes_after_a_kill_of_the_whole_group_in_mid_shard(tmp_path, given, expected):
    out = tmp_path / "out"
    process = start(out, given)
    wait_for(lambda: finished_shards(out), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.join()
    kept = finished_shards(out)
    assert 0 < len(kept) < NUM_SHARDS
    assert not (out / "corpus.json").exists(), "a folder that is not finished must not look so"
    for leftover in (".shard-000003.tar.partial", ".shard-000009.tar.partial", "shard-000009.tar"):
        (out / leftover).write_bytes(b"half a shard")
    times = [path.stat().st_mtime_ns for path in kept]

    assert shard(out=out, workers=1, **given) == 0
    assert folder_bytes(out) == expected
    assert [path.stat().st_mtime_ns for path in kept] == times, "finished shards are kept, not made again"


def test_a_run_on_a_finished_folder_changes_nothing(tmp_path, given, expected, capsys):
    out = tmp_path / "out"
    for name, data in expected.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(data)
    assert shard(out=out, workers=2, **given) == 0
    assert f"{NUM_SHARDS} of {NUM_SHARDS} shards are finished already" in capsys.readouterr().out
    assert folder_bytes(out) == expected


@pytest.mark.parametrize("damage", ["tar is gone", "tar is cut", "fragment is gone"])
def test_a_damaged_shard_is_made_again(damage, tmp_path, given, expected):
    out = tmp_path / "out"
    for name, data in expected.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(data)
    if damage == "tar is cut":
        (out / "shard-000001.tar").write_bytes(expected["shard-000001.tar"][:-512])
    else:
        (out / ("shard-000001.tar" if damage == "tar is gone" else "fragments/shard-000001.json")).unlink()
    assert shard(out=out, workers=1, **given) == 0
    assert folder_bytes(out) == expected


def test_a_killed_worker_costs_its_shard_alone_and_the_next_run_mends_it(tmp_path, given, expected):
    """The first shard's worker is killed in both tries; the command goes on and names the clips."""
    out = tmp_path / "out"
    process = start(out, given)
    for _ in range(2):
        wait_for(lambda: children(process), process)
        (pid,) = children(process)
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda pid=pid: pid not in children(process), process)
    process.join()
    assert process.exitcode == 0
    corpus = Corpus(out)
    assert corpus.info["clips"] == {"written": 6, "screened": 0, "failed": 2}
    assert corpus.info["rows"] == {"written": 6, "merged": 0, "screened": 0, "failed": 2}
    text = (out / "failures.jsonl").read_text()
    assert text.count('"reason": "worker_died"') == 4, "two rows and two clips"
    assert "died twice (exit code -9) while it made shard-000000" in text
    assert "Run the same command again" in text

    assert shard(out=out, workers=1, **given) == 0
    assert folder_bytes(out) == expected
