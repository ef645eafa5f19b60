"""Random faults over one training and over one corpus, relaunched until done: the result is that of no fault at all.

make test-soak          30 faults in training and 100 in preprocessing; some 40 minutes on two cores
SOAK_FAULTS=5 SOAK_SEED=7 make test-soak
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from tests.fixtures import launched
from tests.fixtures.steps import ROOT
from tests.preprocess.helpers import flags, folder_bytes
from tests.test_launch import DEMO, read_metrics

SEED = int(os.environ.get("SOAK_SEED", "0"))
SIZES = [pytest.param(None, marks=pytest.mark.soak), pytest.param(2, marks=pytest.mark.long)]


def num_faults(short: int | None, usual: int) -> int:
    return short or int(os.environ.get("SOAK_FAULTS", usual))


def signal_rank(number):
    return lambda chance, process, launch, ranks: os.kill(chance.choice(ranks).pid, number)


def signal_worker(chance, process, launch, ranks):
    workers = [each for rank in ranks for each in rank.children()]
    os.kill(chance.choice(workers).pid, signal.SIGKILL)


TRAINING_FAULTS = {
    "a rank is killed": signal_rank(signal.SIGKILL),
    "a rank is terminated": signal_rank(signal.SIGTERM),
    "a rank is stopped": signal_rank(signal.SIGSTOP),
    "a loader worker is killed": signal_worker,
    "the runner is killed": lambda chance, process, launch, ranks: os.kill(process.pid, signal.SIGKILL),
    "launch.py is killed": lambda chance, process, launch, ranks: os.kill(launch.pid, signal.SIGKILL),
    "Ctrl-C": lambda chance, process, launch, ranks: os.killpg(process.pid, signal.SIGINT),
    "all are killed": lambda chance, process, launch, ranks: os.killpg(process.pid, signal.SIGKILL),
}


def damage_newest(chance, out):
    """Spoil the newest checkpoint while nothing runs, where there is another one."""
    steps = sorted((out / "checkpoints").glob("step-*"), key=lambda path: int(path.name[5:]))
    if len(steps) < 2 or (out / "checkpoints" / "best").resolve() == steps[-2]:
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


@pytest.mark.parametrize("short", SIZES)
def test_a_training_under_random_faults_is_the_undisturbed_one(short, tmp_path, model_folder, random_corpus):
    chance, faults = random.Random(SEED), num_faults(short, 30)
    last = 4 * faults + 2
    overrides = [f"run.max_steps={last}", "run.save_every=2", f"run.evaluate_every={last}", "run.log_every=1"]
    overrides += [f"run.precision={launched.FAST_PRECISION}", "lora.dropout=0.1", "batch.max_tokens=1400"]
    overrides += ["batch.loader_workers=1", "run.hang_timeout_sec=20", "run.epochs=1000", "run.monitors=[]"]
    straight, out, log = (tmp_path / name for name in ("straight", "out", "log"))

    def command(folder):
        return launched.train_command(2, DEMO, model_folder, random_corpus.folder, folder, overrides)

    counts = Counter()
    while counts.total() < faults:
        logged = max(read_metrics(out), default=0) if (out / "metrics.jsonl").is_file() else 0
        if logged >= last - 3:
            break
        with launched.started(command(out), log) as process:
            launched.wait_for(process, out / "metrics.jsonl", f'"step": {logged + chance.randint(1, 3)},', log)
            launch, *others = launched.family(process)
            ranks = [each for each in others if each.ppid() == launch.pid]
            name = chance.choice(sorted(TRAINING_FAULTS))
            time.sleep(chance.random() / 4)
            TRAINING_FAULTS[name](chance, process, launch, ranks)
            counts[name] += 1
            process.wait()
            if name != "all are killed":  # those that live on see it and end
                launched.wait_until_gone([launch, *ranks])
        if chance.random() < 0.2:
            counts[damage_newest(chance, out)] += 1
    print(f"seed {SEED}: {dict(counts)}")
    for folder in (out, straight):
        done = launched.run(command(folder))
        assert done.returncode == 0, done.stdout[-3000:]
    assert sorted(read_metrics(out)) == list(range(1, last + 1))
    for kind in ("train", "validation"):
        assert read_metrics(out, kind) == read_metrics(straight, kind)
    for name in ("adapter_model.safetensors", "optimizer.safetensors"):
        same = [(folder / "checkpoints" / f"step-{last:06d}" / name).read_bytes() for folder in (straight, out)]
        assert same[0] == same[1], name


def kill_after(command, chance, longest_sec):
    """Start the command and stop it in one way after a random time; what was done."""
    kind = chance.choice(["killed", "terminated", "Ctrl-C", "a worker is killed"])
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        time.sleep(chance.uniform(0.3, 1.0) * longest_sec)
        workers = [each for each in launched.family(process) if process.poll() is None]
        if kind == "a worker is killed" and workers:
            chance.choice(workers).kill()
            time.sleep(chance.random())
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


@pytest.mark.parametrize("short", SIZES)
def test_a_corpus_under_random_faults_is_the_undisturbed_one(
    short, tmp_path, short_folder, model_folder, codec_folder, hubert_folder
):
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
        more = chance.choice([{}, {}, {"slice": "0/2"}, {"slice": "1/2"}])
        counts[kill_after(command(out, **more), chance, longest_sec)] += 1
        if chance.random() < 0.3:
            counts[damage_output(chance, out)] += 1
    print(f"seed {SEED}: {dict(counts)}")
    done = subprocess.run(command(out), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found, expected = folder_bytes(out), folder_bytes(straight)
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] != expected[name]] == []
    verify = [sys.executable, "-m", "preprocess.verify", str(out), "--model", str(model_folder)]
    assert subprocess.run(verify, cwd=ROOT, check=False).returncode == 0
