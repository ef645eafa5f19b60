"""Every command answers --help fast and harmlessly, and refuses what it does not know before it does anything.

The commands are found, not listed: each module of the product that runs as a program is one.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {
    "torch",
    "numpy",
    "pyarrow",
    "deepspeed",
    "transformers",
    "boson_multimodal.model",
    "boson_multimodal.dataset",
}

# Runs a command several times in one fresh process, as `python -m` or `python FILE` would, and tells what happened.
RUN_AS_PROGRAM = """
import contextlib, io, json, runpy, sys
file, *command_lines = json.load(sys.stdin)
found = []
for words in command_lines:
    out, err = io.StringIO(), io.StringIO()
    sys.argv = [file, *words]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = runpy.run_path(file, run_name="__main__") and None
        except SystemExit as stop:
            code = stop.code or 0
    found.append([code, out.getvalue(), err.getvalue(), sorted({name.split(".")[0] for name in sys.modules})])
print(json.dumps(found))
"""


def doors() -> dict[str, Path]:
    """{name: file} of each module of the product that has a `__main__` part: what comes after `python -m`."""
    found = {}
    for path in (path for package in ("preprocess", "engine", "launch") for path in (ROOT / package).rglob("*.py")):
        if '__name__ == "__main__"' in path.read_text(encoding="utf-8"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__main__" else parts)] = path
    return found


def run(file: Path, cwd: Path, *command_lines: list[str]) -> list[list]:
    """(exit code, stdout, stderr, modules loaded so far) of each command line."""
    home = cwd.parent / "home"
    home.mkdir(exist_ok=True)
    home.chmod(0o555)
    environment = {**os.environ, "HOME": str(home), "COLUMNS": "2000", "PYTHONPATH": str(ROOT)}
    for name in ("RANK", "WORLD_SIZE"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", RUN_AS_PROGRAM],
        input=json.dumps([str(file), *command_lines]),
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert list(cwd.iterdir()) == list(home.iterdir()) == [], "a command line that does nothing wrote a file"
    return json.loads(done.stdout)


def needed(text: str) -> list[str]:
    """Of a help text: the flags of the group `needed`, and the positional arguments that usage shows unbracketed."""
    group = re.search(r"^needed:\n((?:  .*\n)+)", text, re.MULTILINE)
    flags = re.findall(r"^  (--[a-z-]+)", group[1], re.MULTILINE) if group else []
    usage = re.sub(r"\[.*?\]", "", text.partition("\n")[0])
    return flags + re.findall(r"(?<!-)\b[A-Z]+\b", usage)


def example(text: str) -> list[str]:
    """The arguments of the example at the end of a help text."""
    command = text[text.rindex("example:") :].partition(":")[2].replace("\\\n", " ")
    words = shlex.split(command)
    program = next(place for place, word in enumerate(words) if word in ("-m", "launch/train.py"))
    return words[program + 1 + (words[program] == "-m") :]


@pytest.mark.parametrize("name", doors())
def test_a_door_answers_help_at_once_and_refuses_what_it_does_not_know(name, tmp_path):
    file, cwd = doors()[name], tmp_path / "cwd"
    cwd.mkdir()
    code, text, errors, modules = run(file, cwd, ["--help"])[0]
    assert (code, errors) == (0, "")
    assert text.startswith("usage: ")
    assert HEAVY.intersection(modules) == set()
    options = re.findall(r"^  ((?:-|[A-Z]+\b|\S+=).*(?:\n {10,}.*)*)$", text, re.MULTILINE)
    assert len(options) >= 2
    assert [lines for lines in options if not re.search(r"\S\s\s+\S", lines)] == [], "a flag that nobody explains"

    given = example(text)
    flag = max(re.findall(r"^  (?:-\w, )?(--[a-z-]+)", text, re.MULTILINE), key=len)
    unknown, shortened, *nothing = run(
        file, cwd, [*given, "--no-such-flag"], [*given, f"{flag[:-1]}=1"], *([[]] if needed(text) else [])
    )
    for (code, said, errors, _), word in ((unknown, "--no-such-flag"), (shortened, f"{flag[:-1]}=1")):
        assert (code, said) == (2, "")
        assert f"unrecognized arguments: {word}" in errors
    for code, said, errors, _ in nothing:
        assert (code, said) == (2, "")
        line = errors[errors.index("error: ") :].partition("expected")[0]
        assert [word for word in needed(text) if word not in line] == []


def test_the_doors_are_found_and_what_they_need():
    assert doors().keys() >= {"preprocess.shard", "launch.train", "launch.merge", "launch.demo"}
    text = "usage: x [-h] [--lines N] RUN [KEY]\n\nneeded:\n  --out F  where\n\noptions:\n  -h\n"
    assert needed(text) == ["--out", "RUN"]
