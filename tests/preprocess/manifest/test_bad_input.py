"""Bad input: each problem has one clear message with four parts, and what is good is in the shards."""

import contextlib
import fcntl
import io
import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from launch.demo.small_model import build_model
from preprocess.corpus.dialogue import read_dialogue
from preprocess.corpus.shards import Corpus
from tests.preprocess.helpers import assert_parts, failures, refused, row_failure, shard, write_jsonl

GOOD = 8


@pytest.fixture(scope="module")
def tools(model_folder, codec_folder, hubert_folder):
    return {"model": model_folder, "audio_tokenizer": codec_folder, "hubert": hubert_folder}


@pytest.fixture(scope="module")
def bad(tmp_path_factory, short_folder, tools):
    """A corpus of 8 good rows among bad ones: the output folder, and what the command printed."""
    folder = tmp_path_factory.mktemp("bad")
    shutil.copytree(short_folder, folder, dirs_exist_ok=True)
    whole = (folder / "salma/000.wav").read_bytes()
    (folder / "zero.wav").write_bytes(b"")
    (folder / "broken.wav").write_bytes(b"RIFF????WAVE" + bytes(100))
    for name in ("cut.wav", "cut_reference.wav"):
        (folder / name).write_bytes(whole[: len(whole) // 2])
    soundfile.write(folder / "short.wav", np.full(8000, 0.1), 22050)
    soundfile.write(folder / "long.wav", np.full(31 * 8000, 0.1), 8000)
    for name in ("target_1.wav", "target_2.wav", "target_3.wav", "own_reference.wav"):
        (folder / name).write_bytes(whole)

    def row(audio, **more):
        return {"audio": audio, "text": "نعم", **more}

    cut, own = {"reference_audio": "cut_reference.wav"}, {"reference_audio": "own_reference.wav"}
    good = [json.loads(line) for line in (folder / "corpus.jsonl").read_text().splitlines()]
    rows = [
        *good[:2],
        row("missing.wav", speaker="salma"),  # 3
        row("zero.wav", speaker="salma"),  # 4
        row("broken.wav", speaker="salma"),  # 5
        row("cut.wav", speaker="salma"),  # 6
        {**row("omar/000.wav", speaker="omar"), "text": "  "},  # 7
        row("target_1.wav"),  # 8: neither speaker nor reference
        row("target_1.wav", text="نعم <|eot_id|>", speaker="salma"),  # 9
        row("short.wav", speaker="salma"),  # 10
        row("long.wav", speaker="salma"),  # 11
        row("target_1.wav", reference_text="لا", **cut),  # 12: its only row
        row("target_2.wav", reference_text="لا", **cut),  # 13: one of two rows
        row("target_2.wav", reference_text="لا", **own),  # 14
        *good[2:4],
        '{"audio": "salma/000.wav", "text": "نع',  # 17
        *good[4:],
        good[0],  # 22
    ]
    manifest = write_jsonl(folder / "corpus.jsonl", rows)
    with contextlib.redirect_stdout(io.StringIO()) as stdout, contextlib.redirect_stderr(io.StringIO()) as stderr:
        assert shard(manifest=manifest, out=folder / "out", workers=1, **tools) == 0
    return folder / "out", SimpleNamespace(stdout=stdout.getvalue(), stderr=stderr.getvalue())


BAD_ROWS = {
    3: ("failed", "missing_file", "missing.wav", "no such file", "an audio file", "--audio-root"),
    4: ("failed", "empty_file", "zero.wav", "0 bytes", "an audio file", "Copy or record the file again"),
    5: (
        ("failed", "not_audio", "broken.wav", "no audio that libsndfile or ffprobe", "a whole audio file", "Copy or")
        if shutil.which("ffprobe")
        else ("failed", "needs_ffmpeg", "broken.wav", "no program ffprobe", "ffmpeg and ffprobe", "Install ffmpeg")
    ),
    6: ("failed", "truncated", "cut.wav", "0.40 s of audio", "0.80 s, as its header says", "was cut short"),
    7: ("screened", "empty_transcript", "corpus.jsonl line 7", "'  '", "the words that are spoken", "Transcribe"),
    8: ("failed", "no_speaker", "line 8", "neither speaker nor reference_audio", "one of them", "Fill in one"),
    9: (
        "failed",
        "special_token",
        "line 9",
        "<|eot_id|>",
        "only words: a special token would change the prompt's structure",
        "Remove it from the text",
    ),
    10: ("screened", "too_short", "short.wav", "0.363 s", "at least 0.5", "Nothing to do"),
    11: ("screened", "too_long", "long.wav", "31.00 s", "at most 30", "Cut the recording"),
    12: ("failed", "reference_truncated", "cut_reference.wav", "0.40 s", "0.80 s", "was cut short"),
    13: ("failed", "reference_truncated", "cut_reference.wav", "0.40 s", "0.80 s", "was cut short"),
    17: ("failed", "malformed_json", "line 17", "which is not JSON", "one JSON object per line", "Correct the line"),
    22: ("merged", "same_row", "line 22", "as corpus.jsonl line 1", "each row once", "merged into clip 000-"),
}


@pytest.mark.parametrize("line", BAD_ROWS)
def test_a_bad_row_is_named_with_reason_and_action(line, bad):
    out, done = bad
    status, reason, where, found, expected, action = BAD_ROWS[line]
    record = row_failure(out, line)
    assert (record["status"], record["reason"]) == (status, reason)
    assert f"corpus.jsonl line {line}" in record["where"]
    assert_parts(record, where, found, expected, action)
    said = f"{status} ({reason}): {record['where']}: found {record['found']}; expected {record['expected']}. "
    assert (said + record["action"] in done.stderr) == (status != "merged")


def test_the_good_rows_are_in_the_shards_and_both_accounts_balance(bad):
    out, done = bad
    corpus = Corpus(out)
    sources = {corpus.clip(row).meta["source"]: row for row in range(corpus.index.num_rows)}
    good = {f"{speaker}/00{n}.wav" for speaker in ("salma", "omar", "huda", "karim") for n in (0, 1)}
    assert set(sources) == good | {"target_1.wav", "target_2.wav", "own_reference.wav"}
    assert corpus.info["rows"] == {"written": GOOD + 1, "merged": 1, "screened": 3, "failed": 9}
    assert corpus.info["clips"] == {"written": GOOD + 3, "screened": 2, "failed": 5}
    assert {record["line"] for record in failures(out) if record["line"]} == set(BAD_ROWS)
    assert sum(corpus.info["rows"].values()) == 22
    assert "9 written, 1 merged, 3 screened, 9 failed" in done.stdout
    assert "0.009 h too_long" in done.stdout


def test_a_clip_that_only_a_lost_reference_needed_is_out_of_use(bad):
    corpus = Corpus(bad[0])
    sources = {corpus.clip(row).meta["source"]: row for row in range(corpus.index.num_rows)}
    index = corpus.index.to_pylist()
    lost = index[sources["target_1.wav"]]
    assert (lost["use"], lost["reason"], lost["dialogues"]) == (False, "reference_lost", [])
    kept = index[sources["target_2.wav"]]
    assert kept["use"]
    assert not kept["draws_reference"]
    # The clip's own record still has both; the index says which of them is whole.
    (dialogue,) = kept["dialogues"]
    assert dialogue["position"] == 1
    whole = corpus.clip(sources["target_2.wav"]).meta["dialogues"][1]
    assert dialogue["audios"][0]["key"] == whole["references"][0]["key"]
    reference = index[sources["own_reference.wav"]]
    assert (reference["use"], reference["draws_reference"], reference["dialogues"]) == (True, False, [])
    assert kept["speaker"] == reference["speaker"]
    assert kept["speaker"].startswith("unnamed-cut_reference-")


def test_token_counts_are_those_of_the_normalised_texts(bad, model_folder):
    from boson_multimodal.dataset.chatml_dataset import prepare_chatml_sample
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    corpus = Corpus(bad[0])
    for row, entry in enumerate(corpus.index.to_pylist()):
        meta = corpus.clip(row).meta
        assert entry["text_tokens"] == len(tokenizer.encode(meta["text_normalised"], add_special_tokens=False)) > 0
        for planned in entry["dialogues"]:
            stored = meta["dialogues"][planned["position"]]
            dialogue = read_dialogue(stored, entry["key"], corpus.info["layout"]["system_text"])
            ids, labels, audios, _ = prepare_chatml_sample(dialogue, tokenizer)
            assert planned["stream_tokens"] == len(ids) - len(audios)
            assert planned["text_labels"] == 3 == sum(label != -100 for label in labels) - 1
            assert [audio["key"] for audio in planned["audios"]] == [audio.audio_url for audio in audios]
            assert [audio["trained"] for audio in planned["audios"]] == [False] * (len(audios) - 1) + [True]
            assert all(audio["has_codes"] for audio in planned["audios"])


def test_validate_only_names_every_problem_and_encodes_nothing(bad, model_folder, capsys, tmp_path):
    manifest = bad[0].parent / "corpus.jsonl"
    before = sorted(bad[0].parent.iterdir())
    assert shard(manifest=manifest, model=model_folder, validate_only=True) == 0
    said = capsys.readouterr()
    for line in (7, 8, 9, 17):
        assert f"corpus.jsonl line {line}:" in said.err
    for name in ("missing.wav", "zero.wav", "broken.wav"):
        assert name in said.err
    assert "0.009 h too_long" in said.out
    assert "nothing was encoded" in said.out
    assert sorted(bad[0].parent.iterdir()) == before


def test_missing_flags_are_all_listed_with_an_example():
    command = [sys.executable, "-m", "preprocess.shard", "--manifest", "corpus.jsonl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(
        "error: command line: found no --model, --audio-tokenizer, --hubert, --out; expected"
    )
    assert "python -m preprocess.shard --manifest corpus.jsonl --model models/base" in done.stderr
    error = refused(model="m", out="o")
    assert_parts(error, "command line", "no --manifest, --audio-tokenizer, --hubert", "--out", "Add what is missing")


def test_a_model_folder_without_config_is_refused(tmp_path, short_folder, tools):
    error = refused(manifest=short_folder / "corpus.jsonl", out=tmp_path / "out", **{**tools, "model": tmp_path})
    assert_parts(error, str(tmp_path), "no config.json", "a Higgs Audio v2 model folder", "hf download bosonai/higgs")
    assert not (tmp_path / "out").exists()


def test_a_model_folder_with_another_config_is_refused(tmp_path, short_folder, tools):
    (tmp_path / "config.json").write_text("[]")
    error = refused(manifest=short_folder / "corpus.jsonl", out=tmp_path / "out", **{**tools, "model": tmp_path})
    assert_parts(
        error, "config.json", "JSON of type list, not an object", "config.json of a Higgs Audio v2 model", "--model"
    )


def test_a_special_token_in_the_system_text_is_refused(tmp_path, short_folder, tools):
    given = {"manifest": short_folder / "corpus.jsonl", "out": tmp_path / "out"}
    error = refused(**given, system_text="Speak.<|eot_id|>", **tools)
    assert_parts(error, "--system-text", "<|eot_id|>", "only words", "Remove it")


def test_a_screening_file_that_is_a_list_is_refused(tmp_path, tools):
    path = tmp_path / "s.yaml"
    path.write_text("- max_peak")
    error = refused(manifest=tmp_path / "m.jsonl", out=tmp_path / "out", screening=path, **tools)
    assert_parts(error, str(path), "a list", "keys and values", "Correct")


def test_a_model_without_tokenizer_is_refused(tmp_path, short_folder, tools, model_folder):
    shutil.copy(model_folder / "config.json", tmp_path)
    error = refused(manifest=short_folder / "corpus.jsonl", out=tmp_path / "out", **{**tools, "model": tmp_path})
    assert_parts(error, str(tmp_path), "no tokenizer_config.json", "files beside the model's", "--model")


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("tokenizer.json", "version https://git-lfs.github.com/spec/v1", "broken JSON (Expecting value: line 1"),
        ("tokenizer.json", "{}", "can't be opened (Model missing"),
        ("tokenizer_config.json", '{"a', "broken JSON (Unterminated string"),
        ("tokenizer_config.json", '{"auto_map": {"AutoTokenizer": ["x.Y", null]}}', "code that would run"),
    ],
)
def test_a_broken_tokenizer_is_refused_by_its_file(name, text, found, tmp_path, model_folder):
    shutil.copytree(model_folder, tmp_path / "model")
    (tmp_path / "model" / name).write_text(text)
    error = refused(manifest=tmp_path / "m.jsonl", model=tmp_path / "model", validate_only=True)
    assert_parts(error, str(tmp_path / "model" / name), found, "as it was downloaded", "hf download bosonai/higgs")


