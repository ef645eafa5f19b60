"""What ends a step badly is said with its place, and what a run writes is what happened."""

import json
import os
import shlex
import shutil
import subprocess
import sys

import psutil
import pytest
import torch

from engine.batch.loader import PackReader, check_shared_memory, load_packs
from engine.plan.corpora import Corpora
from engine.plan.plan import Pack, Sample
from preprocess.common.errors import InputError
from tests.fixtures import gate
from tests.fixtures.hooks import after_each_pack
from tests.fixtures.ranks import RankError
from tests.fixtures.steps import ROOT

OVERRIDES = ["run.precision=fp32", "run.max_steps=4", "run.log_every=1", "run.save_every=2", "run.evaluate_every=2"]


def train_with_broken_packs(model, data, out, ranks="1"):
    """The real loop, in which the losses of `ranks` in global step 2 (from 0) are not a number."""
    calls = [0]

    def break_one(is_training, sums):
        if not is_training:
            return None
        number, calls[0] = calls[0], calls[0] + 1
        broken = number == 2 and os.environ["RANK"] in ranks  # two ranks, two packs per step: one pack per call
        return sums._replace(audio=sums.audio * float("nan")) if broken else None

    with after_each_pack(break_one):
        gate.train(model, data, out, OVERRIDES)


def test_a_loss_that_is_not_finite_stops_all_ranks_before_the_update_and_names_the_pack(
    tmp_path, two_ranks, model_folder, random_corpus
):
    with pytest.raises(RankError) as caught:
        two_ranks.run(train_with_broken_packs, model_folder, random_corpus.folder, tmp_path)
    error = caught.value.original
    assert isinstance(error, InputError)
    assert error.where == "global step 3"
    assert "not finite in pack 1 (clips s" in error.found
    assert "pack 0" not in error.found
    assert error.expected == "finite numbers"
    assert "The update was not applied" in error.action
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert max(steps) == 2
    assert (tmp_path / "checkpoints" / "latest").resolve().name == "step-000002"


def test_losses_that_are_finite_nowhere_are_no_clip_s_fault(tmp_path, two_ranks, model_folder, random_corpus):
    with pytest.raises(RankError) as caught:
        two_ranks.run(train_with_broken_packs, model_folder, random_corpus.folder, tmp_path, "01")
    error = caught.value.original
    assert error.found == "a loss that is not finite in all 2 packs"
    assert "check the base model and its weights, lower optimizer.lr" in error.action


LOAD_AND_FAIL = """
import os, sys, time
import psutil
from engine.batch.loader import PackReader, loader_workers, load_packs
from engine.plan.corpora import Corpora
from engine.plan.plan import Pack, Sample
from preprocess.common.errors import exit_on_input_error

def main():
    packs = [Pack((Sample(target=number, dialogue=-1, references=(), num_tokens=0),)) for number in range(12)]
    with loader_workers():
        reader = PackReader(Corpora([sys.argv[2]]), sys.argv[1], "packed")
        loaded = load_packs(reader, packs * 20, 1, pin_memory=False)
        for _ in loaded:
            {failure}
            time.sleep(0.05)

exit_on_input_error(main)
"""


def load_and(failure, model, corpus):
    """A process that loads packs with a worker, and fails."""
    command = [sys.executable, "-c", LOAD_AND_FAIL.format(failure=failure), str(model), str(corpus.folder)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)


