"""A name that no file can have, wherever a command takes one, is an error of one line."""

import subprocess
import sys

import pytest

from tests.fixtures.steps import ROOT

LONG = "n" * 300
COMMANDS = {
    "merge": ["launch.merge", "--checkpoint", LONG, "--out", "out"],
    "merge into": ["launch.merge", "--checkpoint", ".", "--base", ".", "--out", LONG],
    "show": ["launch.show", LONG],
    "verify": ["preprocess.verify", LONG],
    "stop": ["launch.stop", LONG],
    "generate": [
        *f"launch.generate --model {LONG} --audio-tokenizer {LONG} --hubert {LONG} --reference {LONG}".split(),
        *f"--reference-text a --text b --out {LONG}".split(),
    ],
    "shard": f"preprocess.shard --manifest {LONG} --model {LONG} --validate-only".split(),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_name_that_is_too_long_is_one_line(name, tmp_path):
    command = [sys.executable, "-m", *COMMANDS[name]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "file name too long" in line