def test_the_tokenizer_of_another_model_is_refused(tmp_path, model_folder):
    shutil.copytree(model_folder, tmp_path / "model")
    path = tmp_path / "model/tokenizer.json"
    path.write_text(path.read_text().replace("<|AUDIO_OUT|>", "<|reserved_9|>"))
    error = refused(manifest=tmp_path / "m.jsonl", model=tmp_path / "model", validate_only=True)
    assert_parts(error, str(path), "<|AUDIO_OUT|> as token", "the tokenizer of this model", "hf download bosonai")


def test_a_codec_that_does_not_fit_the_model_is_refused_before_any_work(tmp_path, short_folder, tools):
    model = build_model(tmp_path / "model", num_codebooks=4, codebook_size=64, hidden_size=32, num_layers=1)
    error = refused(manifest=short_folder / "corpus.jsonl", out=tmp_path / "out", **{**tools, "model": model})
    assert_parts(
        error,
        str(tools["audio_tokenizer"]),
        "8 codebooks of 1024 codes",
        "4 codebooks of 64 codes, as",
        "Name the codec this model was trained with",
    )
    assert not (tmp_path / "out").exists()


def test_other_settings_on_a_re_run_are_refused_by_name(bad, tools):
    out, _ = bad
    before = (out / "corpus.json").read_bytes()
    error = refused(
        manifest=out.parent / "corpus.jsonl", out=out, seed=3, system_text="Speak.", waveforms="none", **tools
    )
    assert_parts(error, str(out), "settings.seed = 3", "settings.seed = 0", "Give the same settings")
    for name in ("layout.system_text = 'Speak.'", "waveforms.format = 'none'"):
        assert name in error.found
    assert (out / "corpus.json").read_bytes() == before


