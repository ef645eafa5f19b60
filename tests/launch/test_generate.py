"""Generate: the serve engine speaks what was learnt, from the prompt of training; failures are plain errors."""

import json
import shutil
import unicodedata
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from engine.base.trainable_base import read_trainable_base
from engine.speak.generate import LEARNT_TEXT, choose_layout, clone_voice, default_max_new_tokens, load_engine
from engine.speak.voice_training import read_facts
from launch.generate import main
from preprocess.common.errors import InputError
from preprocess.common.record import SEAL, write_record
from preprocess.corpus.dialogue import DEFAULT_SYSTEM_TEXT
from preprocess.corpus.text import NORMALISER_VERSION
from tests.fixtures.speaker import NUM_FRAMES, REFERENCE_TEXT, SYSTEM_TEXT, TARGET_TEXT, build_speaker
from tests.preprocess.helpers import assert_parts


@pytest.fixture(scope="module")
def codec_folders(codec_folder, hubert_folder):
    return codec_folder, hubert_folder


@pytest.fixture(scope="module")
def speaker(tmp_path_factory, model_folder, codec_folders):
    return build_speaker(tmp_path_factory.mktemp("speaker"), model_folder, *codec_folders)


@pytest.fixture(scope="module")
def speaking_engine(speaker, codec_folders):
    return load_engine(speaker.folder, *codec_folders, "cpu")[0]


def test_merged_model_says_the_learnt_target_code_for_code(speaker, speaking_engine):
    response = clone_voice(
        speaking_engine, speaker.layout, [(REFERENCE_TEXT, speaker.reference)], TARGET_TEXT, greedy=True
    )
    assert response.generated_text == LEARNT_TEXT
    np.testing.assert_array_equal(response.generated_audio_tokens, speaker.columns)
    samples_per_frame = speaking_engine.samples_per_token
    assert response.audio.shape == (NUM_FRAMES * samples_per_frame,)


def test_prompt_is_the_one_of_training(speaker, speaking_engine, monkeypatch):
    calls = []

    def generate(dialogue, force_audio_gen, **settings):
        calls.append((speaking_engine._prepare_inputs(dialogue, force_audio_gen=force_audio_gen), force_audio_gen))

    monkeypatch.setattr(speaking_engine, "generate", generate)
    decomposed = f"  {unicodedata.normalize('NFD', TARGET_TEXT)}\n"
    assert speaker.layout["system_text"] == SYSTEM_TEXT
    clone_voice(speaking_engine, speaker.layout, [(f"{REFERENCE_TEXT} ", speaker.reference)], decomposed)
    inputs, force_audio_gen = calls[0]
    assert force_audio_gen is False
    assert inputs["input_ids"][0].tolist() == speaker.prompt
    np.testing.assert_array_equal(inputs["audio_out_ids"].numpy(), speaker.prompt_columns)


def test_an_unknown_normaliser_is_refused(speaker, speaking_engine):
    pairs = [(REFERENCE_TEXT, speaker.reference)]
    with pytest.raises(InputError, match="text normaliser: found version 4"):
        clone_voice(speaking_engine, {**speaker.layout, "normaliser_version": 4}, pairs, TARGET_TEXT)


def test_command_writes_a_wav_and_says_that_start_and_stop_were_spoken(speaker, codec_folders, tmp_path, capsys):
    assert main(command(speaker, codec_folders, tmp_path)) == 0
    printed = capsys.readouterr().out
    samples, rate_hz = soundfile.read(tmp_path / "out" / "speech.wav")
    assert f"speech.wav: {len(samples) / rate_hz:.2f} s of speech\n" in printed
    # The fixture's corpus had references of minutes, and spoke a letter a second.
    assert "s of audio; the corpus has 100.0 to 200.0\n" in printed.replace("seconds", "s")
    assert "s at the corpus's pace: words may be missing\n" in printed
    assert len(samples) == NUM_FRAMES * rate_hz // 25
    assert "the model started and stopped by itself, as it learnt" in printed
    # The checkpoint says that its codec is called "codec".
    assert "warning: the model was trained on codes of another codec" in printed


def command(speaker, codec_folders, tmp_path, **changed):
    flags = {
        "--model": speaker.folder,
        "--audio-tokenizer": codec_folders[0],
        "--hubert": codec_folders[1],
        "--reference": speaker.reference,
        "--reference-text": REFERENCE_TEXT,
        "--text": TARGET_TEXT,
        "--out": tmp_path / "out" / "speech.wav",
        **changed,
    }
    return ["--greedy", "--device", "cpu", *(str(part) for pair in flags.items() for part in pair)]


