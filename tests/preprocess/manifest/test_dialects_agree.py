"""The same corpus in every dialect gives the same clips; a file that can be read in two ways is refused."""

import contextlib
import csv
import gzip
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocess.common.errors import InputError
from preprocess.corpus.dialogue import DEFAULT_SYSTEM_TEXT
from preprocess.manifest.read import read_manifest
from preprocess.plan.clips import build_clips
from tests.fixtures.asterisk import INSTALL, prompts
from tests.preprocess.helpers import write_jsonl


class Utterance(NamedTuple):
    id: str
    audio: str
    text: str
    speaker: str
    start: float | None = None
    end: float | None = None


def read_clips(path):
    """{(audio file, start, end): (text, speaker)} of a corpus's clips; all rows must be usable."""
    manifest = read_manifest(path, ["<|eot_id|>"], DEFAULT_SYSTEM_TEXT)
    table = build_clips(manifest, path if path.is_dir() else path.parent)
    assert not manifest.rejected + table.rejected, (manifest.rejected + table.rejected)[0][1]
    return {
        (Path(clip.path).name, *(None if t is None else round(t, 6) for t in clip.part[:2])): (
            clip.text,
            clip.speaker,
        )
        for clip in table.clips.values()
    }


def expected_clips(corpus):
    return {(Path(u.audio).name, u.start, u.end): (u.text, u.speaker) for u in corpus}


def by_columns(u):
    return {"audio": u.audio, "text": u.text, "speaker": u.speaker, "id": u.id, "start": u.start, "end": u.end}


def as_delimited(name, sign):
    def write(folder, corpus):
        with open(folder / name, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(by_columns(corpus[0])), delimiter=sign)
            writer.writeheader()
            writer.writerows(map(by_columns, corpus))
        return folder / name

    return write


def as_jsonl(folder, corpus):
    return write_jsonl(folder / "m.jsonl", [by_columns(u) for u in corpus])


def as_parquet(folder, corpus):
    pq.write_table(pa.Table.from_pylist([by_columns(u) for u in corpus]), folder / "m.parquet")
    return folder / "m.parquet"


def as_nemo(folder, corpus):
    rows = []
    for u in corpus:
        row = {"audio_filepath": u.audio, "text": u.text, "speaker": u.speaker, "duration": 3.0}
        part = {} if u.start is None else {"offset": u.start, "duration": u.end - u.start}
        rows.append(row | part)
    return write_jsonl(folder / "m.json", rows)


