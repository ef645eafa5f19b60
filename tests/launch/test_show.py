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

from engine.batch.loader import PackReader
from engine.job import prepare_job
from engine.plan.plan import Pack
from engine.speak.corpus_table import find_row
from engine.speak.decoded import decode_codes
from launch.show import main
from preprocess.codec.load import hubert_from, load_codec
from preprocess.common.errors import InputError
from preprocess.common.record import write_record
from preprocess.corpus.dialogue import canonical_dialogue
from preprocess.corpus.shards import Corpus
from tests.fixtures.corpus import WORDS, random_clip, write_clips
from tests.fixtures.steps import ZERO2
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


RECIPE = """
forward: boson
batch: {max_tokens: 400, packs_per_step: 2}
data: {references_per_sample: 2, share_without_reference: 0.2, repeat: [1.5]}
run: {seed: 3, evaluate_max_packs: 1, precision: fp32}
"""


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, model_folder):
    """(corpus, recipe file): drawn references, named ones, both splits, own system texts, samples too long."""
    rng = np.random.default_rng(0)
    clips, speakers, splits = [], {}, {}
    for number in range(40):
        key, text = f"clip{number:02d}", " ".join(rng.choice(WORDS, size=rng.integers(2, 6)))
        clip = random_clip(key, text, int(rng.integers(5, 30)), 8, 1024, number)
        clips.append(clip)
        speakers[key], splits[key] = f"voice{number % 7}", "val" if number % 7 == 6 else "train"
        if number % 4 == 1:
            clip.meta["system_text"] = "Whisper, far away."
        if number % 5 == 2:
            named = [(f"clip{(number + 7 * step) % 35:02d}", f"words {step}") for step in (1, 2)]
            clip.meta["dialogues"] = [canonical_dialogue("named", named[:1]), canonical_dialogue("twice", named)]
        if number % 9 == 8:
            clip.meta["reference_only"] = True
    clips[10] = random_clip("clip10", "much too long", 400, 8, 1024, 10)
    folder = tmp_path_factory.mktemp("mixed")
    (folder / "recipe.yaml").write_text(RECIPE)
    corpus = write_clips(folder / "shards", model_folder, clips, codebook_size=1024, speakers=speakers, splits=splits)
    return corpus, folder / "recipe.yaml"


def printed_samples(said):
    """Of each sample that show printed: (token and its text, or an audio's columns and key; whether trained)."""
    line = re.compile(r" +\d+ +(\*?) +(?:(\d+) ('.*'|\".*\")|(\d+) audio columns: \w+ (\S+), \d+ frames)")
    samples = []
    for text in said.splitlines():
        if text.startswith("sample "):
            samples.append([])
        elif found := line.fullmatch(text):
            mark, token, decoded, columns, key = found.groups()
            samples[-1].append(((int(token), decoded) if token else (int(columns), key), bool(mark)))
    return samples


def loaded_sample(reader, corpus, sample):
    """The same of what the loader hands to Boson's forward for a sample of the plan."""
    batch = reader[Pack((sample,))].batch
    assert batch.input_ids.shape[0] == 1
    keys = [corpus.clip(row).key for row in (*sample.references, sample.target)]
    ends = [*batch.audio_out_ids_start.tolist()[1:], batch.audio_out_ids.shape[1]]
    audios = []
    for key, begin, end in zip(keys, batch.audio_out_ids_start.tolist(), ends, strict=True):
        audios.append(((end - begin, key), bool((batch.label_audio_ids[:, begin:end] != -100).any())))
        codes = corpus.clip(find_row(corpus, key)).codes
        assert torch.equal(
            batch.audio_out_ids[0, begin + 1 : begin + 1 + codes.shape[1]], torch.tensor(codes[0]).long()
        )
    found = []
    for token, label in zip(batch.input_ids[0].tolist(), batch.label_ids[0].tolist(), strict=True):
        is_audio = token == reader.config.audio_out_token_idx
        text = repr(reader.tokenizer.decode([token]))
        found.append(audios.pop(0) if is_audio else ((token, text), label != -100))
    return found


