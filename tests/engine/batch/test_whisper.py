"""Whisper conditioning: what the tower hears stands in the packed stream as Boson's collator and model have it."""

import io
import re

import numpy as np
import pytest
import soundfile
import torch
import torch.distributed as dist

from engine.base import zero
from engine.base.ranks import packs_of_rank
from engine.base.trainable_base import read_trainable_base
from engine.base.watchdog import Watchdog
from engine.batch.loader import WaitClock
from engine.batch.sample import build_sample, make_collator, make_padded_batch
from engine.batch.stream import make_stream
from engine.loop import train_step
from engine.model.forward import LossModel
from engine.model.lora import find_targets
from engine.model.weights import load_base
from engine.monitor.metrics import sum_over_ranks
from engine.run import build_engine
from launch.demo.small_model import build_model
from launch.show import main as show
from preprocess.common.errors import InputError
from preprocess.corpus.dialogue import canonical_dialogue
from preprocess.corpus.shards import Clip, Corpus
from tests.fixtures.corpus import write_clips
from tests.fixtures.steps import adapted_model, loss_and_gradients, make_job

SYSTEM_TEXT = "Generate audio following instruction."


@pytest.fixture(scope="module")
def tower_folder(tmp_path_factory):
    return build_model(tmp_path_factory.mktemp("tower") / "base", audio_tower=True, seed=3)


def clip(key, seconds, seed):
    """Random codes, and noise as their 16 kHz waveform."""
    rng = np.random.default_rng(seed)
    buffer = io.BytesIO()
    soundfile.write(buffer, 0.2 * rng.standard_normal(int(seconds * 16000)), 16000, format="FLAC")
    codes = rng.integers(1024, size=(8, int(25 * seconds)), dtype=np.uint16)
    return Clip(key, {}, codes, buffer.getvalue())


TARGET = clip("target", 0.8, 0)
SHORT, LONG = clip("short", 0.93, 1), clip("long", 4.5, 2)  # the tower of the fixture hears 2 s at once
REFERENCES = [[("one two", SHORT)], [], [("three", LONG), ("four", SHORT)]]


def samples(folder, conditioning, references=REFERENCES):
    """Built anew for each use: Boson's collator writes into them."""
    base = read_trainable_base(folder)
    tokenizer, config = base.tokenizer, base.config
    built = []
    for pairs in references:
        dialogue = canonical_dialogue("five six", [(c.key, text) for text, c in pairs])
        clips = [c for _, c in pairs]
        built.append(build_sample(tokenizer, config, SYSTEM_TEXT, dialogue, TARGET, clips, conditioning))
    return built


