"""A manifest can't name recordings outside --audio-root: one error says so, and which flag reads them."""

import json
import os
import shlex
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocess.audio.recording import Recording
from preprocess.common.errors import InputError
from preprocess.corpus.dialogue import DEFAULT_SYSTEM_TEXT
from preprocess.manifest.columns import Row
from preprocess.manifest.read import Manifest, read_manifest
from preprocess.plan.clips import build_clips
from preprocess.plan.outside import refuse_outside
from tests.preprocess.helpers import assert_parts, refused, shard, write_jsonl

PREVIEW = {"dry_run": True, "val_speakers": 0}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A root with recordings and links, and files that lie beside it."""
    top = Path(os.path.realpath(tmp_path_factory.mktemp("tree")))
    for name in ("root/a.wav", "root/in/b.wav", "beside/c.wav", "beside/deep/d.wav", "root2/e.wav"):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(b"RIFF")
    (top / "root/inner").symlink_to(top / "root/in")
    (top / "root/outer").symlink_to(top / "beside")
    (top / "root/link.wav").symlink_to(top / "beside/c.wav")
    (top / "root/same.wav").symlink_to("a.wav")
    (top / "alias").symlink_to(top / "root")
    return top


STEPS = ["root", "in", "inner", "outer", "deep", "beside", "root2", "alias", "..", ".", "none"]
FILES = ["a.wav", "b.wav", "c.wav", "d.wav", "e.wav", "link.wav", "same.wav", "gone.wav"]


@st.composite
def paths(draw, tree):
    steps = "/".join([*draw(st.lists(st.sampled_from(STEPS), max_size=4)), draw(st.sampled_from(FILES))])
    return f"{tree}/{steps}" if draw(st.booleans()) else steps


@given(data=st.data())
@settings(deadline=None, max_examples=300)
def test_whatever_resolves_outside_the_root_is_refused_and_nothing_else_is(data, tree):
    root = data.draw(st.sampled_from([tree / "root", tree / "alias", tree]))
    given_paths = data.draw(st.lists(paths(tree), min_size=1, max_size=4, unique=True))
    rows = [Row(number, Recording(path), f"صباح {number}", "s") for number, path in enumerate(given_paths, 1)]
    manifest = Manifest(tree / "root" / "m.jsonl", rows)
    table = build_clips(manifest, root)
    opened = [Path(os.path.normpath(root / path)).resolve() for path in given_paths]
    outside = {path for path in opened if not path.is_relative_to(root.resolve())}
    if not outside:
        refuse_outside(manifest, table, [root])
        return
    with pytest.raises(InputError) as caught:
        refuse_outside(manifest, table, [root])
    assert "--allow-outside" in caught.value.action
    if "--audio-root" in caught.value.action:  # then it reads all of them
        words = shlex.split(caught.value.action)
        better = Path(words[words.index("--audio-root") + 1].removesuffix(","))
        refuse_outside(manifest, build_clips(manifest, better), [better])


def kaldi(folder, audio):
    (folder / "wav.scp").write_text("".join(f"{path.stem} {path}\n" for path in audio))
    (folder / "text").write_text("".join(f"{path.stem} صباح {path.stem}\n" for path in audio))
    (folder / "utt2spk").write_text("".join(f"{path.stem} voice\n" for path in audio))
    return folder


def nemo(folder, audio):
    rows = [{"audio_filepath": str(p), "text": f"صباح {p.stem}", "duration": 1.0, "speaker": "v"} for p in audio]
    return write_jsonl(folder / "m.json", rows)


def csv(folder, audio):
    path = folder / "m.csv"
    path.write_text("audio,text,speaker\n" + "".join(f"{p},صباح {p.stem},v\n" for p in audio))
    return path


def chatml(folder, audio):
    def turn(role, path):
        return {
            "role": role,
            "content": [{"type": "text", "text": "صباح"}, {"type": "audio", "audio_url": str(path)}],
        }

    return write_jsonl(folder / "m.jsonl", [{"messages": [turn("user", audio[0]), turn("assistant", audio[1])]}])


@pytest.mark.parametrize("write", [kaldi, nemo, csv, chatml])
def test_absolute_paths_need_the_audio_root_that_the_error_names(
    write, speech_folder, model_folder, tmp_path, capsys
):
    lists = tmp_path / "lists"
    lists.mkdir()
    rooms = [tmp_path / "my audio" / name for name in ("one", "two")]
    audio = []
    for room, source in zip(rooms, sorted(speech_folder.rglob("*.wav")), strict=False):
        room.mkdir(parents=True)
        audio.append(Path(shutil.copy(source, room / f"{room.name}.wav")))
    manifest = write(lists, audio)
    for preview in ("dry_run", "validate_only"):
        error = refused(manifest=manifest, model=model_folder, val_speakers=0, **{preview: True})
        assert_parts(error, "", "and 2 of 2 recordings in all", f"recordings under {lists}", "--allow-out")
        assert f"Add --audio-root '{tmp_path / 'my audio'}'" in error.action
    assert shard(manifest=manifest, model=model_folder, audio_root=tmp_path / "my audio", **PREVIEW) == 0
    assert shard(manifest=manifest, model=model_folder, allow_outside=True, **PREVIEW) == 0


def test_a_relative_path_that_leaves_the_root_is_refused_with_the_flag_alone(model_folder, tmp_path):
    (tmp_path / "lists").mkdir()
    rows = [{"audio": "../x.wav", "text": "صباح", "speaker": "v"}, {"audio": "y.wav", "text": "نعم", "speaker": "v"}]
    error = refused(manifest=write_jsonl(tmp_path / "lists" / "m.jsonl", rows), model=model_folder, **PREVIEW)
    assert_parts(error, "m.jsonl line 1", "1 of 2 recordings", "recordings under", "Add --allow-outside to read")


def test_a_transcript_file_is_read_beside_its_manifest_alone(tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "link.txt").symlink_to(secret)
    os.mkfifo(folder / "pipe.txt")
    (folder / "own.txt").write_text("صباح الخير")
    names = ["own.txt", str(secret), "../secret.txt", "link.txt", "pipe.txt", "/dev/zero", "a\0b", ".", ""]
    samples = [{"audio_file": f"{n}.wav", "transcript_file": name, "speaker_id": "v"} for n, name in enumerate(names)]
    (folder / "metadata.json").write_text(json.dumps({"samples": samples}))
    manifest = read_manifest(folder, (), DEFAULT_SYSTEM_TEXT)
    assert [row.text for row in manifest.rows] == ["صباح الخير"]
    assert len(manifest.rejected) == len(names) - 1
    for _, error in manifest.rejected:
        assert_parts(error, "metadata.json sample", "no file under the manifest's folder", "UTF-8", "transcript_file")