@pytest.mark.parametrize("epoch", [0, 3])
def test_what_is_shown_of_each_clip_is_what_the_run_trains(mixed, model_folder, tmp_path, capsys, epoch):
    """The plan is that of the training command itself, and the loader's batches are the oracle."""
    corpus, recipe = mixed
    job = prepare_job(
        str(ZERO2), str(recipe), [], str(model_folder), [str(corpus.folder)], str(tmp_path), world_size=1
    )
    plan = job.plan.epoch(epoch)
    packs = [pack for step in range(plan.num_steps) for pack in plan.step(step).packs] + job.validation
    planned = {}
    for sample in (sample for pack in packs for sample in pack.samples):
        planned.setdefault(sample.target, []).append(sample)
    reader = PackReader(job.reader.corpora, model_folder, "boson")
    counts, missing = set(), []
    for row in range(corpus.index.num_rows):
        key = corpus.clip(row).key
        flags = ["--model", str(model_folder), "--recipe", str(recipe), "--epoch", str(epoch)]
        assert main([str(corpus.folder), key, *flags]) == 0
        said = capsys.readouterr().out
        expected = [loaded_sample(reader, corpus, sample) for sample in planned.get(row, [])]
        found = printed_samples(said)
        assert sorted(found, key=str) == sorted(expected, key=str), key
        counts.add(len(found))
        missing += [] if found else [said.splitlines()[-1]]
        references = {corpus.clip(n).key for sample in planned.get(row, []) for n in sample.references}
        for name in references:
            assert re.search(rf"^sample .*(drawn|named by its row): .*{name}", said, flags=re.MULTILINE)
    assert counts >= {0, 1, 2}
    assert {len(sample.references) for samples in planned.values() for sample in samples} == {0, 1, 2}
    told = " ".join(missing)
    assert "only a reference of others" in told
    assert "tokens are more than batch.max_tokens=400" in told
    assert "it is not in the first 1 packs (run.evaluate_max_packs)" in told


def test_without_a_recipe_a_sample_is_that_of_the_defaults(corpus, model_folder, tmp_path, capsys):
    row = corpus.index.column("split").to_pylist().index("train")
    key, image, audio = corpus.clip(row).key, tmp_path / "x.png", tmp_path / "x.flac"
    flags = ["--model", str(model_folder), "--image", str(image), "--audio", str(audio)]
    assert main([str(corpus.folder), key, *flags]) == 0
    said = capsys.readouterr().out
    recipe, run = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text("batch: {packs_per_step: 1}")  # sixteen clips are too few for the default
    job = prepare_job(str(ZERO2), str(recipe), [], str(model_folder), [str(corpus.folder)], str(run), world_size=1)
    plan = job.plan.epoch(0)
    samples = [sample for n in range(plan.num_packs) for sample in plan.pack(n).samples if sample.target == row]
    assert len(samples) == 1
    reference = corpus.clip(samples[0].references[0])
    assert reference.meta["speaker"] == corpus.clip(row).meta["speaker"]
    assert reference.key != key
    reader = PackReader(job.reader.corpora, model_folder, "boson")
    assert printed_samples(said) == [loaded_sample(reader, corpus, samples[0])]
    assert f"drawn: {reference.key}" in said
    assert f"{samples[0].num_tokens} tokens; trained: *" in said
    assert image.read_bytes().startswith(b"\x89PNG")
    assert audio.read_bytes() == corpus.clip(row, waveform=True).flac
    assert soundfile.info(io.BytesIO(audio.read_bytes())).samplerate == 16000


def test_a_key_that_is_not_one_clip_is_refused(corpus):
    with pytest.raises(InputError) as caught:
        find_row(corpus, "00")
    assert_parts(caught.value, "00", "16 clips: 000-", "the key of one clip", "lists them")
    with pytest.raises(InputError) as caught:
        main([str(corpus.folder), "000"])
    assert_parts(caught.value, "command line", "KEY without --model", "a clip, and the model", "launch.show")


def test_the_codes_of_target_and_reference_are_heard_as_boson_decodes_them(
    corpus, model_folder, codec_folder, hubert_folder, tmp_path, capsys
):
    """Boson's own loader and `decode`, with none of our faster paths, and its serve engine's way to call it."""
    row, out = 5, tmp_path / "x.wav"
    codec = ["--audio-tokenizer", str(codec_folder), "--hubert", str(hubert_folder)]
    assert main([str(corpus.folder), corpus.clip(row).key, "--audio", str(out), *codec]) == 0
    said = capsys.readouterr().out
    assert main([str(corpus.folder), corpus.clip(row).key, "--model", str(model_folder)]) == 0
    (shown,) = re.findall(r"^sample 1 of 1 in .*; reference, drawn: (\S+)$", capsys.readouterr().out, re.MULTILINE)
    reference = corpus.clip(find_row(corpus, shown))
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
    write_record(other / "corpus.json", info)
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
