"""Audio that is not where its row says: found in another Unicode form, or named with what is there and what to do."""

import shutil
import unicodedata

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preprocess.audio.recording import Recording
from preprocess.common.errors import Rejected
from preprocess.corpus.dialogue import DEFAULT_SYSTEM_TEXT
from preprocess.corpus.shards import Corpus
from preprocess.encode.probe import probe_clips
from preprocess.manifest.read import read_manifest
from preprocess.plan.clips import build_clips
from preprocess.plan.respelled_names import find_on_disk
from preprocess.verify import main as verify
from tests.preprocess.helpers import assert_parts, flags, row_failure, shard, write_jsonl

# Arabic, Vietnamese and French: each has letters that NFD takes apart.
FOLDER, NAME = "أحمد Nguyễn", "Mélodie 000.wav"


def problems(folder, *names):
    """Why each of these audios is not found, by name."""
    rows = [{"audio": name, "text": "نعم", "speaker": "s"} for name in names]
    return problems_of(write_jsonl(folder / "m.jsonl", rows))


def problems_of(path):
    table = build_clips(read_manifest(path, [], DEFAULT_SYSTEM_TEXT), path.parent)
    headers, rejected = probe_clips(table.clips.values(), 2)
    return {table.clips[key].source: error for key, error in rejected.items()}