def test_seed_decides_what_sampling_says(speaker, speaking_engine):
    def speak(seed):
        pairs = [(REFERENCE_TEXT, speaker.reference)]
        settings = {"seed": seed, "temperature": 0.3, "top_k": 2, "top_p": 1.0}
        return clone_voice(speaking_engine, speaker.layout, pairs, TARGET_TEXT, **settings).generated_audio_tokens

    np.testing.assert_array_equal(speak(2), speak(2))
    assert not np.array_equal(speak(2), speak(5))


def test_audio_cut_short_is_a_failed_generation(speaker, speaking_engine):
    pairs = [(REFERENCE_TEXT, speaker.reference)]
    with pytest.raises(InputError) as caught:
        clone_voice(speaking_engine, speaker.layout, pairs, TARGET_TEXT, greedy=True, max_new_tokens=4)
    assert caught.value.where == f"generation of {TARGET_TEXT!r}"
    assert caught.value.found.startswith("an audio that is cut short after 4 tokens (")
    assert caught.value.expected == LEARNT_TEXT
    assert "The model has not learnt to stop" in caught.value.action


def test_no_audio_is_a_failed_generation(speaker, model_folder, codec_folders):
    engine, _ = load_engine(model_folder, *codec_folders, "cpu")
    with torch.no_grad():
        engine.model.audio_decoder_proj.text_lm_head.weight.zero_()  # only ever token 0
    with pytest.raises(InputError) as caught:
        clone_voice(engine, speaker.layout, [(REFERENCE_TEXT, speaker.reference)], TARGET_TEXT, greedy=True)
    assert caught.value.found == "no audio"
    assert caught.value.expected == LEARNT_TEXT
    assert caught.value.action.startswith("The model has not learnt to start")


def test_texts_and_recordings_that_cannot_be_used_are_refused(speaker, speaking_engine, tmp_path):
    def refusal(reference_text, reference, text):
        with pytest.raises(InputError) as caught:
            clone_voice(speaking_engine, speaker.layout, [(reference_text, reference)], text)
        return caught.value

    error = refusal(REFERENCE_TEXT, speaker.reference, "say <|AUDIO_OUT|> twice")
    assert (error.where, error.found) == (
        "text 'say <|AUDIO_OUT|> twice'",
        "the special token <|AUDIO_OUT|> in the text",
    )
    assert error.expected == "only words: a special token would change the prompt's structure"
    assert error.action == "Remove it from the text."
    assert refusal(" ", speaker.reference, TARGET_TEXT).found == "nothing to say"
    missing = refusal(REFERENCE_TEXT, tmp_path / "none.wav", TARGET_TEXT)
    assert (missing.where, missing.found) == (str(tmp_path / "none.wav"), "no such file")
    (tmp_path / "broken.wav").write_bytes(b"RIFF but no audio")
    assert refusal(REFERENCE_TEXT, tmp_path / "broken.wav", TARGET_TEXT).where == str(tmp_path / "broken.wav")


def test_marks_for_sounds_are_spoken_where_they_were_trained(speaker, speaking_engine, capsys):
    text = f"{TARGET_TEXT} <SE>[Laughter]</SE>"
    pairs, cut = [(REFERENCE_TEXT, speaker.reference)], {"greedy": True, "max_new_tokens": 4}
    with pytest.raises(InputError, match="the special token </SE> in the text.*--allow-marks"):
        clone_voice(speaking_engine, speaker.layout, pairs, text, **cut)
    for layout in (
        {**speaker.layout, "allow_marks": True},
        choose_layout(speaking_engine, speaker.layout, None, allow_marks=True),
    ):
        with pytest.raises(InputError, match="cut short after 4 tokens"):  # it was read, and begun
            clone_voice(speaking_engine, layout, pairs, text, **cut)
    assert "no corpus with any is known" in capsys.readouterr().out


def test_codec_of_another_shape_is_refused(other_model_folder, codec_folders):
    with pytest.raises(InputError) as caught:
        load_engine(other_model_folder, *codec_folders, "cpu")
    assert caught.value.where == str(codec_folders[0])
    assert caught.value.found == "8 codebooks of 1024 codes"
    assert caught.value.expected == f"4 codebooks of 64 codes, as {other_model_folder / 'config.json'} says"
    assert caught.value.action.startswith("Name the codec this model was trained with (--audio-tokenizer)")