def test_a_folder_that_another_run_writes_is_refused(bad, tools):
    out, _ = bad
    with open(out / "settings.json") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        error = refused(manifest=out.parent / "corpus.jsonl", out=out, **tools)
    assert_parts(error, str(out), "another run that is writing here", "one run at a time", "Wait for it")


def test_a_folder_with_other_files_is_refused(tmp_path, short_folder, tools):
    (tmp_path / "notes.txt").write_text("mine")
    error = refused(manifest=short_folder / "corpus.jsonl", out=tmp_path, **tools)
    assert_parts(error, str(tmp_path), "did not write", "a new folder", "Name another folder with --out")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_manifest_whose_every_file_is_missing_is_refused(tmp_path, tools):
    manifest = write_jsonl(tmp_path / "m.jsonl", [{"audio": f"{n}.wav", "text": "x", "speaker": "s"} for n in "abc"])
    error = refused(manifest=manifest, out=tmp_path / "out", **tools)
    assert_parts(error, str(manifest), "no row that can be used", "at least one", "a.wav")
    assert not (tmp_path / "out/corpus.json").exists()
    assert len(failures(tmp_path / "out")) == 6


@pytest.mark.parametrize(
    ("flag", "value", "expected"),
    [
        ("val_speakers", "many", "a number of voices"),
        ("val_speakers", "1.5", "a share below 1"),
        ("hours_per_shard", "0", "hours above 0"),
        ("hours_per_shard", "nan", "hours above 0"),
        ("workers", "-1", "0 (all cores) or more"),
    ],
)
def test_a_number_out_of_range_is_refused(flag, value, expected, tmp_path, tools):
    error = refused(manifest=tmp_path / "m.jsonl", out=tmp_path / "out", **{flag: value}, **tools)
    assert_parts(error, f"--{flag.replace('_', '-')}", value, expected, "")
    assert error.action
