"""Noise in transcripts is reported by kind with examples, in previews and runs; a recipe may drop it."""

import json
import shutil

import pytest
import soundfile

from preprocess.corpus.shards import Corpus
from tests.preprocess.helpers import assert_parts, row_failure, shard, write_jsonl

RATE_HZ = 22050


@pytest.fixture(scope="module")
def noisy(tmp_path_factory, short_folder):
    """Twelve rows with their audio: seven with noise, one of them only in its reference, and one too long to say."""
    folder = tmp_path_factory.mktemp("noisy")
    sources = sorted(short_folder.rglob("*.wav"))
    texts = ["نعم &amp; لا", "<b>نعم</b>", "نعم\\nلا", "nan", "نعم\0 لا", "Ø§Ù„Ø³Ù„Ø§Ù…", "<i>نعم</i>", "كلمة" * 750]
    texts += ["صباح الخير", "مساء الخير", "شكرا جزيلا", "مع السلامة"]
    rows = []
    for number, text in enumerate(texts):
        shutil.copy(sources[number % len(sources)], folder / f"{number}.wav")
        samples, _ = soundfile.read(folder / f"{number}.wav")
        soundfile.write(folder / f"{number}.wav", samples * (1 - number / 100), RATE_HZ)
        rows.append({"audio": f"{number}.wav", "text": text, "speaker": f"voice{number % 4}", "language": "ar"})
    return write_jsonl(folder / "m.jsonl", rows)


@pytest.mark.parametrize("preview", ["validate_only", "dry_run"])
def test_previews_count_noise_by_kind_with_examples(noisy, model_folder, capsys, preview):
    assert shard(manifest=noisy, model=model_folder, **{preview: True}) == 0
    said = capsys.readouterr().out
    assert "  tags, HTML or XML tags such as <b>: 2 rows\n    m.jsonl line 2: '<b>نعم</b>'\n" in said
    assert "  html_entities, HTML entities such as &amp;: 1 rows\n    m.jsonl line 1: 'نعم &amp; لا'\n" in said
    assert "    m.jsonl line 5: 'نعم\\x00 لا'\n" in said
    assert (
        "  letters_without_time, more than 40 letters per second of the file: 1 rows\n    7.wav: 3,000 letters"
        in said
    )
    for kind in ("escapes", "missing_value", "control_characters", "mojibake"):
        assert f"  {kind}, " in said


def test_a_run_reports_noise_in_its_summary_in_corpus_json_and_on_the_page(
    tmp_path, noisy, model_folder, codec_folder, hubert_folder, capsys
):
    (tmp_path / "s.yaml").write_text("drop_text_noise: [missing_value, tags]")
    tools = {"model": model_folder, "audio_tokenizer": codec_folder, "hubert": hubert_folder, "workers": 1}
    out = tmp_path / "out"
    assert shard(manifest=noisy, out=out, screening=tmp_path / "s.yaml", **tools) == 0
    corpus = Corpus(out)
    counts = {kind: facts["rows"] for kind, facts in corpus.info["text_noise"].items()}
    expected = dict.fromkeys(
        ("control_characters", "escapes", "html_entities", "letters_without_time", "missing_value", "mojibake"), 1
    )
    assert counts == {**expected, "latin_for_arabic": 1, "tags": 2}
    assert "noise in transcripts, rows by kind: 1 control_characters, " in capsys.readouterr().out
    page = (out / "report.html").read_text()
    assert "m.jsonl line 1: &#x27;نعم &amp;amp; لا&#x27;" in page
    assert "Noise in transcripts" in page
    assert corpus.info["rows"] == {"written": 9, "merged": 0, "screened": 3, "failed": 0}
    for line, kind in ((2, "tags"), (4, "missing_value"), (7, "tags")):
        assert row_failure(out, line)["reason"] == kind
    found, expected_words = (
        "HTML or XML tags such as <b>: '<b>نعم</b>'",
        "words that are spoken (drop_text_noise: tags)",
    )
    assert_parts(row_failure(out, 2), "m.jsonl line 2", found, expected_words, "leave tags out of drop_text_noise")
    assert "\0" not in json.dumps([corpus.meta(row)["text_normalised"] for row in range(9)], ensure_ascii=False)
