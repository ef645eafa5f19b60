"""Random faults over one training and over one corpus, relaunched until done: the result is that of no fault at all.

make test-soak          30 faults in training and 100 in preprocessing; an hour on two cores
SOAK_FAULTS=5 SOAK_SEED=7 make test-soak
"""

import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import psutil
import pytest

from tests.fixtures import launched
from tests.fixtures.steps import ROOT
from tests.preprocess.helpers import flags, folder_bytes
from tests.test_launch import DEMO, read_metrics

SEED = int(os.environ.get("SOAK_SEED", "0"))
SIZES = [pytest.param(None, marks=pytest.mark.soak), pytest.param(2, marks=pytest.mark.long)]


def num_faults(short: int | None, usual: int) -> int:
    return short or int(os.environ.get("SOAK_FAULTS", usual))


def record_faults(record_property, counts):
    """For bench/faults.py."""
    for kind, number in counts.items():
        record_property(f"faults: {kind}", number)


def fill_disk(processes: list[psutil.Process]) -> None:
    """From now on no file of these processes grows, as on a full disk."""
    for each in processes:
        each.rlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))


def signal_rank(number):
    return lambda chance, process, launch, ranks: chance.choice(ranks).send_signal(number)


def kill_worker(chance, process, launch, ranks):
    chance.choice([each for rank in ranks for each in rank.children()]).kill()


TRAINING_FAULTS = {
    "a rank is killed": signal_rank(signal.SIGKILL),
    "a rank is terminated": signal_rank(signal.SIGTERM),
    "a rank is stopped": signal_rank(signal.SIGSTOP),
    "a loader worker is killed": kill_worker,
    "the runner is killed": lambda chance, process, launch, ranks: process.kill(),
    "launch.py is killed": lambda chance, process, launch, ranks: launch.kill(),
    "Ctrl-C": lambda chance, process, launch, ranks: os.killpg(process.pid, signal.SIGINT),
    "all are killed": lambda chance, process, launch, ranks: os.killpg(process.pid, signal.SIGKILL),
    "the disk is full": lambda chance, process, launch, ranks: fill_disk(ranks),
}