def test_a_rank_that_fails_unforeseen_ends_at_once_with_its_workers(model_folder, random_corpus):
    """The traceback keeps the loader alive, whose worker ignores the signals that stop a run."""
    done = load_and(
        "raise OSError(28, f'no space, {psutil.Process().children()[0].pid}')", model_folder, random_corpus
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("OSError: [Errno 28] no space, ")
    assert not psutil.pid_exists(int(last.rpartition(" ")[2]))


def test_a_loader_worker_that_was_killed_is_named_with_what_to_do(model_folder, random_corpus):
    done = load_and("[worker.kill() for worker in psutil.Process().children()]", model_folder, random_corpus)
    assert done.returncode == 2, done.stderr[-3000:]
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: a loader worker: found DataLoader worker (pid ")
    assert "is killed by signal: Killed" in last
    assert "perhaps because memory ran out (see dmesg): lower batch.loader_workers" in last
    assert last.endswith("The same command resumes from the newest checkpoint.")


def test_shared_memory_that_is_too_small_is_refused_with_docker_s_flag(tmp_path, model_folder, random_corpus):
    """A file system of 64 KiB in a mount namespace, as a container's /dev/shm may be."""
    pack = "Pack(tuple(Sample(target=n, dialogue=-1, references=(), num_tokens=0) for n in range(20)))"
    script = f"""
from pathlib import Path
from engine.batch.loader import PackReader, check_shared_memory
from engine.plan.corpora import Corpora
from engine.plan.plan import Pack, Sample
from preprocess.common.errors import exit_on_input_error
reader = PackReader(Corpora([{str(random_corpus.folder)!r}]), {str(model_folder)!r}, "packed")
check_shared_memory(reader, {pack}, 0, Path({str(tmp_path)!r}))
exit_on_input_error(lambda: check_shared_memory(reader, {pack}, 16, Path({str(tmp_path)!r})))
"""
    mount = f"mount -t tmpfs -o size=64k tmpfs {shlex.quote(str(tmp_path))} && exec"
    enter = ["unshare", "-rm", "sh", "-c"]
    probe = subprocess.run([*enter, f"{mount} true"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip(f"no mount namespace here: {probe.stderr.decode().strip()}")
    run = shlex.join([sys.executable, "-c", script])
    done = subprocess.run([*enter, f"{mount} {run}"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr[-3000:]
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"error: {tmp_path}: found 0.1 MB free; expected ")
    assert "docker run --shm-size=16g" in last
    check_shared_memory(*reader_and_pack(model_folder, random_corpus.folder), 2)


def reader_and_pack(model, data):
    pack = Pack(tuple(Sample(target=n, dialogue=-1, references=(), num_tokens=0) for n in range(20)))
    return PackReader(Corpora([data]), model, "packed"), pack


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_decayed_clip_is_named_whoever_reads_it(num_workers, tmp_path, model_folder, random_corpus):
    data = shutil.copytree(random_corpus.folder, tmp_path / "corpus")
    row = random_corpus.index.slice(3, 1).to_pylist()[0]
    with open(data / row["shard"], "r+b") as shard:
        shard.seek(row["codes_offset"] + row["codes_bytes"] - 1)
        last = shard.read(1)
        shard.seek(-1, os.SEEK_CUR)
        shard.write(bytes([last[0] ^ 1]))
    reader = PackReader(Corpora([data]), model_folder, "packed")
    packs = [Pack((Sample(target=number, dialogue=-1, references=(), num_tokens=0),)) for number in (2, 3)]
    loaded = load_packs(reader, packs, num_workers, pin_memory=False)
    assert next(loaded).keys == [random_corpus.clip(2).key]
    with pytest.raises(InputError) as caught:
        next(loaded)
    assert caught.value.where.endswith(f"shard-000000.tar[{row['key']}]")
    assert "codes member with crc32" in caught.value.found
    assert "index.parquet" in caught.value.expected
    assert "copy it again" in caught.value.action


def test_a_kill_between_save_and_link_leaves_the_right_best(tmp_path, one_rank, model_folder, random_corpus):
    one_rank.run(gate.train, model_folder, random_corpus.folder, tmp_path, OVERRIDES)
    root = tmp_path / "checkpoints"
    best = json.loads((root / "latest" / "state.json").read_text())["best_step"]
    wrong = "step-000002" if best == 4 else "step-000004"
    (root / "best").unlink()
    (root / "best").symlink_to(wrong)
    one_rank.run(gate.train, model_folder, random_corpus.folder, tmp_path, OVERRIDES)
    assert (root / "best").resolve().name == f"step-{best:06d}"


def test_the_run_folder_says_what_ran_and_how_fast(tmp_path, one_rank, model_folder, random_corpus):
    one_rank.run(gate.train, model_folder, random_corpus.folder, tmp_path, [*OVERRIDES, "run.max_steps=1"])
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["attention"] == "scaled_dot_product_attention, sample by sample"
    assert run["precision"] == "fp32"
    assert run["device"]
    assert run["versions"]["torch"] == torch.__version__
    assert {"deepspeed", "peft", "boson-multimodal"} <= run["versions"].keys()
    (line,) = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()][:1]
    assert 0 < line["tflops_per_sec"] < 10
    assert "mfu" not in line, "a CPU has no peak that we know"
    assert line["loss"] == pytest.approx(line["loss_text"] + line["loss_audio"], rel=1e-6)


def test_old_checkpoints_go_the_newest_and_the_best_stay(tmp_path, one_rank, model_folder, random_corpus):
    overrides = [*OVERRIDES, "run.save_every=1", "run.keep_checkpoints=1", "run.evaluate_every=1"]
    one_rank.run(gate.train, model_folder, random_corpus.folder, tmp_path, overrides)
    root = tmp_path / "checkpoints"
    best = json.loads((root / "latest" / "state.json").read_text())["best_step"]
    assert {path.name for path in root.glob("*step-*")} == {"step-000004", f"step-{best:06d}"}
