"""report.html: one file, the same for the same corpus, and nothing in a manifest can make it do anything."""

import base64
import re
import shutil
from html.parser import HTMLParser

import pytest

from preprocess.corpus.shards import Corpus
from preprocess.finish.corpus_page import REPORT_FILE, write_report
from tests.preprocess.helpers import shard, write_jsonl

HOSTILE = "</title></div><script>alert(1)</script> \" ' & <img src=x onerror=alert(2)>"
EMPTY_TAGS = {"meta", "br"}


class Reader(HTMLParser):
    """Every tag opened and closed in order, all attributes, the text, and the cells of each table row."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.attributes, self.rows, self.data = [], [], [], [], ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in EMPTY_TAGS:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.data += data
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data


def report(folder):
    return (folder / REPORT_FILE).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory, short_folder, model_folder, codec_folder, hubert_folder):
    """Two clips and a row whose file is missing, every text of them hostile; no waveforms."""
    folder = tmp_path_factory.mktemp("hostile")
    shutil.copy(short_folder / "omar/000.wav", folder / "a&b.wav")
    shutil.copy(short_folder / "salma/000.wav", folder / "b.wav")
    about = {"speaker": HOSTILE, "language": HOSTILE}
    rows = [
        {"audio": "a&b.wav", "text": f"{HOSTILE} نعم ٣", **about},
        {"audio": "b.wav", "text": HOSTILE, **about},
        {"audio": "<script>.wav", "text": HOSTILE, **about},
    ]
    tools = {"model": model_folder, "audio_tokenizer": codec_folder, "hubert": hubert_folder}
    manifest = write_jsonl(folder / "m.jsonl", rows)
    assert shard(manifest=manifest, out=folder / "out", workers=1, waveforms="none", val_speakers=0, **tools) == 0
    return folder / "out"


def test_nothing_in_a_manifest_becomes_markup(hostile):
    page = report(hostile)
    reader = Reader(page)
    assert {"script", "img"}.isdisjoint(reader.tags)
    assert "<script" not in page
    assert "<img" not in page
    assert HOSTILE in reader.data  # the speaker is shown, as the text it is
    assert not [name for name, _ in reader.attributes if name.startswith("on")]


def test_it_needs_no_network_and_no_script(speech_corpus, hostile):
    for folder in (speech_corpus, hostile):
        page = report(folder)
        reader = Reader(page)
        assert not re.search(r"https?:|url\(|@import", page)
        assert {"script", "link", "iframe"}.isdisjoint(reader.tags)
        sources = [value for name, value in reader.attributes if name in ("src", "href")]
        assert [source for source in sources if not source.startswith("data:audio/flac;base64,")] == []


def test_the_same_corpus_has_the_same_report(speech_corpus, tmp_path):
    copy = tmp_path / "elsewhere"
    shutil.copytree(speech_corpus, copy)
    (copy / REPORT_FILE).unlink()
    write_report(copy)
    assert (copy / REPORT_FILE).read_bytes() == (speech_corpus / REPORT_FILE).read_bytes()


def test_ten_clips_can_be_heard(speech_corpus):
    corpus = Corpus(speech_corpus)
    assert corpus.index.num_rows > 10
    stored = {corpus.clip(row, waveform=True).flac for row in range(corpus.index.num_rows)}
    heard = [base64.b64decode(data) for data in re.findall(r"data:audio/flac;base64,([^\"]+)", report(speech_corpus))]
    assert len(heard) == len(set(heard)) == 10
    assert set(heard) <= stored


def test_a_corpus_without_waveforms_says_so(hostile):
    reader = Reader(report(hostile))
    assert "audio" not in reader.tags
    assert "The shards hold no waveforms" in reader.data


def test_hours_and_figures_are_those_of_the_corpus(speech_corpus):
    reader, corpus = Reader(report(speech_corpus)), Corpus(speech_corpus)
    index = corpus.index.to_pylist()
    for column in ("language", "speaker"):
        values = {row[column] for row in index}
        start = reader.rows.index([column, "hours", "clips", ""])
        shown = {row[0]: row[1:3] for row in reader.rows[start + 1 : start + 1 + len(values)]}
        for value in values:
            seconds = [row["duration_sec"] for row in index if row[column] == value]
            assert shown[value] == [f"{sum(seconds) / 3600:.3f}", str(len(seconds))]
    for title in ("Duration", "Loudness (RMS)", "Bandwidth", "Pace", "Code entropy", "Silence"):
        assert title in reader.data
    assert reader.tags.count("svg") == 6  # silero-vad was not asked for
    assert reader.tags.count("rect") == 6 * 10
    assert ["settings.screening.min_duration_sec", "0.5"] in reader.rows
    assert "Nothing." in reader.data
    assert f"{corpus.info['hours']:.2f}hours" in reader.data


def test_what_was_dropped_is_counted_with_its_reason_and_an_example(hostile):
    reader = Reader(report(hostile))
    (row,) = [row for row in reader.rows if row[:2] == ["failed", "missing_file"]]
    assert row[2:4] == ["1", "0.000"]
    assert "<script>.wav): no such file" in row[4]
    assert "2 written0 merged0 screened1 failed" in reader.data
    assert "transcripts with digits (5)" in reader.data
