"""The same manifest makes the same bytes: with any number of workers, anywhere, and after any kill."""

import faulthandler
import functools
import os
import random
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing import Process, get_context
from pathlib import Path

import numpy as np
import pytest
import soundfile

import preprocess.encode.run
import preprocess.plan.shard_specs
from preprocess.audio.recording import Recording
from preprocess.common.errors import exit_on_input_error, stop_on_signals
from preprocess.corpus.shards import Corpus
from preprocess.encode.local_pool import run_local
from tests.preprocess.helpers import assert_parts, failures, flags, folder_bytes, refused, shard, write_jsonl

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


def start(out: Path, given: dict, before: Callable[[], None] = lambda: None) -> Process:
    """The command with one worker, in a process group of its own; forked from here, so that nothing is imported.

    `before` runs in the new process first.
    """

    def run() -> None:
        os.setsid()
        before()
        sys.exit(shard(out=out, workers=1, **given))

    process = get_context("fork").Process(target=run)
    process.start()
    return process


def start_command(out: Path, given: dict, said: Path) -> Process:
    """The same as on a command line, waiting in its second shard; what it writes to stderr goes to `said`."""

    def run() -> None:
        os.setsid()
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), 2)
        sys.stderr = os.fdopen(2, "w")
        wait_in_the_second_shard(out)
        stop_on_signals()
        exit_on_input_error(lambda: shard(out=out, workers=1, **given))

    process = get_context("fork").Process(target=run)
    process.start()
    return process


def wait_in_the_second_shard(out: Path) -> None:
    """Let this process, and those forked from it, never come to the end of a second shard."""
    decode = Recording.decode
    Recording.decode = lambda self: time.sleep(10_000) if finished_shards(out) else decode(self)


def wait_for(condition, process: Process) -> None:
    while not condition():
        assert process.is_alive(), "it ended before it could be killed"
        time.sleep(0.005)


def finished_shards(out: Path) -> list[Path]:
    return sorted((out / "fragments").glob("*.json")) if (out / "fragments").is_dir() else []


def children(process: Process) -> list[int]:
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in path.read_text().split()] if path.exists() else []


def test_same_bytes_with_one_and_three_workers(tmp_path, given, expected):
    assert shard(out=tmp_path / "out", workers=3, **given) == 0
    assert folder_bytes(tmp_path / "out") == expected


def test_same_bytes_where_threads_read_ahead_of_the_encoder(tmp_path, given, expected, monkeypatch):
    """As they do with --device cuda, here on the CPU."""
    began = []
    decode = Recording.decode
    monkeypatch.setattr(preprocess.plan.shard_specs, "_num_readers", lambda args, clips: 3)
    monkeypatch.setattr(
        Recording, "decode", lambda self: (began.append(threading.current_thread().name), decode(self))[1]
    )
    monkeypatch.setattr(
        preprocess.encode.run,
        "run_local",
        lambda work, jobs, *_: ((number, work(job, lambda sec: None)) for number, job in enumerate(jobs)),
    )
    assert shard(out=tmp_path / "out", workers=1, **given) == 0
    assert folder_bytes(tmp_path / "out") == expected
    assert len(began) == 8
    assert all(name.startswith("ThreadPoolExecutor") for name in began)


def test_a_worker_that_dies_while_it_reads_ahead_costs_the_very_clip(tmp_path, given, expected, monkeypatch):
    """The second clip of a shard ends the worker, while the first is in work; the next try reads none ahead."""
    out, die = tmp_path / "out", DEATHS["segfaults"][0]
    decode = Recording.decode
    with monkeypatch.context() as patch:
        patch.setattr(preprocess.plan.shard_specs, "_num_readers", lambda args, clips: 3)
        patch.setattr(Recording, "decode", lambda self: die() if "salma/001" in str(self) else decode(self))
        assert shard(out=out, workers=2, **given) == 0
    _, of_clip = failures(out)
    assert_parts(of_clip, "salma/001.wav", "2 workers that died over this clip", "decoded", "same command again")
    assert shard(out=out, workers=1, **given) == 0
    assert folder_bytes(out) == expected


def test_same_bytes_under_another_hash_seed_from_another_working_directory(tmp_path, given, expected):
    """With relative paths."""
    given = {n: os.path.relpath(v, tmp_path) if isinstance(v, Path) else v for n, v in given.items()}
    command = [sys.executable, "-m", "preprocess.shard", *flags(out="out", workers=1, **given)]
    subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": "1"}, cwd=tmp_path, check=True)
    assert folder_bytes(tmp_path / "out") == expected


def test_same_bytes_after_a_kill_of_the_whole_group_in_mid_shard(tmp_path, given, expected):
    out = tmp_path / "out"
    process = start(out, given, before=lambda: wait_in_the_second_shard(out))
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