def damage_newest(chance, out, kept):
    """Spoil the newest checkpoint while nothing runs, where there is another one and it is newer than `kept`."""
    steps = sorted((out / "checkpoints").glob("step-*"), key=lambda path: int(path.name[5:]))
    if len(steps) < 2 or steps[-1].name == f"step-{kept:06d}":
        return "no damage"
    kind = chance.choice(["the newest checkpoint is lost", "a byte is another", "a file is cut"])
    path = chance.choice(sorted(steps[-1].glob("*.*")))
    if kind == "the newest checkpoint is lost":
        shutil.rmtree(steps[-1])
    elif kind == "a file is cut":
        os.truncate(path, path.stat().st_size // 2)
    else:
        data = bytearray(path.read_bytes())
        data[chance.randrange(len(data))] ^= 0x55
        path.write_bytes(data)
    return kind


def newest_step(out):
    metrics = out / "metrics.jsonl"
    return max(map(int, re.findall(r'"step": (\d+),', metrics.read_text())), default=0) if metrics.is_file() else 0


def disturb(chance, process, out, log, before_step):
    """Wait for one of the next steps and do something bad; its name, once all of the run is gone."""
    step = min(newest_step(out) + chance.randint(1, 3), before_step)
    launched.wait_for(process, out / "metrics.jsonl", f'"step": {step},', log)
    launch, *others = launched.family(process)
    ranks = [each for each in others if each.ppid() == launch.pid]
    names = sorted(TRAINING_FAULTS.keys() - ({"a rank is stopped"} if len(ranks) == 1 else {}))  # nobody would see it
    name = chance.choice(names)
    time.sleep(chance.random() / 4)
    TRAINING_FAULTS[name](chance, process, launch, ranks)
    while launched.runs(launch) or any(launched.runs(rank) for rank in ranks):  # those that live on see it and end
        if newest_step(out) > before_step:  # the part was over before it could
            os.killpg(process.pid, signal.SIGKILL)
        time.sleep(0.05)
    return name


@pytest.mark.parametrize("short", SIZES)
def test_a_training_under_random_faults_is_the_undisturbed_one(
    short, tmp_path, model_folder, random_corpus, record_property
):
    chance, faults = random.Random(SEED), num_faults(short, 30)
    ranks_of_parts = (2,) if short else (1, 2, 1)
    length = 2 * (2 * faults // len(ranks_of_parts) + 2)  # steps of a part: even, as save_every
    last = len(ranks_of_parts) * length
    overrides = [f"run.max_steps={last}", "run.save_every=2", f"run.evaluate_every={last}", "run.log_every=1"]
    overrides += [f"run.precision={launched.FAST_PRECISION}", "lora.dropout=0.1", "batch.max_tokens=1400"]
    overrides += ["batch.loader_workers=1", "run.hang_timeout_sec=20", "run.epochs=1000", "run.monitors=[]"]
    straight, out, log = (tmp_path / name for name in ("straight", "out", "log"))
    counts = Counter()

    def finish(command, pausing, folder, end):
        """Run to the end of the part, whose checkpoint is there before the next step is logged."""
        with launched.started(command, log, pausing) as process:
            if end < last:
                launched.wait_for(process, folder / "metrics.jsonl", f'"step": {end + 1},', log)
            else:
                assert process.wait() == 0

    for part, num_ranks in enumerate(ranks_of_parts, 1):
        end, pausing = part * length, launched.pause(after_step=part * length + 1, until=tmp_path / "never")
        commands = {
            folder: launched.train_command(num_ranks, DEMO, model_folder, random_corpus.folder, folder, overrides)
            for folder in (out, straight)
        }
        while counts.total() < part * faults // len(ranks_of_parts) and newest_step(out) < end - 3:
            with launched.started(commands[out], log, pausing) as process:
                counts[disturb(chance, process, out, log, end)] += 1
            if chance.random() < 0.2:
                counts[damage_newest(chance, out, end - length)] += 1
        for folder, command in commands.items():
            finish(command, pausing, folder, end)
    print(f"seed {SEED}: {dict(counts)}")
    record_faults(record_property, counts)
    assert sorted(read_metrics(out)) == list(range(1, last + 1))
    for kind in ("train", "validation"):
        assert read_metrics(out, kind) == read_metrics(straight, kind)
    for name in ("adapter_model.safetensors", "optimizer.safetensors"):
        same = [(folder / "checkpoints" / f"step-{last:06d}" / name).read_bytes() for folder in (straight, out)]
        assert same[0] == same[1], name


def kill_after(command, chance, longest_sec):
    """Start the command and stop it in one way after a random time; what was done."""
    kind = chance.choice(["killed", "terminated", "Ctrl-C", "a worker is killed", "the disk is full"])
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        time.sleep(chance.uniform(0.3, 1.0) * longest_sec)
        workers = [each for each in launched.family(process) if process.poll() is None]
        if kind == "a worker is killed" and workers:
            chance.choice(workers).kill()
            time.sleep(chance.random())
        if kind == "the disk is full" and workers:
            fill_disk([psutil.Process(process.pid), *workers])
            time.sleep(longest_sec)
        process.send_signal({"terminated": signal.SIGTERM, "Ctrl-C": signal.SIGINT}.get(kind, signal.SIGKILL))
        process.wait()
        launched.wait_until_gone(workers)
    return kind


def damage_output(chance, out):
    """Spoil a file of an unfinished corpus while nothing runs."""
    files = [path for path in sorted(out.rglob("*")) if path.is_file() and path.suffix in (".tar", ".json")]
    if not files:
        return "no damage"
    path = chance.choice(files)
    kind = chance.choice(["cut", "changed", "lost"])
    if kind == "cut":
        os.truncate(path, path.stat().st_size // 2)
    elif kind == "changed":
        data = bytearray(path.read_bytes() or b" ")
        data[chance.randrange(len(data))] ^= 0x55
        path.write_bytes(data)
    elif path.name != "settings.json":  # a folder without one is nobody's
        path.unlink()
    return f"a {path.suffix} is {kind}"


@pytest.fixture(scope="module")
def ray_address():
    """Of a Ray cluster of one node with two cores, which outlives what is killed."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install --no-deps -r requirements-cluster.txt")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    yield cluster.address
    cluster.shutdown()


@pytest.mark.parametrize("short", SIZES)
def test_a_corpus_under_random_faults_is_the_undisturbed_one(
    short,
    tmp_path,
    short_folder,
    model_folder,
    codec_folder,
    hubert_folder,
    ray_address,
    monkeypatch,
    record_property,
):
    monkeypatch.setenv("RAY_ADDRESS", ray_address)
    chance, faults = random.Random(SEED), num_faults(short, 100)
    straight, out = tmp_path / "straight", tmp_path / "out"
    tools = {"model": model_folder, "audio_tokenizer": codec_folder, "hubert": hubert_folder, "workers": 2}
    given = {"manifest": short_folder / "corpus.jsonl", "hours_per_shard": 0.0003, "val_speakers": 1, **tools}

    def command(folder, **more):
        return [sys.executable, "-m", "preprocess.shard", *flags(out=folder, **given, **more)]

    begin = time.monotonic()
    subprocess.run(command(straight), cwd=ROOT, check=True, capture_output=True)
    longest_sec = time.monotonic() - begin
    counts = Counter()
    while counts.total() < faults:
        more = chance.choice([{}, {}, {"slice": "0/2"}, {"slice": "1/2"}, {"executor": "ray"}])
        kind = kill_after(command(out, **more), chance, longest_sec)
        counts[f"{kind} (Ray)" if "executor" in more else kind] += 1
        if chance.random() < 0.3:
            counts[damage_output(chance, out)] += 1
    print(f"seed {SEED}: {dict(counts)}")
    record_faults(record_property, counts)
    done = subprocess.run(command(out), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found, expected = folder_bytes(out), folder_bytes(straight)
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] != expected[name]] == []
    verify = [sys.executable, "-m", "preprocess.verify", str(out), "--model", str(model_folder)]
    assert subprocess.run(verify, cwd=ROOT, check=False).returncode == 0
