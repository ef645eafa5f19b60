"""Validation tells whether the model listens to the reference: positive where it does, nought where it can't."""

import contextlib
import io
import json
from collections import Counter

import numpy as np
import pytest

from engine.plan.plan import Pack, Sample
from engine.plan.swapped import swap_references
from preprocess.corpus.shards import Clip
from tests.fixtures import gate
from tests.fixtures.corpus import write_clips

OVERRIDES = ["run.precision=fp32", "run.evaluate_every=50", "run.save_every=100"]
OVERRIDES += ["batch.packs_per_step=1", "batch.max_tokens=4096", "optimizer.warmup_steps=5", "run.log_every=30"]


@pytest.fixture(scope="module")
def voices_corpus(tmp_path_factory, model_folder):
    """Short clips of one text in two voices, each voice one code per codebook; of 8 speakers 2 are held out."""
    rng = np.random.default_rng(0)
    voices = rng.integers(1024, size=(2, 8, 1), dtype=np.uint16)
    clips, speakers, splits = [], {}, {}
    for speaker in range(8):
        for number in range(4):
            key = f"s{speaker}_{number}"
            codes = np.repeat(voices[speaker % 2], 4, axis=1)
            clips.append(Clip(key, {"text": "سلام", "text_normalised": "سلام", "dialogues": []}, codes))
            speakers[key] = f"speaker{speaker}"
            splits[key] = "val" if speaker >= 6 else "train"
    folder = tmp_path_factory.mktemp("voices")
    return write_clips(folder, model_folder, clips, codebook_size=1024, speakers=speakers, splits=splits).folder


def train(model, data, out, num_steps, mutant=None):
    """The real loop for `num_steps` steps; the lines that it prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        gate.train(model, data, out, [*OVERRIDES, f"run.max_steps={num_steps}"], mutant)
    return printed.getvalue().splitlines()


def validation_lines(out):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "validation"]


def test_a_model_that_learnt_to_listen_to_the_reference_has_a_positive_gain(
    tmp_path, one_rank, model_folder, voices_corpus
):
    printed = one_rank.run(train, model_folder, voices_corpus, tmp_path, 50)[0]
    (line,) = validation_lines(tmp_path)
    assert line["conditioning_gain"] > 0.2
    assert not any("warning: the conditioning gain" in text for text in printed)


def test_a_model_that_sees_no_reference_has_none_and_the_run_says_so(tmp_path, one_rank, model_folder, voices_corpus):
    printed = one_rank.run(train, model_folder, voices_corpus, tmp_path, 10, "reference_codes_replaced")[0]
    (line,) = validation_lines(tmp_path)
    assert line["conditioning_gain"] == pytest.approx(0, abs=1e-6)
    assert any("warning: the conditioning gain is not positive" in text for text in printed)


def test_every_drawn_reference_becomes_another_speakers_and_nothing_else_changes():
    speakers = [0] * 7 + [1] * 2 + [2]
    drawn = [Sample(n, -1, (100 + n,), 50, speaker) for n, speaker in enumerate(speakers)]
    others = [Sample(20, -1, (), 30, 1), Sample(21, 0, (5,), 40, 0)]  # without a reference, and with a named one
    packs = [Pack((*drawn[:4], others[0])), Pack((others[1], *drawn[4:]))]
    swapped = swap_references(packs)
    assert swapped == swap_references(packs)
    pairs = [
        pair for old, new in zip(packs, swapped, strict=True) for pair in zip(old.samples, new.samples, strict=True)
    ]
    used = Counter()
    for old, new in pairs:
        if old in others:
            assert new == old
            continue
        assert (new.target, new.dialogue, new.speaker) == (old.target, old.dialogue, old.speaker)
        (reference,) = new.references
        assert speakers[reference - 100] != old.speaker
        used[reference] += 1
    assert len(pairs) == len(drawn) + 2
    assert set(used) >= {107, 108, 109}, "all speakers serve as the others of the one with most samples"


def test_one_speaker_has_nobody_to_swap_with():
    assert (
        swap_references([Pack((Sample(0, -1, (1,), 9, 4), Sample(1, -1, (0,), 9, 4), Sample(2, -1, (), 9, 5)))]) == []
    )
