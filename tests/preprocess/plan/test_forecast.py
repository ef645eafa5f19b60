"""The previews and the start of a run say what can't be had after the encode."""

import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from engine.base.recipe import load_recipe
from engine.batch.sample import layout_cost
from engine.plan.of_run import training_plan
from engine.plan.plan import Plan
from preprocess.audio.decode import Header
from preprocess.corpus.base_model import read_base_model
from preprocess.corpus.dialogue import DEFAULT_SYSTEM_TEXT
from preprocess.finish.held_out import plan_validation
from preprocess.plan import forecast as forecast_file
from preprocess.plan.clips import ClipPlan, ClipTable
from preprocess.plan.forecast import disk_line, forecast, read_frame_rate, text_lines
from preprocess.plan.screening import Screening
from tests.fixtures.steps import ROOT
from tests.preprocess.helpers import shard, write_jsonl

RATE_HZ = 16000


def settings(**changes):
    usual = {
        "screening": Screening(),
        "layout": "canonical",
        "val_speakers": "0.02",
        "seed": 0,
        "system_text": DEFAULT_SYSTEM_TEXT,
        "audio_tokenizer": None,
        "out": None,
        "waveforms": "flac",
    }
    return SimpleNamespace(**(usual | changes))


def clips_of(voices, clips_each=3, text="صباح الخير"):
    """(table, headers) of clips of 3 s."""
    names = [(f"v{voice}", f"v{voice}c{number}") for voice in range(voices) for number in range(clips_each)]
    clips = {
        key: ClipPlan(key, f"{key}.wav", f"/{key}.wav", text, speaker, draws_reference=True) for speaker, key in names
    }
    return ClipTable(clips, [], [], 0), {key: Header(96_000, 3.0) for key in clips}


def lines(model_folder, given, table, headers):
    base = read_base_model(model_folder)
    return "\n".join(forecast(given, base, table, headers, plan_validation(given, table, headers)))


@pytest.mark.parametrize(
    ("voices", "val_speakers", "expected"),
    [
        (1, "0.02", "warning: no voice will be held out"),
        (2, "0.02", "warning: no voice will be held out"),
        (3, "0.02", "warning: one voice will be held out for validation: no conditioning gain can be measured"),
        (4, "0.02", None),
        (30, "0.02", None),
        (30, "1", "warning: one voice will be held out"),
        (30, "0", "warning: no voice will be held out"),
        (30, "2", None),
    ],
)
def test_too_few_voices_for_a_conditioning_gain_are_said_before(model_folder, voices, val_speakers, expected):
    said = lines(model_folder, settings(val_speakers=val_speakers), *clips_of(voices))
    assert (expected in said) if expected else ("held out" not in said)
    assert ("or give --val-speakers 2" in said) is bool(expected)


def test_the_validation_manifest_decides_where_there_is_one(model_folder):
    table, headers = clips_of(4)
    table.validation = {"v0c0", "v0c1"}
    assert "warning: one voice" in lines(model_folder, settings(), table, headers)
    table.validation = {"v0c0", "v1c1"}
    assert "held out" not in lines(model_folder, settings(), table, headers)


def test_digits_and_tokens_per_character_are_said():
    texts = {"a": "في ٣ أيام", "b": "نعم", "c": "room 12", "d": "لا"}
    said = list(text_lines(texts, dict.fromkeys(texts, 2)))
    assert said[0].startswith("digits: in 2 of 4 transcripts (50.0%): a digit can be read aloud in several ways")
    assert said[1].startswith(f"text: {8 / sum(map(len, texts.values())):.2f} tokens per character")
    assert len(said) == 2
    said = list(text_lines({"b": "نعم"}, {"b": 6}))
    assert said[0] == "digits: in 0 of 1 transcripts (0.0%)"
    assert said[2].startswith("  warning: more than one")


def test_the_frame_rate_is_the_codecs(codec_folder, tmp_path):
    assert read_frame_rate(codec_folder) == 25.0
    (tmp_path / "config.json").write_text("{}")
    assert read_frame_rate(tmp_path) is None


