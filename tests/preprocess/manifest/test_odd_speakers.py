"""Speakers that are something else, and --speaker for rows that name none."""

import pytest

from preprocess.console import show_manifest
from preprocess.corpus.dialogue import DEFAULT_SYSTEM_TEXT
from preprocess.manifest.languages import is_language_code
from preprocess.manifest.read import read_manifest
from preprocess.plan.clips import build_clips
from tests.preprocess.helpers import shard, write_jsonl


def said(tmp_path, capsys, speakers, languages=None, speaker=None):
    """(manifest, what is printed of it) for rows of these speakers and languages."""
    languages = languages or [None] * len(speakers)
    rows = [
        {"audio": f"{n}.wav", "text": "words", "speaker": who, "language": language}
        for n, (who, language) in enumerate(zip(speakers, languages, strict=True))
    ]
    manifest = read_manifest(write_jsonl(tmp_path / "m.jsonl", rows), [], DEFAULT_SYSTEM_TEXT, speaker=speaker)
    show_manifest(manifest, build_clips(manifest, tmp_path), keep_system=False, speaker=speaker)
    return manifest, capsys.readouterr().out


@pytest.mark.parametrize(
    ("speakers", "languages"),
    [
        (["ar", "ar"], ["ar", "ar"]),
        (["AR", "en"], ["ar", "en"]),
        (["Arabic"] * 3, None),
        (["ar-EG", "en_US"], None),
        (["klingon", "klingon"], ["Klingon", "klingon"]),
    ],
)
def test_speakers_that_are_languages_are_warned_of(speakers, languages, tmp_path, capsys):
    _, out = said(tmp_path, capsys, speakers, languages)
    assert f"  warning: the speakers of all {len(speakers)} rows are languages (" in out
    assert "--columns speaker=" in out


@pytest.mark.parametrize(
    ("speakers", "languages"),
    [(["salma", "omar"], ["ar", "ar"]), (["ar", "salma"], ["ar", "ar"]), ([None, None], ["ar", "ar"])],
)
def test_other_speakers_are_not(speakers, languages, tmp_path, capsys):
    assert "languages" not in said(tmp_path, capsys, speakers, languages)[1]


@pytest.mark.parametrize(("count", "warned"), [(25, True), (5, False)])
def test_a_speaker_per_row_is_warned_of(count, warned, tmp_path, capsys):
    _, out = said(tmp_path, capsys, [f"sample_{n}" for n in range(count)])
    assert (f"each of {count} rows has a speaker of its own" in out) == warned


@pytest.mark.parametrize(
    "code", ["ar", "AR", "ar-EG", "ar_SA", "en-US", "zh", "ZH", "ar-001", "eng", "Arabic", " en "]
)
def test_codes_of_languages_are_known(code):
    assert is_language_code(code)


@pytest.mark.parametrize("name", ["", "salma", "p225", "a", "spk1", "ar-salma", "12", "en US", "x-vector"])
def test_names_are_no_codes_of_languages(name):
    assert not is_language_code(name)


def test_speaker_names_the_rows_without_one_and_no_other(tmp_path, capsys):
    manifest, out = said(tmp_path, capsys, [None, "omar", "nan", ""], speaker="salma")
    assert [row.speaker for row in manifest.rows] == ["salma", "omar", "salma", "salma"]
    assert "  3 rows name no speaker: they are the voice 'salma', as --speaker says\n" in out
    assert "  1 rows keep the speaker that they name: --speaker salma is not theirs\n" in out
    _, out = said(tmp_path, capsys, [None, None], speaker="salma")
    assert "keep the speaker" not in out


def test_the_command_takes_a_speaker(tmp_path, short_folder, model_folder, capsys):
    rows = [{"audio": str(short_folder / f"salma/00{n}.wav"), "text": "نعم"} for n in (0, 1)]
    manifest = write_jsonl(tmp_path / "m.jsonl", rows)
    given = {"manifest": manifest, "model": model_folder, "validate_only": True, "audio_root": short_folder}
    assert shard(**given, speaker="salma") == 0
    assert "  2 rows name no speaker: they are the voice 'salma', as --speaker says\n" in capsys.readouterr().out
