"""The demo's folder and processes: an earlier demo stays until the new one is ready; nothing outlives the demo."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from launch.demo.__main__ import ROOT, main, parse_arguments
from launch.demo.folder import new_demo_folder
from preprocess.common.errors import InputError
from tests.fixtures import launched
from tests.preprocess.helpers import assert_parts, folder_bytes

# A demo of one command: it starts a process that hears no signal and one that its parent leaves behind.
SMALL_DEMO = """
import os, sys
from pathlib import Path
from launch.demo.family import run_family, run_in_own_process
from launch.demo.folder import new_demo_folder
from preprocess.common.errors import exit_on_input_error

STUBBORN = "import signal, time; [signal.signal(n, signal.SIG_IGN) for n in (2, 15)]; time.sleep(3600)"
COMMAND = f'''
import subprocess, sys, time
from pathlib import Path
subprocess.Popen([sys.executable, "-c", "{STUBBORN}"])
LEAVE = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]])"
subprocess.run([sys.executable, "-c", LEAVE, "{STUBBORN}"])
Path(sys.argv[1], "speech.wav").write_text("begun")
time.sleep(3600)
'''

def work():
    with new_demo_folder(Path(sys.argv[1])) as demo:
        demo.out.mkdir()
        run_family([sys.executable, "-c", COMMAND, str(demo.out)], dict(os.environ), False)

exit_on_input_error(lambda: run_in_own_process(work))
"""


@pytest.fixture
def earlier(tmp_path):
    """The folder of an earlier demo, and its bytes."""
    out = tmp_path / "demo"
    (out / "run").mkdir(parents=True)
    (out / "run" / "run.json").write_text("{}")
    (out / "speech.wav").write_text("earlier")
    return out, folder_bytes(out)


def wait_for_text(path, text, process):
    while not (path.is_file() and text in path.read_text()):
        assert process.poll() is None, f"ended before {path} had {text!r}"
        time.sleep(0.01)


def start_small_demo(out):
    process = subprocess.Popen([sys.executable, "-c", SMALL_DEMO, str(out)], cwd=ROOT, start_new_session=True)
    wait_for_text(out / "speech.wav", "begun", process)
    return process, launched.family(process)


def begin_and_fail(out):
    with new_demo_folder(out) as demo:
        assert not out.exists()
        demo.corpus.mkdir(parents=True)
        raise ZeroDivisionError


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_demo_that_is_stopped_leaves_the_earlier_one_and_no_process(earlier, number):
    out, before = earlier
    process, family = start_small_demo(out)
    assert len(family) >= 4, "the working process, its command, and the two that do not end by themselves"
    process.send_signal(number)
    code = process.wait()
    assert code == (-number if number == signal.SIGKILL else 128 + number)
    launched.wait_until_gone(family)
    assert folder_bytes(out) == before
    assert not out.with_name("demo.old").exists()


def test_a_demo_that_is_running_is_not_touched_by_another(earlier, capsys):
    out, _ = earlier
    process, family = start_small_demo(out)
    found = folder_bytes(out)
    other = subprocess.run(
        [sys.executable, "-c", SMALL_DEMO, str(out)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert other.returncode == 2
    assert f"error: {out}: found another demo that is running; expected one at a time" in other.stderr
    assert process.poll() is None
    assert folder_bytes(out) == found
    process.terminate()
    process.wait()
    launched.wait_until_gone(family)


def test_the_earlier_demo_goes_when_the_new_one_is_ready_and_stays_when_a_stage_fails(earlier, capsys):
    out, before = earlier
    with pytest.raises(ZeroDivisionError):
        begin_and_fail(out)
    assert folder_bytes(out) == before
    assert f"{out}: the earlier demo, as it was" in capsys.readouterr().out
    with new_demo_folder(out) as demo:
        demo.corpus.mkdir(parents=True)
        (demo.corpus / "corpus.jsonl").write_text("new")
    assert folder_bytes(out).keys() == {"corpus/corpus.jsonl"}
    assert sorted(path.name for path in out.parent.iterdir()) == [".demo.lock", "demo"]


def test_after_a_demo_that_was_killed_with_its_children_the_earlier_one_still_counts(earlier):
    out, before = earlier
    out.rename(out.with_name("demo.old"))
    (out / "corpus").mkdir(parents=True)
    with pytest.raises(ZeroDivisionError):
        begin_and_fail(out)
    assert folder_bytes(out) == before


def test_a_folder_with_something_else_in_it_is_refused(earlier, capsys):
    out, _ = earlier
    (out / "thesis.tex").write_text("years of work")
    before = folder_bytes(out)
    with pytest.raises(InputError) as caught, new_demo_folder(out):
        pass
    assert_parts(caught.value, str(out), "thesis.tex", "an earlier demo", "Move it away")
    assert folder_bytes(out) == before
    for folder in (ROOT, ROOT.parent):
        with pytest.raises(InputError, match="a folder for the demo alone"):
            main(["--out", str(folder)])


def test_a_relative_folder_is_where_one_stands_and_none_is_in_the_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse_arguments(["--out", "mine"]).out == tmp_path / "mine"
    assert str(parse_arguments([]).out) == "demo"


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_real_demo_killed_while_it_trains_leaves_nothing(earlier, tmp_path, number):
    out, before = earlier
    command = [sys.executable, "-m", "launch.demo", "--out", str(out)]
    with launched.started(command, tmp_path / "log") as process:
        launched.wait_for(process, out / "run" / "metrics.jsonl", '"step": 10', tmp_path / "log")
        family = launched.family(process)
        assert sum("launch/train.py" in member.cmdline() for member in family) >= 2
        os.kill(process.pid, number)
        process.wait()
        print(f"all gone after {launched.wait_until_gone(family):.1f} s")
        assert not [p for p in psutil.process_iter(["cmdline"]) if str(out) in " ".join(p.info["cmdline"] or [])]
    assert folder_bytes(out) == before
