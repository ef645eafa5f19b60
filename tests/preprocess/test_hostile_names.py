"""Names and texts of strangers in whole commands: what is printed is our own lines, in which such names are shown."""

import contextlib
import json
import os
import random
import subprocess
import sys

import pytest

from tests.fixtures.steps import ROOT
from tests.preprocess.common.test_say import HOSTILE, shows_all
from tests.preprocess.helpers import flags

NAMES = [name for name in HOSTILE if "\0" not in name and "\udcff" not in name]  # no file system or JSON holds these


def hostile_manifest(short_folder, folder):
    """Rows of which the file, the key, the speaker or the text is hostile: good ones, and every kind of bad one."""
    plain = [json.loads(line) for line in (short_folder / "corpus.jsonl").read_text().splitlines()]
    rows = list(plain)
    for number, name in enumerate(NAMES):
        row = plain[number % len(plain)]
        audio = folder / f"{number}{name}.wav".replace("/", "")
        with contextlib.suppress(FileExistsError):
            os.link(short_folder / row["audio"], audio)
        rows.append(
            {**row, "audio": audio.name, "speaker": f"{row['speaker']}{name}", "text": f"{row['text']} {name}"}
        )
        rows.append({**row, "audio": f"gone{name}.wav"})
        rows.append({**row, "text": name, "reference": f"clip{name}"})
        rows.append({**row, "language": name, f"column{name}": 1})
    for row in rows:
        target = folder / row["audio"]
        if (short_folder / row["audio"]).is_file() and not target.exists():
            target.parent.mkdir(exist_ok=True)
            os.link(short_folder / row["audio"], target)
    random.Random(0).shuffle(rows)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (folder / "m.jsonl").write_text("\n".join([*lines, f'{{"audio": "{NAMES[0]}']) + "\n", encoding="utf-8")
    return folder / "m.jsonl"


@pytest.mark.long
def test_no_command_prints_a_stranger_s_name_as_it_is(
    short_folder, tmp_path, model_folder, codec_folder, hubert_folder
):
    manifest, out = hostile_manifest(short_folder, tmp_path), tmp_path / "shards"
    tools = {"model": model_folder, "audio_tokenizer": codec_folder, "hubert": hubert_folder}
    given = {"manifest": manifest, "out": out, "workers": 1, "max_failure_share": 1, "val_speakers": 1, **tools}
    commands = {
        "preview": ["preprocess.shard", *flags(**given, dry_run=True)],
        "shard": ["preprocess.shard", *flags(**given)],
        "verify": ["preprocess.verify", str(out), *flags(**tools, clips=2, audio_root=tmp_path)],
        "show": ["launch.show", str(out)],
        "no flag": ["preprocess.shard", *flags(manifest=f"{tmp_path}/{NAMES[0]}", out=out, **tools)],
    }
    for name, command in commands.items():
        done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, check=False)
        printed = (done.stdout + done.stderr).decode()
        assert done.returncode == (2 if name == "no flag" else 0), printed[-3000:]
        for line in printed.split("\n"):
            assert shows_all(line.replace("\r", "")), f"{name}: {line!r}"  # a bar returns to its line's begin