def test_another_system_text_opens_the_prompt_and_is_warned_of(speaker, speaking_engine, capsys):
    own = {**speaker.layout, "keep_system": True}
    assert choose_layout(speaking_engine, speaker.layout, None) == speaker.layout
    assert capsys.readouterr().out == ""
    assert choose_layout(speaking_engine, own, None) == own
    assert f"of their own; this prompt has {SYSTEM_TEXT!r}" in capsys.readouterr().out
    assert choose_layout(speaking_engine, own, "Whisper.") == {**own, "system_text": "Whisper."}
    assert capsys.readouterr().out == ""
    assert choose_layout(speaking_engine, speaker.layout, "Whisper.")["system_text"] == "Whisper."
    assert f"trained with the system text {SYSTEM_TEXT!r} alone" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"--system-text: found the special token <\|eot_id\|>"):
        choose_layout(speaking_engine, own, "Whisper.<|eot_id|>")


def test_special_tokens_that_the_tokenizer_gives_no_role_are_refused_too(speaker, tmp_path):
    """As Llama 3's files have them: bos and eos named, all others only added."""
    folder = shutil.copytree(speaker.folder, tmp_path / "merged")
    for path in (folder / "tokenizer_config.json", folder / "special_tokens_map.json"):
        facts = json.loads(path.read_text())
        path.write_text(json.dumps({k: v for k, v in facts.items() if k != "additional_special_tokens"}))
    engine = SimpleNamespace(tokenizer=read_trainable_base(folder).tokenizer)
    assert "<|AUDIO_OUT|>" not in engine.tokenizer.all_special_tokens
    with pytest.raises(InputError, match=r"--system-text: found the special token <\|AUDIO_OUT\|>"):
        choose_layout(engine, speaker.layout, "Whisper.<|AUDIO_OUT|>")
    with pytest.raises(InputError, match=r"found the special token <\|AUDIO_OUT\|>"):
        clone_voice(engine, speaker.layout, [(REFERENCE_TEXT, speaker.reference)], "say <|AUDIO_OUT|> twice")


def test_the_command_speaks_with_the_system_text_that_it_is_given(speaker, codec_folders, tmp_path, monkeypatch):
    class Reached(Exception):
        pass

    def clone_reached(engine, layout, *pairs_and_text, **settings):
        raise Reached(layout["system_text"])

    monkeypatch.setattr("engine.speak.generate.clone_voice", clone_reached)
    with pytest.raises(Reached, match="Whisper"):
        main(command(speaker, codec_folders, tmp_path, **{"--system-text": "Whisper."}))


def change_a_letter(path):
    """The prompt of every speech would be another."""
    path.write_text(path.read_text().replace("Speak", "speak"))


def forget_the_layout(path):
    facts = json.loads(path.read_text())
    write_record(path, {name: value for name, value in facts.items() if name not in (SEAL, "layout")})


def test_broken_facts_are_refused_and_a_base_model_has_the_default_layout(
    speaker, codec_folders, model_folder, tmp_path
):
    broken = shutil.copytree(speaker.folder, tmp_path / "broken")
    for change, found in [(change_a_letter, "values with sha256 "), (forget_the_layout, "no layout")]:
        shutil.copyfile(speaker.folder / "voice_training.json", broken / "voice_training.json")
        change(broken / "voice_training.json")
        with pytest.raises(InputError) as caught:
            main(command(speaker, codec_folders, tmp_path, **{"--model": broken}))
        assert_parts(caught.value, str(broken / "voice_training.json"), found, "as it", "Merge the checkpoint again")
    assert read_facts(model_folder) == {
        "layout": {"system_text": DEFAULT_SYSTEM_TEXT, "normaliser_version": NORMALISER_VERSION}
    }


def test_default_limit_allows_slow_speech_and_no_more_than_a_minute(speaking_engine):
    assert default_max_new_tokens(speaking_engine, "x" * 20) == 10 * 25 + 8 + 4
    assert default_max_new_tokens(speaking_engine, "x" * 5000) == 60 * 25 + 8 + 4


def test_all_missing_flags_are_named_at_once():
    with pytest.raises(InputError, match="no --audio-tokenizer, --hubert, --reference, --reference-text, --out; exp"):
        main(["--model", "merged", "--text", "hello"])
