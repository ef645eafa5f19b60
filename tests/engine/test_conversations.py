"""ChatML rows with words of their own: training feeds what Boson makes of the row, and the plan counts it."""

import json

import numpy as np
import pytest
import soundfile
import torch
from boson_multimodal.data_types import AudioContent, ChatMLSample, Message, TextContent
from boson_multimodal.dataset.chatml_dataset import ChatMLDatasetSample, prepare_chatml_sample

from engine.corpora import Corpora
from engine.loader import PackReader
from engine.plan import Pack, Plan
from engine.sample import layout_cost, make_collator
from preprocess.layout import DEFAULT_SYSTEM_TEXT
from preprocess.shards import Clip
from tests.preprocess.helpers import shard, write_jsonl

CLIPS = [f"{number}.wav" for number in range(8)]


def text(words):
    return {"type": "text", "text": words}


def audio(number):
    """The audio part of clip `number`."""
    return {"type": "audio", "audio_url": CLIPS[number]}


def turn(role, *parts):
    return {"role": role, "content": list(parts)}


def cloning(reference, target, *system):
    """A row in the voice-cloning shape."""
    said = [text("so it sounds"), audio(reference), text("Please say it in this voice.")]
    return [*system, turn("user", *said), turn("assistant", text("so be it"), audio(target))]


def as_sample(messages, start_index=None):
    """Boson's own dataclass of ChatML messages."""
    kinds = {"text": lambda part: TextContent(part["text"]), "audio": lambda part: AudioContent(part["audio_url"])}
    turns = [Message(m["role"], [kinds[part["type"]](part) for part in m["content"]]) for m in messages]
    return ChatMLSample(turns, start_index=start_index)


def bosons_batch(reader, clips, sample):
    """What Boson's prepare_chatml_sample and collator make of a sample; its audio_urls are names in `clips`."""
    input_ids, label_ids, audios, _ = prepare_chatml_sample(sample, reader.tokenizer)
    codes = [torch.from_numpy(clips[audio.audio_url].codes.astype(int)) for audio in audios]
    starts = torch.tensor([0, *(c.shape[1] for c in codes[:-1])]).cumsum(0)
    empty = torch.zeros(0)
    concatenated = torch.cat(codes, dim=1)
    built = ChatMLDatasetSample(
        torch.tensor(input_ids), torch.tensor(label_ids), concatenated, starts, empty, empty, empty, empty
    )
    return make_collator(reader.config)([built])


def assert_same(found, expected):
    """Two of Boson's batches are equal to the bit."""
    for name, value in vars(expected).items():
        theirs = getattr(found, name)
        assert torch.equal(theirs, value) if isinstance(value, torch.Tensor) else theirs is value, name


def planned_samples(reader):
    cost = layout_cost(reader.tokenizer, reader.config, reader.system_text)
    plan = Plan(reader.corpus.index, split="train", cost=cost, packs_per_step=1, max_tokens=10_000, seed=0)
    epoch = plan.epoch(0)
    return [s for n in range(epoch.num_steps) for pack in epoch.step(n).packs for s in pack.samples]


def assert_planned_as_built(reader, sample):
    """Tokens and labels of a sample by the plan are those of the stream and of Boson's batch."""
    stream = PackReader(reader.corpus, reader.model_folder, "packed")[Pack((sample,))].batch
    assert sample.num_tokens == len(stream.position_ids)
    assert sample.text_labels == len(stream.text_labels)
    assert {sample.audio_labels} == set((stream.audio_labels != -100).sum(0).tolist())


@pytest.fixture(scope="module")
def tools(tmp_path_factory, model_folder, codec_folder, hubert_folder):
    """What preprocess.shard needs besides rows; the clips are noise, each as long as no other."""
    root = tmp_path_factory.mktemp("clips")
    for number, name in enumerate(CLIPS):
        noise = np.random.default_rng(number).standard_normal(12_500 + 1_500 * number)
        soundfile.write(root / name, 0.1 * noise, 24_000)
    given = {"model": model_folder, "audio_tokenizer": codec_folder, "hubert": hubert_folder, "audio_root": root}
    return {**given, "workers": 1, "val_speakers": 0}


def run_shard(folder, tools, rows, **more):
    manifest = write_jsonl(folder / "rows.jsonl", rows)
    assert shard(manifest=manifest, out=folder / "shards", **tools, **more) == 0
    return folder / "shards"


def clips_by_name(corpus: Corpora) -> dict[str, Clip]:
    clips = [corpus.clip(row) for row in range(corpus.index.num_rows)]
    return {clip.meta["source"]: clip for clip in clips}


@pytest.fixture(scope="module")
def own_system(tmp_path_factory, tools):
    """A canonical corpus with --keep-system: named and drawn references, with a system text and without."""
    whisper = turn("system", text("Whisper, far away."))
    rows = [
        {"messages": cloning(0, 1, whisper)},
        {"messages": cloning(2, 3)},
        {"messages": cloning(2, 3, turn("system", text(DEFAULT_SYSTEM_TEXT)))},
        {"messages": [whisper, turn("user", text("one")), turn("assistant", audio(4))], "speaker": "h"},
        {"audio": CLIPS[5], "text": "two", "speaker": "h"},
    ]
    return run_shard(tmp_path_factory.mktemp("own"), tools, rows, keep_system=True)


def test_a_row_keeps_its_own_system_text_and_others_have_that_of_the_corpus(own_system, model_folder):
    reader = PackReader(Corpora([own_system]), model_folder, "boson")
    clips = clips_by_name(reader.corpus)
    source = {clip.key: name for name, clip in clips.items()}

    def canonical(system, said, reference, target_text, target):
        return as_sample(
            [
                turn("system", text(system)),
                turn("user", text(said)),
                turn("assistant", audio(reference)),
                turn("user", text(target_text)),
                turn("assistant", audio(target)),
            ],
            start_index=4,
        )

    expected = {
        CLIPS[1]: canonical("Whisper, far away.", "so it sounds", 0, "so be it", 1),
        CLIPS[3]: canonical(DEFAULT_SYSTEM_TEXT, "so it sounds", 2, "so be it", 3),
        CLIPS[4]: canonical("Whisper, far away.", "two", 5, "one", 4),
        CLIPS[5]: canonical(DEFAULT_SYSTEM_TEXT, "one", 4, "two", 5),
    }
    samples = planned_samples(reader)
    assert len(samples) == len(expected), "the row with the system text of the corpus is the one without"
    for sample in samples:
        loaded = reader[Pack((sample,))]
        assert_same(loaded.batch, bosons_batch(reader, clips, expected.pop(source[loaded.keys[0]])))
        assert_planned_as_built(reader, sample)
    assert not expected


def test_the_corpus_says_that_rows_had_system_texts_of_their_own(own_system):
    layout = json.loads((own_system / "corpus.json").read_text())["layout"]
    assert layout["keep_system"] is True
    assert layout["system_text"] == DEFAULT_SYSTEM_TEXT