@pytest.mark.parametrize(
    ("number", "send", "exit_code"),
    [
        pytest.param(signal.SIGINT, os.killpg, 130, id="Ctrl-C"),
        pytest.param(signal.SIGTERM, os.killpg, 143, id="SIGTERM to the group"),
        pytest.param(signal.SIGTERM, os.kill, 143, id="SIGTERM"),
    ],
)
def test_a_stopped_run_says_what_is_kept_leaves_nothing_half_done_and_continues(
    number, send, exit_code, tmp_path, given, expected
):
    out, said = tmp_path / "out", tmp_path / "said"
    process = start_command(out, given, said)
    wait_for(lambda: finished_shards(out), process)
    workers = children(process)
    send(process.pid, number)
    process.join()
    kept = finished_shards(out)
    assert process.exitcode == exit_code
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers), "a worker outlived the command"
    assert 0 < len(kept) < NUM_SHARDS
    assert not [path for path in out.rglob(".*") if path.name != ".begin.lock"]
    *_, last = said.read_text().splitlines()
    # A shard that a worker finished in the same moment was not heard of.
    shown = re.fullmatch(r"stopped; (\d) of 4 shards are done and kept; run the same command again to continue", last)
    assert int(shown[1]) in (len(kept) - 1, len(kept))
    assert "Traceback" not in said.read_text()

    times = [path.stat().st_mtime_ns for path in kept]
    assert shard(out=out, workers=1, **given) == 0
    assert folder_bytes(out) == expected
    assert [path.stat().st_mtime_ns for path in kept] == times


def test_a_run_on_a_finished_folder_changes_nothing(tmp_path, given, expected, capsys):
    out = tmp_path / "out"
    for name, data in expected.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(data)
    assert shard(out=out, workers=2, **given) == 0
    assert f"{NUM_SHARDS} of {NUM_SHARDS} shards are finished already" in capsys.readouterr().out
    assert folder_bytes(out) == expected