def test_without_a_codec_lengths_are_unknown(model_folder):
    assert "unknown without the codec's frame rate" in lines(model_folder, settings(), *clips_of(4))


def test_lengths_and_steps_are_those_of_the_plan(
    tmp_path, short_folder, model_folder, codec_folder, hubert_folder, capsys
):
    """What the start of the run said is what the engine plans on the finished corpus, but for a few frames."""
    sources = sorted(short_folder.rglob("*.wav"))
    rows = []
    for number in range(24):
        samples, rate_hz = soundfile.read(sources[number % len(sources)])
        again = np.concatenate([samples] * (1 + number % 5)) * (1 - number / 100)
        soundfile.write(tmp_path / f"{number}.wav", again, rate_hz)
        rows.append({"audio": f"{number}.wav", "text": "صباح الخير " * (1 + number % 3), "speaker": f"v{number % 4}"})
    tools = {"model": model_folder, "audio_tokenizer": codec_folder, "hubert": hubert_folder, "workers": 1}
    out = tmp_path / "out"
    assert shard(manifest=write_jsonl(tmp_path / "m.jsonl", rows), out=out, **tools) == 0
    said = capsys.readouterr().out
    samples, tokens = re.search(r"an epoch: (\d+) samples, about ([\d,]+) tokens", said).groups()
    longest = int(re.search(r"longest sample: about ([\d,]+) tokens", said)[1].replace(",", ""))
    assert "about 1 steps of 4 x 4,096 tokens" in said
    assert re.search(r"disk: at most [\d.,]+ GB for the shards, [\d.,]+ GB free in ", said)

    from engine.plan.corpora import Corpora

    corpora, base = Corpora([out]), read_base_model(model_folder)
    cost = layout_cost(base.tokenizer, base.config, DEFAULT_SYSTEM_TEXT)
    recipe = load_recipe(ROOT / "launch/recipes/demo.yaml")
    plan: Plan = training_plan(corpora, recipe, cost)
    epochs = [plan.epoch(number) for number in range(10)]
    assert int(samples) == len(epochs[0].order)
    mean = np.mean([epoch.num_tokens.sum() for epoch in epochs])
    assert int(tokens.replace(",", "")) == pytest.approx(mean, rel=0.05)
    assert longest == pytest.approx(max(epoch.drawn.tokens.max() for epoch in epochs), abs=8)
    needed = float(re.search(r"disk: at most ([\d.]+) GB", said)[1]) * 1e9
    assert sum(path.stat().st_size for path in out.glob("shard-*.tar")) <= needed + 5e5


def test_a_disk_with_too_little_room_is_warned_of(tmp_path, monkeypatch):
    usage = SimpleNamespace(free=5_000_000_000)
    monkeypatch.setattr(forecast_file.shutil, "disk_usage", lambda folder: usage)
    out = tmp_path / "a" / "b"
    assert disk_line(out, 4e9) == f"disk: 4.000 GB for the shards, 5.000 GB free in {tmp_path}"
    said = disk_line(out, 6e9, "at most ")
    assert said.startswith(f"warning: disk: at most 6.000 GB for the shards, 5.000 GB free in {tmp_path}: ")
    out.mkdir(parents=True)
    (out / "shard-000000.tar").write_bytes(bytes(2_000_000))
    assert "disk: 0.998 GB" in disk_line(out, 1e9)


@pytest.mark.parametrize("preview", ["validate_only", "dry_run"])
def test_previews_say_it_too(tmp_path, short_folder, model_folder, codec_folder, capsys, preview):
    shutil.copytree(short_folder, tmp_path / "audio")
    manifest = tmp_path / "audio/corpus.jsonl"
    assert shard(manifest=manifest, model=model_folder, audio_tokenizer=codec_folder, **{preview: True}) == 0
    said = capsys.readouterr().out
    for words in ("digits: in 0 of 8", "tokens per character", "longest sample: about", "an epoch: "):
        assert words in said