def as_kaldi(folder, corpus):
    parts = any(u.start is not None for u in corpus)
    recordings = {u.audio: f"r{n}" for n, u in enumerate(corpus)} if parts else {u.audio: u.id for u in corpus}
    files = {
        "wav.scp": [f"{name} {audio}" for audio, name in recordings.items()],
        "text": [f"{u.id} {u.text}" for u in corpus],
        "utt2spk": [f"{u.id} {u.speaker}" for u in corpus],
        "spk2gender": [f"{u.speaker} f" for u in corpus],
    }
    if parts:
        files["segments"] = [f"{u.id} {recordings[u.audio]} {u.start} {u.end}" for u in corpus]
    (folder / "kaldi").mkdir()
    for name, lines in files.items():
        (folder / "kaldi" / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "kaldi"


def as_lhotse(folder, corpus):
    """One cut per utterance, which begins somewhat before it."""
    cuts = []
    for u in corpus:
        source = {"type": "file", "channels": [0], "source": u.audio}
        recording = {
            "id": u.audio,
            "sources": [source],
            "sampling_rate": 16000,
            "duration": 3.0,
            "num_samples": 48000,
        }
        start, end = (0.0, 3.0) if u.start is None else (u.start, u.end)
        before = min(start, 0.25)
        said = {"id": u.id, "recording_id": u.audio, "start": before, "duration": end - start, "channel": 0}
        said |= {"text": u.text, "speaker": u.speaker, "language": "ar"}
        cut = {"id": f"cut-{u.id}", "start": start - before, "duration": end - start + before, "channel": 0}
        cuts.append({**cut, "supervisions": [said], "recording": recording, "type": "MonoCut"})
    path = folder / "cuts.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, cuts)).encode()))
    return path


def as_chatml(folder, corpus):
    rows = []
    for u in corpus:
        part = {} if u.start is None else {"offset": u.start, "duration": u.end - u.start}
        target = {"type": "audio", "audio_url": u.audio, "duration": 3.0, **part}
        turns = [{"role": "user", "content": u.text}, {"role": "assistant", "content": [target]}]
        rows.append({"messages": turns, "speaker": u.speaker})
    return write_jsonl(folder / "chatml.jsonl", rows)


def as_pipes(*names, header="", name="metadata.csv"):
    def write(folder, corpus):
        lines = ["|".join(getattr(u, field) for field in names) for u in corpus]
        (folder / name).write_text("\n".join([*([header] if header else []), *lines]), encoding="utf-8")
        return folder / name

    return write


Writer = Callable[[Path, Sequence[Utterance]], Path]
WITH_TIMES: dict[str, Writer] = {
    "csv": as_delimited("m.csv", ","),
    "csv with ;": as_delimited("n.csv", ";"),
    "tsv": as_delimited("m.tsv", "\t"),
    "jsonl": as_jsonl,
    "parquet": as_parquet,
    "NeMo": as_nemo,
    "Kaldi": as_kaldi,
    "lhotse": as_lhotse,
    "ChatML": as_chatml,
}
NAMED: dict[str, Writer] = {
    "XTTS": as_pipes("audio", "text", "speaker", header="audio_file|text|speaker_name"),
    "piper with a header": as_pipes("id", "speaker", "text", header="id|speaker|text", name="m.txt"),
}
BY_CONTENT: dict[str, Writer] = {
    "piper": as_pipes("id", "speaker", "text"),
    "XTTS without a header": as_pipes("audio", "text", "speaker", name="x.csv"),
    "VITS": as_pipes("audio", "speaker", "text", name="v.txt"),
}

_SOME = ["مرحبا", "بكم", "نعم", "كيف", "hello", "there", "no", "yes", "5", "it's"]
WORDS = st.lists(st.sampled_from(_SOME), min_size=1, max_size=7)
TEXTS = WORDS.map(" ".join).filter(lambda text: text != "5")
SPEAKERS = st.sampled_from(["salma", "omar", "p225", "7", "سلمى"])


@st.composite
def corpora(draw, with_times):
    said = draw(st.lists(st.tuples(TEXTS, SPEAKERS), min_size=1, max_size=14))
    times = [0.001 * t for t in sorted(draw(st.sets(st.integers(0, 10**5), min_size=28, max_size=28)))]
    corpus = []
    for n, (text, speaker) in enumerate(said):
        audio = f"wavs/talk{n % 2}.wav" if with_times else f"wavs/utt{n}.wav"
        part = (round(times[2 * n], 3), round(times[2 * n + 1], 3)) if with_times else (None, None)
        corpus.append(Utterance(f"utt{n}", audio, text, speaker, *part))
    return corpus


def write_recordings(folder, corpus):
    for u in corpus:
        (folder / u.audio).parent.mkdir(exist_ok=True, parents=True)
        (folder / u.audio).touch()


@pytest.mark.parametrize("dialect", WITH_TIMES)
@pytest.mark.parametrize("with_times", [True, False])
@given(data=st.data())
@settings(deadline=None, max_examples=20)
def test_the_same_corpus_gives_the_same_clips(dialect, with_times, data, tmp_path_factory):
    folder, corpus = tmp_path_factory.mktemp("corpus"), data.draw(corpora(with_times))
    assert read_clips(WITH_TIMES[dialect](folder, corpus)) == expected_clips(corpus)


@pytest.mark.parametrize("dialect", NAMED)
@given(corpus=corpora(with_times=False))
@settings(deadline=None, max_examples=20)
def test_pipes_with_a_header_give_the_same_clips(dialect, corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    write_recordings(folder, corpus)
    assert read_clips(NAMED[dialect](folder, corpus)) == expected_clips(corpus)


@pytest.mark.parametrize("dialect", BY_CONTENT)
@given(corpus=corpora(with_times=False))
@settings(deadline=None, max_examples=80)
def test_pipes_without_a_header_give_the_same_clips_or_are_refused(dialect, corpus, tmp_path_factory):
    """A corpus of one line shows nothing, and ten lines of ten voices no more."""
    folder = tmp_path_factory.mktemp("corpus")
    write_recordings(folder, corpus)
    path = BY_CONTENT[dialect](folder, corpus)
    with contextlib.suppress(InputError):
        assert read_clips(path) == expected_clips(corpus)


PROMPTS = prompts()
INSTALLED = pytest.mark.skipif(not PROMPTS, reason=f"no prompts of Asterisk with their texts: {INSTALL}")


@pytest.fixture(scope="module")
def human_corpus(tmp_path_factory):
    """All installed prompts of Asterisk, under two voices' names; names of files are no ids of their own there."""
    folder = tmp_path_factory.mktemp("prompts")
    chooser = random.Random(0)
    corpus = []
    for number, (_, row) in enumerate(PROMPTS):
        if "|" not in row["text"]:
            name = f"{row['language']}{number:04}"
            speaker = chooser.choice(["allison", "june"])
            corpus.append(Utterance(name, f"wavs/{name}.wav", " ".join(row["text"].split()), speaker))
    write_recordings(folder, corpus)
    return folder, corpus


@INSTALLED
@pytest.mark.parametrize("dialect", WITH_TIMES | NAMED | BY_CONTENT)
def test_the_prompts_of_asterisk_are_the_same_clips_in_every_dialect(dialect, human_corpus):
    folder, corpus = human_corpus
    assert len(corpus) > 100
    assert read_clips((WITH_TIMES | NAMED | BY_CONTENT)[dialect](folder, corpus)) == expected_clips(corpus)
