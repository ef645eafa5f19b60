"""Whisper conditioning: what the tower hears stands in the packed stream as Boson's collator and model have it."""

import io

import numpy as np
import pytest
import soundfile
import torch

from engine.forward import LossModel
from engine.lora import add_lora
from engine.losses import codebook_weights, weigh
from engine.model import load_base, load_config, load_tokenizer
from engine.recipe import Lora, Loss
from engine.sample import build_sample, collate, make_collator
from engine.stream import lay_out
from engine.whisper import heard_tokens
from preprocess.errors import InputError
from preprocess.shards import Clip
from tests.fixtures.model import build_model

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
    tokenizer, config = load_tokenizer(folder), load_config(folder)
    return [build_sample(tokenizer, config, SYSTEM_TEXT, r, "five six", TARGET, conditioning) for r in references]


def adapted(folder):
    torch.manual_seed(0)
    model = LossModel(add_lora(load_base(folder, torch.float32), Lora(rank=8, alpha=16, dropout=0.0), "both"))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model


def loss_and_gradients(model, batch):
    sums = model(batch)
    weigh(sums, 9, 100, Loss(), codebook_weights(Loss(), len(sums.audio))).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    return sums, gradients


@pytest.mark.parametrize("conditioning", ["whisper", "both"])
def test_packed_equals_bosons_collator_and_forward(tower_folder, conditioning):
    model, config = adapted(tower_folder), load_config(tower_folder)
    theirs = loss_and_gradients(model, collate(samples(tower_folder, conditioning), config))
    ours = loss_and_gradients(model, lay_out(samples(tower_folder, conditioning), config))
    for found, expected in zip(ours[0], theirs[0], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for name, gradient in theirs[1].items():
        assert gradient.norm() > 0, f"{name} has no gradient, so the comparison proves nothing for it"
        assert (ours[1][name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-9, name


def test_without_a_waveform_in_the_pack_the_projector_has_gradients_of_zero(tower_folder):
    model, config = adapted(tower_folder), load_config(tower_folder)
    unheard = [[], []]
    with torch.no_grad():
        theirs = model(collate(samples(tower_folder, "both", unheard), config))
    sums, gradients = loss_and_gradients(model, lay_out(samples(tower_folder, "both", unheard), config))
    torch.testing.assert_close(sums.audio, theirs.audio, rtol=1e-5, atol=1e-5)
    projector = [gradient for name, gradient in gradients.items() if "audio_encoder_proj" in name]
    assert len(projector) == 2
    assert all(gradient.count_nonzero() == 0 for gradient in projector)


def test_the_target_is_predicted_from_what_is_heard(tower_folder):
    model, config = adapted(tower_folder), load_config(tower_folder)
    other = Clip("short", {}, SHORT.codes, clip("other", 0.93, 5).flac)
    with torch.no_grad():
        losses = [
            float(model(lay_out(samples(tower_folder, "whisper", [[("one two", c)]]), config)).audio.sum())
            for c in (SHORT, other)
        ]
    assert losses[0] != losses[1]


def test_a_waveform_longer_than_the_tower_is_chunked_as_bosons_collator_chunks_it(tower_folder):
    config = load_config(tower_folder)
    (sample,) = samples(tower_folder, "both", [[("three", LONG)]])
    is_heard = sample.input_ids == config.audio_in_token_idx
    assert int(is_heard.sum()) == 3
    whole = samples(tower_folder, "both", [[("three", SHORT)]])[0]
    whole.audio_waveforms_concat = torch.from_numpy(soundfile.read(io.BytesIO(LONG.flac), dtype="float32")[0])
    # Boson's chunking forgets that codes are counted after the chunks: it is given what it would look for.
    whole.audio_ids_concat, whole.audio_ids_start = sample.audio_ids_concat, sample.audio_ids_start
    theirs = make_collator(config)([whole])
    assert theirs.input_ids[0].tolist() == sample.input_ids.tolist()
    ours = lay_out([sample], config)
    assert torch.equal(ours.heard.features, theirs.audio_features)
    assert torch.equal(ours.heard.feature_mask, theirs.audio_feature_attention_mask)


@pytest.mark.parametrize("seconds", [0.5, 0.93, 1.9999, 2.0, 2.3, 4.5])
def test_the_plan_counts_what_the_stream_holds(tower_folder, seconds):
    config, reference = load_config(tower_folder), clip("reference", seconds, 4)
    heard, unheard = (
        lay_out(samples(tower_folder, conditioning, [[("one", reference)]]), config)
        for conditioning in ("both", "codes")
    )
    num_samples = soundfile.info(io.BytesIO(reference.flac)).frames
    added = len(heard.text_tokens) - len(unheard.text_tokens)
    assert added == heard_tokens(np.array([num_samples]), config)[0]


PROMPTS = {
    "whisper": ["user: <heard>one two", "user: five six"],
    "both": ["user: <heard>one two", "assistant: <spoken>", "user: five six"],
}


@pytest.mark.parametrize("conditioning", PROMPTS)
def test_where_the_reference_stands(tower_folder, conditioning):
    (sample,) = samples(tower_folder, conditioning, [[("one two", SHORT)]])
    text = load_tokenizer(tower_folder).decode(sample.input_ids)
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
