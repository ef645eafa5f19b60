"""What speech teams have, as it is: Common Voice, Hugging Face, LJSpeech, folders, long recordings with times."""

import csv
import json
import re
import shutil
from dataclasses import replace
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from preprocess.audio.decode import Header, flac_16khz
from preprocess.audio.recording import Recording
from preprocess.codec.load import load_codec
from preprocess.common.errors import InputError
from preprocess.corpus.base_model import read_base_model
from preprocess.corpus.dialogue import DEFAULT_SYSTEM_TEXT
from preprocess.corpus.shards import Corpus
from preprocess.dry_run import show_plan
from preprocess.manifest.field_names import parse_columns
from preprocess.manifest.read import read_manifest
from preprocess.options import parse_settings
from preprocess.plan.clips import build_clips
from preprocess.plan.screening import Screening
from tests.fixtures.speech import save_variant
from tests.preprocess.helpers import assert_parts, flags, refused, row_failure, shard, write_jsonl


@pytest.fixture(scope="module")
def rows(short_folder):
    return [json.loads(line) for line in (short_folder / "corpus.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def tools(model_folder, codec_folder, hubert_folder):
    return {"model": model_folder, "audio_tokenizer": codec_folder, "hubert": hubert_folder}


def read(path, columns="", val_path=None):
    return read_manifest(path, ["<|eot_id|>"], DEFAULT_SYSTEM_TEXT, parse_columns(columns), val_path)


def said(capsys, **flags) -> str:
    """What --validate-only prints; all clips must have headers."""
    assert shard(validate_only=True, **flags) == 0
    printed = capsys.readouterr()
    assert printed.err.count("failed") == 0
    return printed.out


def write_table(path, records, delimiter):
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(records[0]), delimiter=delimiter, quoting=csv.QUOTE_NONE, quotechar=None)
        writer.writeheader()
        writer.writerows(records)
    return path


def boson_codes(tools, path):
    tokenizer, _ = load_codec(tools["audio_tokenizer"], tools["hubert"])
    return tokenizer.encode(str(path)).cpu().numpy()


def clips_by_source(out):
    corpus = Corpus(out)
    clips = [corpus.clip(row) for row in range(corpus.index.num_rows)]
    return {clip.meta["source"]: clip for clip in clips}


def audio_struct(rows, folder):
    """Hugging Face's Audio feature: the file's bytes, and its name."""
    return [{"bytes": (folder / row["audio"]).read_bytes(), "path": row["audio"].split("/")[-1]} for row in rows]


def test_common_voice_works_as_it_is(tmp_path, short_folder, rows, tools, capsys):
    (tmp_path / "clips").mkdir()
    records = []
    for number, row in enumerate(rows):
        name = f"common_voice_ar_{number}.mp3"
        save_variant(short_folder / row["audio"], tmp_path / "clips" / name)
        about = {"client_id": row["speaker"], "path": name, "sentence_id": number, "sentence": row["text"]}
        records.append({**about, "up_votes": 2, "gender": "", "locale": "ar"})
    manifest = write_table(tmp_path / "validated.tsv", records, "\t")
    out = tmp_path / "out"
    assert shard(manifest=manifest, audio_root=tmp_path / "clips", out=out, workers=1, **tools) == 0
    assert (
        "validated.tsv: 8 rows of columns; 8 samples of 8 clips\n"
        "  audio = column path (8 rows)\n"
        "  language = column locale (8 rows)\n"
        "  speaker = column client_id (8 rows)\n"
        "  text = column sentence (8 rows)\n"
        "  columns not used: gender, sentence_id, up_votes\n"
    ) in capsys.readouterr().out
    clip = clips_by_source(out)["common_voice_ar_3.mp3"]
    assert [clip.meta[name] for name in ("text", "speaker", "language")] == [
        rows[3]["text"],
        rows[3]["speaker"],
        "ar",
    ]
    assert np.array_equal(clip.codes, boson_codes(tools, tmp_path / "clips/common_voice_ar_3.mp3"))


def test_a_hugging_face_parquet_export_works_as_it_is(tmp_path, short_folder, rows, tools, capsys):
    """Two files of three-row groups; the bytes stay where they are, and each group is read once a pass."""
    (tmp_path / "data").mkdir()
    for number, part in enumerate((rows[:5], rows[5:])):
        columns = {"audio": audio_struct(part, short_folder), "transcription": [row["text"] for row in part]}
        table = pa.table({**columns, "speaker_id": [7 + len(row["speaker"]) for row in part]})
        pq.write_table(table, tmp_path / f"data/train-0000{number}-of-00002.parquet", row_group_size=3)
    original, reads = pq.ParquetFile.read_row_group, tmp_path / "reads"

    def read_row_group(file, group, **choice):
        with open(reads, "a") as log:  # a file: workers read, not this process
            log.write(f"group {group} of {file.metadata.num_rows} rows\n")
        return original(file, group, **choice)

    with mock.patch.object(pq.ParquetFile, "read_row_group", read_row_group):
        assert shard(manifest=tmp_path, out=tmp_path / "out", workers=1, **tools) == 0
    once = "group 0 of 5 rows\ngroup 1 of 5 rows\ngroup 0 of 3 rows\n"
    assert reads.read_text() == once * 2, "once for the headers, once to encode"
    printed = capsys.readouterr().out
    assert "  speaker = column speaker_id (8 rows)\n  text = column transcription (8 rows)\n" in printed
    clips = clips_by_source(tmp_path / "out")
    assert set(clips) == {f"data/train-00000-of-00002.parquet#{n}.audio" for n in range(1, 6)} | {
        f"data/train-00001-of-00002.parquet#{n}.audio" for n in range(1, 4)
    }
    clip = clips["data/train-00001-of-00002.parquet#2.audio"]
    assert (clip.meta["text"], clip.meta["speaker"]) == (rows[6]["text"], str(7 + len(rows[6]["speaker"])))
    assert np.array_equal(clip.codes, boson_codes(tools, short_folder / rows[6]["audio"]))


def test_parquet_rows_without_bytes_name_files(tmp_path, short_folder, rows):
    """As `datasets` writes them for local files; mixed row groups are told apart row by row."""
    audio = audio_struct(rows[:3], short_folder)
    audio[1] = {"bytes": None, "path": rows[1]["audio"]}
    manifest = tmp_path / "m.parquet"
    for row_group_size in (1, 3):
        table = pa.table({"audio": audio, "text": ["نعم"] * 3, "speaker": ["s"] * 3})
        pq.write_table(table, manifest, row_group_size=row_group_size)
        found = [row.audio for row in read(manifest).rows]
        inside = [Recording(str(manifest), row=number, column="audio") for number in (1, 3)]
        assert found == [inside[0], Recording(rows[1]["audio"]), inside[1]]
    assert inside[1].decode().sha256 == Recording(str(short_folder / rows[2]["audio"])).decode().sha256


def test_splits_of_a_hugging_face_export_are_not_mixed(tmp_path):
    for name in ("train-00000-of-00001", "test-00000-of-00001"):
        pq.write_table(pa.table({"audio": ["a.wav"], "text": [name], "speaker": ["s"]}), tmp_path / f"{name}.parquet")
    with pytest.raises(InputError) as caught:
        read(tmp_path)
    assert_parts(
        caught.value, str(tmp_path), "of 2 splits: test, train", "the rows to train on", f"{tmp_path}/train-*.parquet"
    )
    (row,) = read(tmp_path / "train-*.parquet").rows
    assert row.text == "train-00000-of-00001"


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_an_audiofolder_is_a_folder(suffix, tmp_path, short_folder, rows, model_folder, capsys):
    shutil.copytree(short_folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "corpus.jsonl").unlink()
    records = [{"file_name": r["audio"], "transcription": r["text"], "speaker": r["speaker"]} for r in rows]
    path = tmp_path / f"metadata.{suffix}"
    write_table(path, records, ",") if suffix == "csv" else write_jsonl(path, records)
    assert said(capsys, manifest=tmp_path, model=model_folder).startswith(
        f"metadata.{suffix}: 8 rows of columns; 8 samples of 8 clips\n"
        "  audio = column file_name (8 rows)\n  text = column transcription (8 rows)\n"
    )


def test_ljspeech_takes_the_normalised_text_and_says_so(tmp_path, short_folder, rows, model_folder, capsys):
    folder = tmp_path / "LJSpeech-1.1"
    (folder / "wavs").mkdir(parents=True)
    lines = []
    for number, row in enumerate(rows[:4]):
        shutil.copy(short_folder / row["audio"], folder / f"wavs/LJ001-{number}.wav")
        lines.append(f'LJ001-{number}|"{row["text"]}" {number}|{row["text"]}')
    lines += ["", "LJ001-9", "LJ001-3|only one text"]
    (folder / "metadata.csv").write_text("\r\n".join(lines), encoding="utf-8", newline="")
    manifest = read(folder)
    assert manifest.dialects == {"LJSpeech": 5}
    assert manifest.rows[0].text == rows[0]["text"]
    assert manifest.rows[-1].text == "only one text"
    assert {(row.audio.path, row.speaker, row.id, row.line) for row in manifest.rows[:4]} == {
        (f"wavs/LJ001-{number}.wav", "LJSpeech-1.1", f"LJ001-{number}", number + 1) for number in range(4)
    }
    ((line, error),) = manifest.rejected
    assert line == 6
    assert_parts(error, "metadata.csv line 6", "1 fields in 'LJ001-9'", "id|text|normalised text", "Correct")
    assert read(folder, "text=text").rows[0].text == f'"{rows[0]["text"]}" 0'
    lines = lines[:4]
    (folder / "metadata.csv").write_text("\n".join(lines), encoding="utf-8")
    assert said(capsys, manifest=folder, model=model_folder).startswith(
        "metadata.csv: 4 rows of LJSpeech; 4 samples of 4 clips\n"
        "  text = column normalized_text (4 rows)\n"
        "  columns not used: text\n"
    )


def test_pipes_without_recordings_beside_them_are_not_guessed_at(tmp_path):
    (tmp_path / "metadata.csv").write_text("a|x|y\n")
    with pytest.raises(InputError) as caught:
        read(tmp_path / "metadata.csv")
    assert_parts(
        caught.value,
        "metadata.csv",
        "lines with `|` such as 'a|x|y', and no column that names",
        "wavs/ID.wav",
        "CSV with a header",
    )


def test_a_folder_with_metadata_json(tmp_path, short_folder, rows, model_folder, capsys):
    samples = []
    for number, row in enumerate(rows[:3]):
        shutil.copy(short_folder / row["audio"], tmp_path / f"{number}.wav")
        (tmp_path / f"{number}.txt").write_text(row["text"] + "\n", encoding="utf-8")
        sample = {"audio_file": f"{number}.wav", "speaker_id": row["speaker"], "duration": 0.8}
        samples.append(sample | {"transcript_file": f"{number}.txt"})
    samples[1].update(ref_audio_file="0.wav", ref_transcript="نعم")
    del samples[2]["transcript_file"]
    samples[2]["transcript"] = "لا"
    path = tmp_path / "metadata.json"
    path.write_text(json.dumps({"dataset_info": {}, "samples": samples}, indent=2), encoding="utf-8")
    assert said(capsys, manifest=tmp_path, model=model_folder).startswith(
        "metadata.json: 3 rows of metadata.json; 3 samples of 3 clips\n"
        "  audio = column audio_file (3 rows)\n"
        "  reference_audio = column ref_audio_file (1 rows)\n"
        "  reference_text = column ref_transcript (1 rows)\n"
        "  speaker = column speaker_id (3 rows)\n"
        "  text = column transcript (3 rows)\n"
        "  columns not used: duration\n"
    )
    manifest = read(tmp_path)
    assert [row.text.strip() for row in manifest.rows] == [rows[0]["text"], rows[1]["text"], "لا"]
    assert manifest.rows[1].references == ((Recording("0.wav"), "نعم"),)

    samples += [{"audio_file": "1.wav", "transcript_file": "none.txt"}, "a string"]
    path.write_text(json.dumps({"samples": samples}), encoding="utf-8")
    errors = dict(read(tmp_path).rejected)
    assert_parts(errors[4], "metadata.json sample 4", "none.txt, which can't be read", "UTF-8", "transcript_file")
    assert_parts(errors[5], "metadata.json sample 5", "str 'a string'", "one JSON object", "Correct")


def test_a_folder_with_two_manifests_or_none_is_refused(tmp_path):
    with pytest.raises(InputError) as caught:
        read(tmp_path)
    assert_parts(caught.value, str(tmp_path), "no metadata.json", "a manifest: .jsonl", "--manifest")
    for name in ("metadata.csv", "metadata.jsonl"):
        (tmp_path / name).write_text("x")
    with pytest.raises(InputError) as caught:
        read(tmp_path)
    assert_parts(caught.value, str(tmp_path), "2 manifests: metadata.jsonl, metadata.csv", "one", "--manifest")


def test_two_columns_that_may_be_the_text_are_not_guessed_at(tmp_path):
    row = {"file": "a.wav", "sentence": "x", "normalized_text": "y", "speaker": "s"}
    path = write_jsonl(tmp_path / "m.jsonl", [row])
    with pytest.raises(InputError) as caught:
        read(path)
    assert_parts(
        caught.value,
        "columns file, sentence, normalized_text",
        "2 that may be the text: sentence, normalized_text",
        "one that is the text",
        "--columns text=sentence",
    )
    (found,) = read(path, "text=normalized_text").rows
    assert (found.audio, found.text) == (Recording("a.wav"), "y")
    named = {**row, "text": "z"}
    assert read(write_jsonl(path, [named])).rows[0].text == "z", "the column of the very name is no guess"


@pytest.mark.parametrize("text", ["audio", "audio=", "voice=x", "audio=a,audio=b"])
def test_columns_that_cannot_be_meant_are_refused(text, tmp_path):
    error = refused(manifest=tmp_path, model=tmp_path, validate_only=True, columns=text)
    assert_parts(error, "--columns", repr(text), "FIELD=COLUMN,...", "--columns audio=path")


def test_a_chosen_column_that_is_not_there_is_refused(tmp_path):
    path = write_jsonl(tmp_path / "m.jsonl", [{"audio": "a.wav", "text": "x", "speaker": "s"}])
    with pytest.raises(InputError) as caught:
        read(path, "speaker=client_id,language=lang")
    assert_parts(caught.value, "--columns", "client_id, lang", "audio, speaker, text", "as the manifest does")


def test_parts_of_a_long_recording_are_clips_of_their_own(tmp_path, short_folder, rows, tools):
    """Codes are those of the same samples in a file of their own."""
    pieces = [soundfile.read(short_folder / row["audio"], dtype="int16")[0] for row in rows[:4]]
    rate_hz = soundfile.info(short_folder / rows[0]["audio"]).samplerate
    soundfile.write(tmp_path / "talk.flac", np.concatenate(pieces), rate_hz)
    ends_sec = (np.cumsum([len(piece) for piece in pieces]) / rate_hz).tolist()
    borders = [0.0, *ends_sec]
    parts = [{"audio": "talk.flac", "start": borders[n], "end": borders[n + 1]} for n in range(4)]
    parts[3].pop("end")
    lines = [{**part, "text": f"نص {n}", "speaker": "s"} for n, part in enumerate(parts)]
    lines += [
        {**parts[0], "text": "نص 0", "speaker": "s"},
        {**parts[0], "end": 99.0, "text": "x", "speaker": "s"},
        {**parts[1], "end": "0.1", "text": "x", "speaker": "s"},
        {**parts[1], "start": -1, "text": "x", "speaker": "s"},
    ]
    out = tmp_path / "out"
    assert shard(manifest=write_jsonl(tmp_path / "m.jsonl", lines), out=out, workers=1, **tools) == 0
    clips = clips_by_source(out)
    names = [f"talk.flac@{borders[n]!r}-{borders[n + 1]!r}" for n in range(3)] + [f"talk.flac@{borders[3]!r}-"]
    assert list(clips) == sorted(names, key=lambda name: clips[name].key)
    for number, name in enumerate(names):
        soundfile.write(tmp_path / "alone.wav", pieces[number], rate_hz)
        assert np.array_equal(clips[name].codes, boson_codes(tools, tmp_path / "alone.wav")), name
        assert clips[name].meta["duration_sec"] == pytest.approx(0.8)
    assert len({clip.meta["source_sha256"] for clip in clips.values()}) == 1
    assert row_failure(out, 5)["reason"] == "same_row"
    assert row_failure(out, 6)["reason"] == "part_outside"
    assert_parts(row_failure(out, 7), "line 7", "start 0.8 s, end 0.1 s", "an end after the start", "Correct the row")
    assert_parts(row_failure(out, 8), "line 8", "start = -1", "start in seconds", "Correct the row")


def test_a_chatml_audio_part_may_have_an_offset(tmp_path):
    parts = [{"type": "audio", "audio_url": "a.wav", "offset": 1.5, "duration": 2.0}, {"type": "audio", "audio": "b"}]
    turns = [("user", "x"), ("assistant", [parts[0]]), ("user", "y"), ("assistant", [{**parts[1], "duration": 3.0}])]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    (found,) = read(write_jsonl(tmp_path / "m.jsonl", [row])).rows
    assert found.references == ((Recording("a.wav", 1.5, 3.5), "x"),)
    assert found.audio == Recording("b"), "a duration alone describes the file"


@pytest.fixture(scope="module")
def two_manifests(tmp_path_factory, short_folder, rows):
    """(training manifest, validation manifest in another folder): two clips of one voice, one of a training voice."""
    folder = tmp_path_factory.mktemp("two_manifests")
    (folder / "val").mkdir()
    for number, row in enumerate([*rows[:2], rows[3]]):
        samples, rate_hz = soundfile.read(short_folder / row["audio"], dtype="int16")
        soundfile.write(folder / f"val/v{number}.wav", samples[500:], rate_hz)  # another recording than rows[3]
    train = [{**row, "audio": str(short_folder / row["audio"])} for row in rows[2:]]
    val = [{"file_name": f"v{n}.wav", "text": r["text"], "speaker": r["speaker"]} for n, r in enumerate(rows[:2])]
    val.append({"file_name": "v2.wav", "text": rows[3]["text"], "speaker": rows[3]["speaker"]})
    val.append({"file_name": "missing.wav", "text": "نعم", "speaker": rows[0]["speaker"]})
    return write_jsonl(folder / "train.jsonl", train), write_jsonl(folder / "val/metadata.jsonl", val)


def test_the_rows_of_a_validation_manifest_are_the_validation_split(tmp_path, two_manifests, rows, tools, capsys):
    train, val = two_manifests
    out = tmp_path / "out"
    assert shard(manifest=train, val_manifest=val.parent, out=out, workers=1, allow_outside=True, **tools) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(
        "train.jsonl, metadata.jsonl: 10 rows of columns; 10 samples of 10 clips\n"
        "  4 clips of --val-manifest are the validation split\n"
        f"  1 of its speakers are in training too, no held-out voices: {rows[3]['speaker']}\n"
        "  audio = column file_name (4 rows)\n"
    )
    assert "train: 6 samples, 3 speakers\nval: 3 samples, 2 speakers\n" in printed
    split = dict(Corpus(out).index.select(["key", "split"]).to_pandas().itertuples(index=False))
    names = {source: split[clip.key] for source, clip in clips_by_source(out).items()}
    assert {name for name, found in names.items() if found == "val"} == {f"val/v{n}.wav" for n in range(3)}
    record = row_failure(out, 4)
    assert record["file"] == "metadata.jsonl"
    assert_parts(record, "metadata.jsonl line 4 (", "no such file", "an audio file", "--audio-root")


def test_a_validation_manifest_of_which_nothing_can_be_used_is_refused(tmp_path, two_manifests):
    path = write_jsonl(tmp_path / "v.jsonl", [{"audio": "a.wav", "text": " ", "speaker": "s"}])
    with pytest.raises(InputError) as caught:
        read(two_manifests[0], val_path=path)
    assert_parts(caught.value, str(path), "no row that can be used, of 1", "at least one", "v.jsonl line 1")


def test_a_clip_in_training_and_validation_is_refused_by_name(tmp_path, two_manifests, model_folder, rows):
    train, val = two_manifests
    again = [{"audio": str(val.parent / "v0.wav"), "text": "x", "speaker": "s"}]
    again.append({"audio": "new.wav", "text": "x", "reference_audio": "val/v2.wav", "reference_text": "y"})
    more = write_jsonl(train.with_name("more.jsonl"), [*train.read_text().splitlines(), *again])
    error = refused(manifest=more, val_manifest=val, model=model_folder, validate_only=True)
    assert_parts(
        error,
        "--val-manifest",
        "2 clips that are in training too: val/v0.wav (more.jsonl line 7, metadata.jsonl line 1), "
        "val/v2.wav (more.jsonl line 8, metadata.jsonl line 3)",
        "clips that are not trained on",
        "Remove their rows",
    )
    error = refused(manifest=train, val_manifest=val, val_speakers="2", model=model_folder, validate_only=True)
    assert_parts(error, "command line", "--val-manifest and --val-speakers", "one of them", "Leave out")


USER = "<|start_header_id|>user<|end_header_id|>\n\n"
ASSISTANT = "<|start_header_id|>assistant<|end_header_id|>\n\n"
AUDIO = "<|audio_out_bos|><|AUDIO_OUT|><|audio_eos|>"


def test_a_dry_run_shows_one_row_as_it_will_be_and_writes_nothing(tmp_path, short_folder, rows, tools, capsys):
    named = {"audio": rows[1]["audio"], "text": "نعم", "reference_audio": rows[0]["audio"], "reference_text": "لا"}
    lines = [
        named,
        {"audio": rows[0]["audio"], "text": "مـــرحبا", "speaker": "s"},
        *({**named, "audio": f"gone/{n}.wav", "text": "كلا"} for n in range(7)),
    ]
    manifest = write_jsonl(tmp_path / "m.jsonl", lines)
    flags = {"manifest": manifest, "audio_root": short_folder, "workers": 2, "dry_run": True}
    before = sorted(tmp_path.iterdir())
    assert shard(**flags, out=tmp_path / "out", **tools) == 0
    printed = capsys.readouterr()
    # Boson's own prompt for the row that draws its reference, from the one other clip of its voice that is there.
    assert "one row as it will be trained, with one of 1 references; [[ ]] marks what the loss counts" in printed.out
    prompt = f"{USER}نعم<|eot_id|>{ASSISTANT}{AUDIO}<|eot_id|>{USER}مرحبا<|eot_id|>{ASSISTANT}"
    assert f"Generate audio following instruction.<|eot_id|>{prompt}[[{AUDIO}<|eot_id|>]]\n" in printed.out
    assert f"\naudio: {rows[1]['audio']}, {rows[0]['audio']}\n" in printed.out
    assert "to encode: 2 clips, 0.000 h, 1 speakers (by the files' headers)" in printed.out
    assert "(from 1 clips, 0.8 s of audio)" in printed.out
    found = f"no such file, nor the folder {short_folder}/gone"
    assert f"2 more (7 of all 7: {found}), a run names them in failures.jsonl" in printed.err
    assert "see failures.jsonl" not in printed.err
    assert sorted(tmp_path.iterdir()) == before

    assert shard(**flags, model=tools["model"]) == 0
    assert "time: unknown (name --audio-tokenizer and --hubert)" in capsys.readouterr().out


@pytest.mark.parametrize("reuse", [None, "old"])
def test_a_dry_runs_hours_size_and_time_are_of_what_fits(reuse, short_folder, rows, tools, capsys):
    """Headers that promise 100 hours each; one clip is below the shortest that is kept."""
    given = {"manifest": short_folder / "corpus.jsonl", **tools, **({"reuse": reuse} if reuse else {})}
    args = parse_settings(flags(dry_run=True, **given))
    args = replace(args, screening=Screening(max_duration_sec=None))
    table = build_clips(read(args.manifest), short_folder)
    headers = {key: Header(1, 360_000.0) for key in table.clips}
    headers[next(key for key in headers if table.clips[key].speaker == "salma")] = Header(1, 0.4)
    show_plan(args, read_base_model(tools["model"]), table, headers, num_workers=4)
    said = capsys.readouterr().out
    assert "to encode: 7 clips, 700.000 h, 4 speakers" in said
    cost = re.search(
        r"size: (.*) MB; time: (.*?)([\d.]+) h with 4 workers of ([\d.]+)x real time \(from 3 clips, 2.4 s",
        said,
    )
    assert cost[2] == ("at most (what --reuse finds is not encoded) " if reuse else "")
    assert float(cost[3]) == pytest.approx(700 / 4 / float(cost[4]), rel=0.05)
    flacs = [flac_16khz(clip.recording.decode()) for clip in table.clips.values()]
    smallest, largest = ((size(len(flac) for flac in flacs)) for size in (min, max))
    # Beside the waveform: two more members, each with a header block, padded to blocks of 512 bytes.
    assert smallest + 3 * 512 < float(cost[1]) * 1e6 / 700 / 3600 * 0.8 < largest + 6 * 512
