"""Showing a corpus: the clips, and one training sample as the model sees it."""

import io
import json
import re
import shutil

import numpy as np
import pytest
import soundfile
import torch
from boson_multimodal.audio_processing.higgs_audio_tokenizer import load_higgs_audio_tokenizer

from engine.batch.sample import build_sample
from engine.speak.decoded import decode_codes
from engine.speak.show import choose_dialogue, find_row
from launch.show import main
from preprocess.codec.load import hubert_from, load_codec
from preprocess.common.errors import InputError
from preprocess.corpus.dialogue import IGNORE_INDEX
from preprocess.corpus.shards import Corpus
from tests.preprocess.helpers import assert_parts


@pytest.fixture(scope="module")
def corpus(speech_corpus):
    return Corpus(speech_corpus)


def test_without_a_key_every_clip_has_a_line(corpus, capsys):
    assert main([str(corpus.folder), "--lines", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{corpus.folder}: 16 clips, 0.0")
    assert "8 codebooks of 1024, 25.0 frames/s" in lines[1]
    clip = corpus.clip(0)
    assert lines[3].startswith(clip.key)
    assert lines[3].endswith(clip.meta["text"])
    assert lines[-1] == "... and 13 more (--lines 0 shows all)"


def test_a_sample_is_shown_as_the_model_is_trained_on_it(corpus, model_folder, tmp_path, capsys):
    from engine.base.trainable_base import read_trainable_base

    key, image, audio = corpus.clip(5).key, tmp_path / "x.png", tmp_path / "x.flac"
    flags = ["--model", str(model_folder), "--image", str(image), "--audio", str(audio)]
    assert main([str(corpus.folder), key, *flags]) == 0
    said = capsys.readouterr().out
    dialogue, references, _ = choose_dialogue(corpus, 5)
    assert references[0].meta["speaker"] == corpus.clip(5).meta["speaker"]
    assert references[0].key != key
    base = read_trainable_base(model_folder)
    tokenizer, config = base.tokenizer, base.config
    system_text = corpus.info["layout"]["system_text"]
    sample = build_sample(tokenizer, config, system_text, dialogue, corpus.clip(5), references)
    shown = re.findall(r"^ +\d+ +(\*?) +(\d+) ('.*'|\".*\"|audio columns.*)$", said, flags=re.MULTILINE)
    assert [bool(mark) for mark, *_ in shown] == (sample.label_ids != IGNORE_INDEX).tolist()
    texts = [(int(number), token) for _, number, token in shown if not token.startswith("audio columns")]
    text_ids = sample.input_ids[sample.input_ids != config.audio_out_token_idx].tolist()
    assert texts == [(token, repr(tokenizer.decode([token]))) for token in text_ids]
    total = len(text_ids) + sum(clip.codes.shape[1] + 9 for clip in (references[0], corpus.clip(5)))
    assert f"{total} tokens; trained: *" in said
    assert image.read_bytes().startswith(b"\x89PNG")
    assert audio.read_bytes() == corpus.clip(5, waveform=True).flac
    assert soundfile.info(io.BytesIO(audio.read_bytes())).samplerate == 16000


def test_a_key_that_is_not_one_clip_is_refused(corpus):
    with pytest.raises(InputError) as caught:
        find_row(corpus, "00")
    assert_parts(caught.value, "00", "16 clips: 000-", "the key of one clip", "lists them")
    with pytest.raises(InputError) as caught:
        main([str(corpus.folder), "000"])
    assert_parts(caught.value, "command line", "KEY without --model", "a clip, and the model", "launch.show")


def test_the_codes_of_target_and_reference_are_heard_as_boson_decodes_them(
    corpus, codec_folder, hubert_folder, tmp_path, capsys
):
    """Boson's own loader and `decode`, with none of our faster paths, and its serve engine's way to call it."""
    row, out = 5, tmp_path / "x.wav"
    codec = ["--audio-tokenizer", str(codec_folder), "--hubert", str(hubert_folder)]
    assert main([str(corpus.folder), corpus.clip(row).key, "--audio", str(out), *codec]) == 0
    _, (reference,), _ = choose_dialogue(corpus, row)
    said = capsys.readouterr().out
    with hubert_from(hubert_folder):
        boson = load_higgs_audio_tokenizer(str(codec_folder), device="cpu")
    tokenizer, facts = load_codec(codec_folder, hubert_folder)
    for path, clip in ((out, corpus.clip(row)), (tmp_path / "x_reference.wav", reference)):
        assert f"{path}: the codes of {clip.key}, decoded" in said
        expected = boson.decode(torch.from_numpy(clip.codes.astype(np.int64)).unsqueeze(0))[0, 0]
        np.testing.assert_array_equal(decode_codes(tokenizer, clip.codes), expected)
        samples, rate_hz = soundfile.read(path)
        assert rate_hz == facts.sample_rate_hz == boson.sample_rate
        np.testing.assert_allclose(samples, expected, atol=1 / 32768)
        assert np.ptp(samples) > 0.001
    assert sorted(tmp_path.iterdir()) == [out, tmp_path / "x_reference.wav"]


def test_codes_are_not_decoded_without_the_corpus_s_own_codec(corpus, codec_folder, hubert_folder, tmp_path):
    key, out = corpus.clip(0).key, tmp_path / "x.wav"
    with pytest.raises(InputError) as caught:
        main([str(corpus.folder), key, "--audio", str(out), "--audio-tokenizer", str(codec_folder)])
    assert_parts(caught.value, "command line", "no --hubert", "to decode codes", "launch.show shards/ KEY --audio")
    other = shutil.copytree(corpus.folder, tmp_path / "other")
    info = json.loads((other / "corpus.json").read_text())
    info["codec"]["fingerprint"] = "0123456789abcdef"
    (other / "corpus.json").write_text(json.dumps(info))
    codec = ["--audio-tokenizer", str(codec_folder), "--hubert", str(hubert_folder)]
    with pytest.raises(InputError) as caught:
        main([str(other), key, "--audio", str(out), *codec])
    assert_parts(caught.value, str(codec_folder), "fingerprint", "0123456789ab", "the corpus was made with")
    assert not out.exists()


def test_a_corpus_without_waveforms_is_heard_by_its_codes(random_corpus, tmp_path):
    with pytest.raises(InputError) as caught:
        main([str(random_corpus.folder), random_corpus.clip(0).key, "--audio", str(tmp_path / "x.flac")])
    assert_parts(caught.value, random_corpus.clip(0).key, "no waveform", "or the codec", "--audio-tokenizer CODEC")


def test_audio_gets_the_name_of_its_format_and_the_folder_it_needs(corpus, tmp_path):
    key = corpus.clip(0).key
    with pytest.raises(InputError) as caught:
        main([str(corpus.folder), key, "--audio", str(tmp_path / "x.wav")])
    assert_parts(caught.value, "command line", "x.wav", ".flac", "Rename it")
    decoded = ["--audio-tokenizer", "codec", "--hubert", "hubert"]
    with pytest.raises(InputError) as caught:
        main([str(corpus.folder), key, "--audio", str(tmp_path / "x.flac"), *decoded])
    assert_parts(caught.value, "command line", "x.flac", ".wav", "Rename it")
    out = tmp_path / "new" / "x.flac"
    main([str(corpus.folder), key, "--audio", str(out)])
    assert soundfile.info(out).samplerate == 16000