TAR, FRAGMENT, SETTINGS = "shard-000001.tar", "fragments/shard-000001.json", "settings.json"
DAMAGES = {
    "tar is gone": (TAR, None),
    "tar is cut": (TAR, lambda data: data[:-512]),
    "a bit of the tar is another": (TAR, lambda data: data[:3000] + bytes([data[3000] ^ 1]) + data[3001:]),
    "fragment is gone": (FRAGMENT, None),
    "fragment is cut": (FRAGMENT, lambda data: data[: len(data) // 2]),
    "fragment is empty": (FRAGMENT, lambda data: b""),
    "fragment names another speaker": (FRAGMENT, lambda data: data.replace(b'"speaker": "', b'"speaker": "x')),
    "settings are cut": (SETTINGS, lambda data: data[: len(data) // 2]),
    "settings are empty": (SETTINGS, lambda data: b""),
    "settings are other ones": (SETTINGS, lambda data: data.replace(b'"seed": 0', b'"seed": 1')),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_made_again(damage, tmp_path, given, expected):
    out, (changed, change) = tmp_path / "out", DAMAGES[damage]
    for name, data in expected.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(data)
    if change:
        assert change(expected[changed]) != expected[changed]
        (out / changed).write_bytes(change(expected[changed]))
    else:
        (out / changed).unlink()
    assert shard(out=out, workers=1, **given) == 0
    assert folder_bytes(out) == expected


def segfault() -> None:
    faulthandler.disable()  # pytest's, which prints a traceback that looks like a failure
    os.kill(os.getpid(), signal.SIGSEGV)


DEATHS = {
    "segfaults": (segfault, "exit code -11"),
    "is killed for memory": (lambda: os.kill(os.getpid(), signal.SIGKILL), "exit code -9"),
    "hangs": (lambda: time.sleep(600), "no sign of life for 10 s"),
}


@pytest.mark.parametrize("death", DEATHS)
def test_a_worker_that_dies_over_a_clip_costs_that_clip_and_the_next_run_mends_it(
    death, tmp_path, given, expected, monkeypatch
):
    out, (die, how) = tmp_path / "out", DEATHS[death]
    with monkeypatch.context() as patch:
        decode = Recording.decode
        patch.setattr(Recording, "decode", lambda self: die() if "salma/001" in str(self) else decode(self))
        patch.setattr(preprocess.encode.run, "run_local", functools.partial(run_local, max_silence_sec=10))
        assert shard(out=out, workers=2, **given) == 0
    corpus = Corpus(out)
    assert corpus.info["clips"] == {"written": 7, "screened": 0, "failed": 1}
    assert corpus.info["rows"] == {"written": 7, "merged": 0, "screened": 0, "failed": 1}
    of_row, of_clip = failures(out)
    assert (of_row["reason"], of_clip["reason"]) == ("worker_died", "worker_died")
    assert_parts(
        of_clip, "salma/001.wav", f"2 workers that died over this clip ({how})", "decoded", "same command again"
    )

    assert shard(out=out, workers=1, **given) == 0
    assert folder_bytes(out) == expected


def test_workers_that_die_before_any_clip_cost_their_shard(tmp_path, given, expected):
    """The first shard's worker is killed in both tries, as it starts; the command goes on."""
    out, killed_twice, begun = tmp_path / "out", tmp_path / "killed_twice", tmp_path / "begun"
    begun.mkdir()

    def make_none_before() -> None:
        make_shard = preprocess.encode.run.make_shard

        def wait_and_make(spec, progress):
            (begun / str(os.getpid())).touch()
            while not killed_twice.exists():
                time.sleep(0.01)
            return make_shard(spec, progress)

        preprocess.encode.run.make_shard = wait_and_make

    process = start(out, given, before=make_none_before)
    for tries in (1, 2):
        wait_for(lambda tries=tries: len(list(begun.iterdir())) == tries, process)
        (pid,) = children(process)
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda pid=pid: pid not in children(process), process)
    killed_twice.touch()
    process.join()
    assert process.exitcode == 0
    assert Corpus(out).info["rows"]["failed"] == 2
    assert shard(out=out, workers=1, **given) == 0
    assert folder_bytes(out) == expected


def test_a_full_disk_stops_with_a_message_and_no_half_file_under_a_final_name(tmp_path, given, expected):
    out = tmp_path / "out"

    def run():
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
        error = refused(out=out, workers=1, **given)
        assert_parts(error, str(out), "file too large", "with free space", "the same command goes on")

    process = get_context("fork").Process(target=run)
    process.start()
    process.join()
    assert process.exitcode == 0
    assert not list(out.glob("shard-*.tar"))
    assert not (out / "corpus.json").exists()
    assert shard(out=out, workers=1, **given) == 0
    assert folder_bytes(out) == expected


@pytest.mark.parametrize("out", ["/sys/shards", "/" + 300 * "x"])
def test_an_output_folder_that_can_not_be_written_is_refused(out, given):
    error = refused(out=out, workers=1, **given)
    assert_parts(error, out, "", "can be written", "another --out")


def test_too_many_failures_stop_the_run_early_and_tell_what_they_have_in_common(tmp_path, given):
    tools = {name: value for name, value in given.items() if name != "manifest"}
    rows = [{"audio": f"wrong/{n}.wav", "text": "one", "speaker": "s"} for n in range(250)]
    manifest = write_jsonl(tmp_path / "missing.jsonl", rows)
    error = refused(manifest=manifest, out=tmp_path / "out", workers=1, **tools)
    assert_parts(
        error, "headers", f"250 of 250 failed so far (100%): missing_file 250x; 250 in {tmp_path}/wrong", "5%", ""
    )
    assert not (tmp_path / "out").exists()


def test_failures_while_encoding_stop_the_run_and_a_larger_budget_lets_it_go_on(tmp_path, given):
    tools = {name: value for name, value in given.items() if name != "manifest"}
    time_axis = np.arange(16000)
    good = tmp_path / "good.flac"
    soundfile.write(good, 0.3 * np.sin(time_axis * 0.05 * (1 + time_axis / 16000)), 16000)
    broken = good.read_bytes()[:-3000]
    for number in range(230):
        (tmp_path / f"{number:03d}.flac").write_bytes(broken + bytes([number]))
    rows = [{"audio": f"{n:03d}.flac", "text": "one", "speaker": f"s{n}"} for n in range(230)]
    rows += [{"audio": "good.flac", "text": "two", "speaker": "good"}]
    manifest = write_jsonl(tmp_path / "broken.jsonl", rows)
    error = refused(manifest=manifest, out=tmp_path / "out", workers=1, **tools)
    assert_parts(error, "encoding", "with .flac", "--max-failure-share", "what is finished is kept")
    assert shard(manifest=manifest, out=tmp_path / "out", workers=1, max_failure_share=1, **tools) == 0
    assert Corpus(tmp_path / "out").info["rows"] == {"written": 1, "merged": 0, "screened": 0, "failed": 230}


@pytest.mark.long
@pytest.mark.parametrize("seed", range(25))
def test_four_kills_at_random_moments_leave_no_trace(seed, tmp_path, given, expected):
    """25 x 4 = 100 times kill -9 of a worker, the parent or the whole group; then a run to the end."""
    out, rng = tmp_path / "out", random.Random(seed)
    for _ in range(4):
        process = start(out, given)
        time.sleep(rng.uniform(0.0, 0.7))
        victim = rng.choice(["worker", "parent", "group"])
        if victim == "worker":
            for pid in children(process):
                os.kill(pid, signal.SIGKILL)
        elif process.is_alive():
            (os.kill if victim == "parent" else os.killpg)(process.pid, signal.SIGKILL)
        process.join()
    assert shard(out=out, workers=2, **given) == 0
    assert folder_bytes(out) == expected
