"""Ctrl-C in the commands that write nothing: one line, no traceback. (preprocess.shard at work: test_purity.)"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

from preprocess.common.record import write_record
from preprocess.corpus.shards import CORPUS_FILE, INDEX_FILE
from tests.preprocess.helpers import flags, write_jsonl


@contextlib.contextmanager
def begin(module: str, *arguments: str, **environment: str) -> Iterator[subprocess.Popen]:
    """The command in a process group of its own, of which nothing is left in the end."""
    command = [sys.executable, "-m", module, *arguments]
    environment = {**os.environ, **environment}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def test_a_stopped_look_at_the_headers_is_a_line(tmp_path, model_folder):
    """While ffprobe takes three seconds over each of 1,000 files: those it has begun are waited for, no others."""
    begun = tmp_path / "begun"
    (tmp_path / "ffprobe").write_text(f"#!/bin/sh\necho >> {begun}\nsleep 3\n")
    (tmp_path / "ffprobe").chmod(0o755)
    for number in range(1000):
        (tmp_path / f"{number}.m4a").write_bytes(b"\0\0\0\x18ftypM4A ")
    rows = [{"audio": f"{number}.m4a", "text": "نعم", "speaker": "s"} for number in range(1000)]
    arguments = flags(manifest=write_jsonl(tmp_path / "m.jsonl", rows), model=model_folder, validate_only=True)
    with begin("preprocess.shard", *arguments, PATH=f"{tmp_path}:{os.environ['PATH']}") as process:
        while not process.stdout.readline().startswith("screening"):
            assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate()
    assert process.returncode == 130
    assert not begun.exists() or len(begun.read_text()) < 1000
    assert said.splitlines()[-1] == "stopped"
    assert "Traceback" not in said


def test_a_stopped_verify_says_how_far_it_came(tmp_path, random_corpus):
    """While it waits for somebody to read its problems: 10,000 shards that are not there."""
    info = json.loads((random_corpus.folder / CORPUS_FILE).read_text())
    info["shards"] += [{**info["shards"][0], "name": f"shard-1{number:05d}.tar"} for number in range(10_000)]
    write_record(tmp_path / CORPUS_FILE, info)
    (tmp_path / INDEX_FILE).write_bytes((random_corpus.folder / INDEX_FILE).read_bytes())
    with begin("preprocess.verify", str(tmp_path)) as process:
        assert process.stdout.readline().startswith("problem")
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate()
    assert process.returncode == 130
    (line,) = said.splitlines()
    assert line.startswith("stopped; ")
    assert line.endswith(" problems so far")