@pytest.mark.parametrize(("on_the_disk", "in_the_manifest"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_a_file_in_another_unicode_form_is_the_file(
    on_the_disk, in_the_manifest, tmp_path, short_folder, model_folder, codec_folder, hubert_folder, capsys
):
    folder = tmp_path / unicodedata.normalize(on_the_disk, FOLDER)
    folder.mkdir()
    shutil.copy(short_folder / "salma/000.wav", folder / unicodedata.normalize(on_the_disk, NAME))
    source = unicodedata.normalize(in_the_manifest, f"{FOLDER}/{NAME}")
    assert not (tmp_path / source).exists()
    manifest = write_jsonl(tmp_path / "m.jsonl", [{"audio": source, "text": "نعم", "speaker": "s"}])
    tools = {"model": model_folder, "audio_tokenizer": codec_folder, "hubert": hubert_folder}
    assert shard(manifest=manifest, out=tmp_path / "out", workers=1, **tools) == 0
    assert "  1 clips: the file's name has another Unicode form (NFC, NFD) than the manifest's\n" in (
        capsys.readouterr().out
    )
    assert Corpus(tmp_path / "out").clip(0).meta["source"] == source
    codec = flags(audio_tokenizer=codec_folder, hubert=hubert_folder, audio_root=tmp_path)
    assert verify([str(tmp_path / "out"), *codec]) == 0


def test_forms_may_differ_from_folder_to_folder(tmp_path):
    folder = tmp_path / unicodedata.normalize("NFD", FOLDER)
    folder.mkdir()
    (folder / unicodedata.normalize("NFC", NAME)).touch()
    given = tmp_path / unicodedata.normalize("NFC", FOLDER) / unicodedata.normalize("NFD", NAME)
    assert find_on_disk(given) == folder / unicodedata.normalize("NFC", NAME)
    assert find_on_disk(given.with_name("Mélanie.wav")) is None


def test_what_is_near_is_told(tmp_path):
    (tmp_path / "wavs").mkdir()
    (tmp_path / "wavs/B.FLAC").touch()
    (tmp_path / "wavs/folder.wav").mkdir()
    (tmp_path / "wavs/link.wav").symlink_to("/mnt/gone/link.wav")
    names = (
        "wavs/b.wav",
        "wavs/ B.FLAC",
        "waves/de/ep/c.wav",
        "wavs/nothing.wav",
        "wavs/folder.wav",
        "wavs/link.wav",
    )
    found = problems(tmp_path, *names)
    expected = (
        "no such file; its folder has 'B.FLAC'",
        "no such file; its folder has 'B.FLAC'",
        f"no such file, nor the folder {tmp_path}/waves",
        "no such file",
        "a folder",
        "a link to /mnt/gone/link.wav, which is not there",
    )
    assert {name: error.found for name, error in found.items()} == dict(zip(names, expected, strict=True))
    assert {error.reason for error in found.values()} == {"missing_file"}
    assert "--audio-root" in found["wavs/nothing.wav"].action


@pytest.mark.parametrize(
    ("audio", "found", "action"),
    [
        ("s3://bucket/a.wav", "an address: s3://bucket/a.wav", "Copy the recordings to this machine"),
        ("https://example.org/a.wav", "an address: https", "Copy the recordings to this machine"),
        ("data:audio/wav;base64,UklGR" + "A" * 999, "an address: data:audio/wav;base64,UklGRAAA", "to this machine"),
        ("C:\\Users\\me\\a.wav", "a Windows path: C:\\Users", "with / for \\, and name that folder"),
        ("d:/audio/a.wav", "a Windows path: d:/audio", "with / for \\"),
        ("\\\\server\\share\\a.wav", "a Windows path: \\\\server", "with / for \\"),
        ("~/audio/a.wav", "a path with ~", "Write the folder in full"),
    ],
)
def test_a_place_that_is_not_on_this_machine_is_named(audio, found, action, tmp_path):
    rows = [{"audio": "good.wav", "text": "نعم", "speaker": "s"}, {"audio": audio, "text": "نعم", "speaker": "s"}]
    rows.append({"audio": "x.wav", "text": "نعم", "reference_audio": audio, "reference_text": "لا"})
    manifest = read_manifest(write_jsonl(tmp_path / "m.jsonl", rows), [], DEFAULT_SYSTEM_TEXT)
    assert [line for line, _ in manifest.rejected] == [2, 3]
    for line, error in manifest.rejected:
        assert error.reason == "audio_elsewhere"
        assert len(error.found) < 150
        assert_parts(error, f"m.jsonl line {line}", found, "a path on this machine", action)


def test_backslashes_are_no_folders_unless_there_is_such_a_file(tmp_path, short_folder):
    shutil.copy(short_folder / "salma/000.wav", tmp_path / "odd\\name.wav")
    found = problems(tmp_path, "odd\\name.wav", "wavs\\a.wav")
    assert list(found) == ["wavs\\a.wav"]
    assert_parts(found["wavs\\a.wav"], "wavs\\a.wav", "no such file", "an audio file", "Write / for \\")


def test_what_is_wrong_inside_parquet_and_in_parts_is_told_of_the_row_and_the_part(
    tmp_path, short_folder, model_folder, codec_folder, hubert_folder
):
    whole = (short_folder / "salma/000.wav").read_bytes()
    audio = [{"bytes": data, "path": "same.wav"} for data in (whole, b"no audio", whole[: len(whole) // 2], b"")]
    table = pa.table({"audio": audio, "text": ["نعم"] * 4, "speaker": ["s"] * 4})
    pq.write_table(table, tmp_path / "m.parquet")
    out = tmp_path / "out"
    tools = {"model": model_folder, "audio_tokenizer": codec_folder, "hubert": hubert_folder}
    assert shard(manifest=tmp_path / "m.parquet", out=out, workers=1, **tools) == 0
    assert [row_failure(out, line)["reason"] for line in (2, 3, 4)] == ["not_audio", "truncated", "empty_file"]
    for line in (2, 3, 4):
        assert row_failure(out, line)["where"] == f"m.parquet row {line} ({tmp_path}/m.parquet#{line}.audio)"
    data = bytearray((tmp_path / "m.parquet").read_bytes())
    data[4:104] = b"Z" * 100  # the header of the first page, of audio
    (tmp_path / "broken.parquet").write_bytes(data)
    found = problems_of(tmp_path / "broken.parquet")
    assert list(found) == [f"broken.parquet#{line}.audio" for line in (1, 2, 3, 4)]
    assert {error.reason for error in found.values()} == {"broken_parquet"}
    part = Recording(str(short_folder / "salma/000.wav"), 0.5, 99.0)
    with pytest.raises(Rejected) as caught:
        part.probe()
    assert (caught.value.reason, caught.value.where) == ("part_outside", str(part))