@pytest.mark.parametrize("conditioning", ["whisper", "both"])
def test_packed_equals_bosons_collator_and_forward(tower_folder, conditioning):
    model, config = adapted_model(tower_folder, "both"), read_trainable_base(tower_folder).config
    theirs = loss_and_gradients(model, make_padded_batch(samples(tower_folder, conditioning), config), 3)
    ours = loss_and_gradients(model, make_stream(samples(tower_folder, conditioning), config), 3)
    for found, expected in zip(ours[0], theirs[0], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for name, gradient in theirs[1].items():
        assert gradient.norm() > 0, f"{name} has no gradient, so the comparison proves nothing for it"
        assert (ours[1][name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-9, name


def test_features_in_the_towers_dtype_change_no_bit(tower_folder):
    config = read_trainable_base(tower_folder).config
    model = LossModel(load_base(tower_folder, torch.bfloat16))
    streams = [
        make_stream(samples(tower_folder, "both"), config, None, dtype) for dtype in (torch.float32, torch.bfloat16)
    ]
    assert [stream.tower.features.dtype for stream in streams] == [torch.float32, torch.bfloat16]
    assert not torch.equal(streams[0].tower.features, streams[1].tower.features.float()), "nothing was rounded"
    with torch.no_grad():
        full, half = (model(stream) for stream in streams)
    for found, expected in zip(half, full, strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_a_run_loads_features_in_its_precision(precision, dtype, one_rank, tower_folder, heard_corpus, tmp_path):
    assert one_rank.run(dtype_of_features, tower_folder, heard_corpus, tmp_path, precision) == [dtype]


def dtype_of_features(model, data, out, precision):
    job = make_job(model, data, out, ["conditioning=both", f"run.precision={precision}"])
    return job.reader[job.plan.step(0).packs[0]].batch.tower.features.dtype


def test_without_a_waveform_in_the_pack_the_projector_has_gradients_of_zero(tower_folder):
    model, config = adapted_model(tower_folder, "both"), read_trainable_base(tower_folder).config
    unheard = [[], []]
    with torch.no_grad():
        theirs = model(make_padded_batch(samples(tower_folder, "both", unheard), config))
    sums, gradients = loss_and_gradients(model, make_stream(samples(tower_folder, "both", unheard), config), 3)
    torch.testing.assert_close(sums.audio, theirs.audio, rtol=1e-5, atol=1e-5)
    projector = [gradient for name, gradient in gradients.items() if "audio_encoder_proj" in name]
    assert len(projector) == 2
    assert all(gradient.count_nonzero() == 0 for gradient in projector)


def test_the_target_is_predicted_from_what_is_heard(tower_folder):
    model, config = adapted_model(tower_folder, "both"), read_trainable_base(tower_folder).config
    other = Clip("short", {}, SHORT.codes, clip("other", 0.93, 5).flac)
    with torch.no_grad():
        losses = [
            float(model(make_stream(samples(tower_folder, "whisper", [[("one two", c)]]), config)).audio.sum())
            for c in (SHORT, other)
        ]
    assert losses[0] != losses[1]


def test_a_waveform_longer_than_the_tower_is_chunked_as_bosons_collator_chunks_it(tower_folder):
    config = read_trainable_base(tower_folder).config
    (sample,) = samples(tower_folder, "both", [[("three", LONG)]])
    is_heard = sample.input_ids == config.audio_in_token_idx
    assert int(is_heard.sum()) == 3
    whole = samples(tower_folder, "both", [[("three", SHORT)]])[0]
    whole.audio_waveforms_concat = torch.from_numpy(soundfile.read(io.BytesIO(LONG.flac), dtype="float32")[0])
    # Boson's chunking forgets that codes are counted after the chunks: it is given what it would look for.
    whole.audio_ids_concat, whole.audio_ids_start = sample.audio_ids_concat, sample.audio_ids_start
    theirs = make_collator(config)([whole])
    assert theirs.input_ids[0].tolist() == sample.input_ids.tolist()
    ours = make_stream([sample], config)
    assert torch.equal(ours.tower.features, theirs.audio_features)
    assert torch.equal(ours.tower.feature_mask, theirs.audio_feature_attention_mask)


@pytest.fixture(scope="module")
def heard_corpus(tmp_path_factory, tower_folder):
    """Six clips of one speaker, with waveforms of lengths round those that the tower hears at once.

    The last names its reference; it and another have a system text of their own.
    """
    clips = [clip(f"c{number}", sec, number) for number, sec in enumerate([0.5, 1.9999, 2.0, 2.3, 4.5, 0.6])]
    for number, written in enumerate(clips):
        written.meta.update(text=f"text {number}", text_normalised=f"text {number}", dialogues=[])
    clips[5].meta["dialogues"] = [canonical_dialogue("said", [("c3", "so"), ("c0", "and so")], "Whisper.")]
    clips[2].meta["system_text"] = "Whisper, far away."
    splits = {"c4": "val"}
    return write_clips(
        tmp_path_factory.mktemp("heard"), tower_folder, clips, codebook_size=1024, splits=splits
    ).folder


@pytest.mark.parametrize("conditioning", ["whisper", "both"])
def test_show_names_each_waveform_that_the_tower_hears(heard_corpus, tower_folder, tmp_path, capsys, conditioning):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"conditioning: {conditioning}")
    assert show([str(heard_corpus), "c5", "--model", str(tower_folder), "--recipe", str(recipe)]) == 0
    said = capsys.readouterr().out
    assert "sample 1 of 1 in epoch 0; named by its row: c3, c0" in said
    tower = [line.rpartition(": ")[2] for line in said.splitlines() if "a waveform for the audio tower" in line]
    assert tower == ["c3", "c3", "c0"], "2.3 s are two chunks"
    shown_as_codes = re.findall(r"audio columns: (\w+ \w+),", said)
    references = ["reference c3", "reference c0"] if conditioning == "both" else []
    assert shown_as_codes == [*references, "target c5"]


@pytest.mark.parametrize("conditioning", ["whisper", "both", "codes"])
def test_the_plan_counts_what_the_stream_holds(one_rank, tower_folder, heard_corpus, tmp_path, conditioning):
    planned, held, text_count = one_rank.run(
        lengths_of_all_packs, tower_folder, heard_corpus, tmp_path, conditioning
    )[0]
    assert planned == held
    assert text_count == [3 * 5] * 2, "labels of the step that the plan knows"


def lengths_of_all_packs(model, data, out, conditioning):
    """Tokens of each pack of two epochs by the plan, and as the reader lays them out."""
    overrides = [f"conditioning={conditioning}", "batch.packs_per_step=2", "batch.max_tokens=600"]
    job = make_job(model, data, out, overrides)
    steps = [job.plan.step(number) for number in range(2 * job.plan.num_steps(0))]
    streams = [job.reader[pack].batch for step in steps for pack in step.packs]
    text_count = [step.text_count for step in steps]
    return [p.num_tokens for step in steps for p in step.packs], [len(s.position_ids) for s in streams], text_count


def test_a_launched_step_trains_the_projector_and_every_rank_agrees(two_ranks, tower_folder, heard_corpus, tmp_path):
    losses, moved = zip(*two_ranks.run(train_a_little, tower_folder, heard_corpus, tmp_path / "run"), strict=True)
    assert losses[0] == losses[1]
    assert losses[0][-1] < losses[0][0]
    assert all(moved), "lora_B of the projector is zero before the first step"


def train_a_little(model, data, out):
    """Audio losses of four steps through DeepSpeed, and whether the projector's lora_B moved."""
    overrides = ["conditioning=both", "batch.packs_per_step=2", "batch.max_tokens=600", "run.precision=fp32"]
    job = make_job(model, data, out, [*overrides, "optimizer.lr=1e-2"])
    engine = build_engine(job)
    losses = []
    for number in range(4):
        step = job.plan.step(number)
        mine = packs_of_rank(2, dist.get_rank(), dist.get_world_size())
        clock = WaitClock(job.reader[step.packs[pack]] for pack in mine)
        sums = sum_over_ranks(train_step(engine, clock, step, number, 1e-2, job.recipe, Watchdog(0))[0])
        losses.append(float(sums.audio.sum()) / step.audio_count)
    masters = zero.gather_masters(engine)
    engine.destroy()
    (projector,) = (m for name, m in masters.items() if "audio_encoder_proj" in name and "lora_B" in name)
    return losses, bool(projector.any())


def test_hearing_is_refused_where_nothing_can_be_heard(one_rank, model_folder, tower_folder, heard_corpus, tmp_path):
    error = one_rank.run(refusal, model_folder, heard_corpus, tmp_path)[0]
    assert "no audio tower" in error
    assert "conditioning=codes" in error


def refusal(model, data, out):
    try:
        make_job(model, data, out, ["conditioning=whisper"])
    except InputError as error:
        return str(error)


PROMPTS = {
    "whisper": ["user: <heard>one two", "user: five six"],
    "both": ["user: <heard>one two", "assistant: <spoken>", "user: five six"],
}


@pytest.mark.parametrize("conditioning", PROMPTS)
def test_where_the_reference_stands(tower_folder, conditioning):
    (sample,) = samples(tower_folder, conditioning, [[("one two", SHORT)]])
    text = read_trainable_base(tower_folder).tokenizer.decode(sample.input_ids)
    text = text.replace("<|audio_bos|><|AUDIO|><|audio_eos|>", "<heard>")
    text = text.replace("<|audio_out_bos|><|AUDIO_OUT|><|audio_eos|>", "<spoken>")
    turns = text.replace("<|begin_of_text|>", "").replace("<|end_header_id|>\n\n", ": ").replace("<|eot_id|>", "")
    expected = [f"system: {SYSTEM_TEXT}", *PROMPTS[conditioning], "assistant: <spoken>"]
    assert turns.split("<|start_header_id|>")[1:] == expected


def test_a_clip_without_waveform_is_refused_by_name(tower_folder):
    silent = Clip("silent", {}, SHORT.codes)
    with pytest.raises(InputError) as caught:
        samples(tower_folder, "both", [[("one", silent)]])
    assert caught.value.where == "clip silent"
    assert "--waveforms flac" in caught.value.action


def as_wav(flac):
    buffer = io.BytesIO()
    soundfile.write(buffer, *soundfile.read(io.BytesIO(flac)), format="WAV")
    return buffer.getvalue()


def with_length(flac, samples):
    """The number of samples in STREAMINFO: the lower 36 bits of bytes 18 to 26."""
    bits = int.from_bytes(flac[18:26], "big") >> 36 << 36 | samples
    return flac[:18] + bits.to_bytes(8, "big") + flac[26:]


SPOILT = {
    "junk": lambda flac: b"fLaC" + b"junk" * 100,
    "empty": lambda flac: b"",
    "cut": lambda flac: flac[: len(flac) // 2],
    "no frame": lambda flac: flac[:60],
    "no length": lambda flac: with_length(flac, 0),
    "a length beyond memory": lambda flac: with_length(flac, 2**36 - 1),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_a_waveform_that_is_not_whole_is_refused_by_name(kind, tower_folder):
    spoilt = Clip("spoilt", {}, SHORT.codes, SPOILT[kind](SHORT.flac))
    with pytest.raises(InputError) as caught:
        samples(tower_folder, "both", [[("one", spoilt)]])
    assert caught.value.where == "clip spoilt"
    assert "waveform" in caught.value.found


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (SPOILT["junk"], "no FLAC file"),
        (as_wav, "a file of WAV, no FLAC"),
        (lambda flac: clip("other", 0.6, 0).flac, "a waveform of 9600 samples, not"),
    ],
)
def test_a_waveform_that_the_index_does_not_name_is_refused_though_its_crc_fits(change, found, heard_corpus):
    corpus = Corpus(heard_corpus)
    offset, size = (int(corpus._places[f"flac_{part}"][0]) for part in ("offset", "bytes"))
    shard = heard_corpus / corpus.index.column("shard")[0].as_py()
    data = change(shard.read_bytes()[offset : offset + size])
    with pytest.raises(ValueError, match=found):
        corpus._read_flac(0, data)


def test_the_projector_is_a_target_only_where_something_is_heard(tower_folder):
    base = load_base(tower_folder, torch.float32)
    tower, unheard = (find_targets(base, "full", conditioning) for conditioning in ("both", "codes"))
    assert [name for name in tower if name not in unheard] == ["audio_encoder_proj.linear"]
    assert not [name for name in tower if "audio_tower" in name]
