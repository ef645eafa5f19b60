"""ChatML rows with words of their own: training feeds what Boson makes of the row, and the plan counts it."""

import json
from collections import Counter

import numpy as np
import pytest
import soundfile
import torch
from boson_multimodal.data_types import AudioContent, ChatMLSample, Message, TextContent
from boson_multimodal.dataset.chatml_dataset import ChatMLDatasetSample, prepare_chatml_sample

from engine.base import zero
from engine.base.launcher import Launcher
from engine.base.stop import StopRequest
from engine.base.watchdog import Watchdog
from engine.batch.loader import PackReader, WaitClock
from engine.batch.sample import layout_cost, make_collator
from engine.job import prepare_job
from engine.loop import train_step
from engine.monitor.evaluation import evaluate
from engine.monitor.metrics import step_metrics, sum_over_ranks
from engine.plan.corpora import Corpora
from engine.plan.plan import Pack, Plan
from engine.plan.swapped import swap_references
from engine.run import build_engine
from launch.demo.small_model import build_model
from launch.show import main as show
from preprocess.common.errors import InputError
from preprocess.corpus.dialogue import DEFAULT_SYSTEM_TEXT
from preprocess.corpus.shards import Clip
from preprocess.verify import main as verify
from tests.fixtures.steps import ROOT, ZERO2, adapted_model, loss_and_gradients, make_job
from tests.preprocess.helpers import assert_parts, shard, write_jsonl

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
    plan = Plan(reader.corpora.index, split="train", cost=cost, packs_per_step=1, max_tokens=10_000, seed=0)
    epoch = plan.epoch(0)
    return [s for n in range(epoch.num_steps) for pack in epoch.step(n).packs for s in pack.samples]


def assert_planned_as_built(reader, sample):
    """Tokens and labels of a sample by the plan are those of the stream and of Boson's batch."""
    stream = PackReader(reader.corpora, reader.model_folder, "packed")[Pack((sample,))].batch
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
    clips = clips_by_name(reader.corpora)
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


def random_conversation(rng, number):
    """Turns of any order with texts and audio, the last assistant's turn with the one audio that is its target."""
    target = int(rng.integers(8))
    others = [clip for clip in range(8) if clip != target]

    def parts(role):
        found = []
        for place in range(rng.integers(1, 4)):
            is_audio = rng.random() < 0.5
            found.append(audio(int(rng.choice(others))) if is_audio else text(f"words {number} {place}"))
        return found

    roles = list(rng.choice(["user", "assistant", "system"], p=[0.45, 0.45, 0.1], size=rng.integers(0, 5)))
    messages = [turn(str(role), *parts(role)) for role in roles] + [turn("user", text(f"row {number}"))]
    messages.append(turn("assistant", *[text("so be it")] * int(rng.integers(2)), audio(target)))
    assistants = [n for n, message in enumerate(messages) if message["role"] == "assistant"]
    start = rng.choice([None, *assistants])
    return {"messages": messages, **({} if start is None else {"start_index": int(start)})}


SYSTEM = turn("system", text("Two friends talk."))
WRITTEN = {
    "voice cloning, the reference said by the user": {"messages": cloning(0, 1, SYSTEM)},
    "the same without a system turn": {"messages": cloning(0, 2)},
    "canonical": {
        "messages": [
            SYSTEM,
            turn("user", text("a")),
            turn("assistant", audio(0)),
            turn("user", text("b")),
            turn("assistant", audio(3)),
        ]
    },
    "audio alone": {"messages": [turn("assistant", audio(4))]},
    "audio before its words": {
        "messages": [SYSTEM, turn("user", text("say")), turn("assistant", audio(5), text("so"))]
    },
    "two audios in the last turn": {
        "messages": [turn("user", text("both")), turn("assistant", audio(6), text("and"), audio(7))]
    },
    "several turns, the last trained": {
        "messages": [
            SYSTEM,
            turn("user", text("hi")),
            turn("assistant", text("hello"), audio(0)),
            turn("user", text("go on"), audio(1)),
            turn("assistant", text("well"), audio(2)),
        ]
    },
    "several turns, all trained": {
        "messages": [
            turn("user", text("hi")),
            turn("assistant", text("hello"), audio(0)),
            turn("user", text("go on")),
            turn("assistant", text("well"), audio(2)),
        ],
        "start_index": 0,
    },
    "the assistant twice in a row": {
        "messages": [
            turn("user", text("talk")),
            turn("assistant", text("yes"), audio(1)),
            turn("assistant", audio(3)),
        ],
        "start_index": 1,
    },
    "turns after the target": {
        "messages": [turn("user", text("talk")), turn("assistant", audio(4)), turn("user", text("thanks"), audio(5))]
    },
    "voices in the system turn": {
        "messages": [
            turn("system", text("Voices:\n1"), audio(0), text("2"), audio(1)),
            turn("user", text("go on")),
            turn("assistant", audio(6)),
        ]
    },
    "words in two parts": {"messages": [turn("user", text("go"), text("on")), turn("assistant", audio(6))]},
    "the same audio shown twice": {
        "messages": [
            turn("user", audio(0)),
            turn("assistant", audio(0)),
            turn("user", text("again")),
            turn("assistant", audio(7)),
        ]
    },
}


def has_answer_in_prompt(row):
    """Whether a trained audio stands in the row twice: such rows are refused."""
    start = row.get("start_index", len(row["messages"]) - 1)
    places = [
        (part["audio_url"], message["role"] == "assistant" and number >= start)
        for number, message in enumerate(row["messages"])
        for part in message["content"]
        if part["type"] == "audio"
    ]
    times = Counter(name for name, _ in places)
    return any(is_trained and times[name] > 1 for name, is_trained in places)


def written_rows():
    rng = np.random.default_rng(0)
    rows = [random_conversation(rng, number) for number in range(60)]
    return [*WRITTEN.values(), *[row for row in rows if not has_answer_in_prompt(row)][:30]]


@pytest.fixture(scope="module")
def as_written(tmp_path_factory, tools):
    """A corpus of --layout as-written --keep-system: every row above, and 30 random ones."""
    folder = tmp_path_factory.mktemp("written")
    return run_shard(folder, tools, written_rows(), layout="as-written", keep_system=True)


def expected_samples(rows):
    """{(name of the target, its how manieth dialogue): the row in Boson's dataclass, with its start_index}."""
    expected, counts = {}, Counter()
    for row in rows:
        messages, start = row["messages"], row.get("start_index")
        last = max(n for n, message in enumerate(messages) if message["role"] == "assistant")
        start = last if start is None else start
        if messages[0]["role"] != "system":
            messages, start = [turn("system", text(DEFAULT_SYSTEM_TEXT)), *messages], start + 1
        target = [
            part["audio_url"]
            for m in messages
            if m["role"] == "assistant"
            for part in m["content"]
            if part["type"] == "audio"
        ][-1]
        expected[target, counts[target]] = as_sample(messages, start)
        counts[target] += 1
    return expected


def test_training_feeds_what_boson_makes_of_the_row_itself(as_written, model_folder):
    reader = PackReader(Corpora([as_written]), model_folder, "boson")
    clips = clips_by_name(reader.corpora)
    source = {clip.key: name for name, clip in clips.items()}
    expected = expected_samples(written_rows())
    samples = planned_samples(reader)
    assert len(samples) == len(expected) == len(WRITTEN) + 30
    assert {sample.num_trained for sample in samples} >= {1, 2, 3}
    for sample in samples:
        pack = Pack((sample,))
        loaded = reader[pack]
        boson = bosons_batch(reader, clips, expected.pop((source[loaded.keys[0]], sample.dialogue)))
        assert_same(loaded.batch, boson)
        assert_planned_as_built(reader, sample)
        stream = PackReader(reader.corpora, model_folder, "packed")[pack].batch
        placeholders = torch.tensor([reader.config.audio_in_token_idx, reader.config.audio_out_token_idx])
        assert torch.equal(stream.text_tokens, boson.input_ids[~torch.isin(boson.input_ids, placeholders)])
        assert torch.equal(stream.text_labels, boson.label_ids[boson.label_ids != -100])
        assert torch.equal(stream.audio_columns, boson.audio_out_ids)
        labels = boson.label_audio_ids.T
        assert torch.equal(stream.audio_labels, labels[(labels != -100).any(1)])
    assert not expected


@pytest.mark.parametrize("encode_audio_in_tokens", [False, True])
def test_losses_are_those_of_bosons_forward_that_passes_over_what_it_does_not_hear(
    as_written, model_folder, encode_audio_in_tokens
):
    model = adapted_model(model_folder)
    model.higgs.config.encode_audio_in_tokens = encode_audio_in_tokens  # as the released base has it
    readers = [PackReader(Corpora([as_written]), model_folder, forward) for forward in ("boson", "packed")]
    samples = planned_samples(readers[0])
    unheard = [s for s in samples if any(not a["has_codes"] for a in audios_of_index(readers[0], s))]
    assert len(unheard) > 10
    for pack in (Pack(tuple(samples)), Pack(tuple(unheard[:1]))):
        theirs, ours = (loss_and_gradients(model, reader[pack].batch, len(pack.samples)) for reader in readers)
        for found, wanted in zip(ours[0], theirs[0], strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-4)
        for name, gradient in theirs[1].items():
            assert (ours[1][name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-9, name


def audios_of_index(reader, sample):
    dialogues = reader.corpora.index.column("dialogues")[sample.target].as_py()
    return next(d["audios"] for d in dialogues if d["position"] == sample.dialogue)


def test_a_step_on_conversations_trains_and_validation_counts_their_labels(
    one_rank, as_written, model_folder, tmp_path
):
    losses, validation, moved = one_rank.run(train_a_step, model_folder, as_written, tmp_path / "run")[0]
    assert validation["loss_text"] == pytest.approx(losses["loss_text"], rel=1e-5)
    assert validation["loss_audio"] == pytest.approx(losses["loss_audio"], rel=1e-5)
    assert 0 <= validation["accuracy_stop"] <= 1
    assert all(0 < change < 1 for change in moved.values()), "each lora_B is zero before the step"


def train_a_step(model, data, out):
    """Losses of a step, those of the same packs as validation, and how far each lora_B moved."""
    overrides = ["batch.packs_per_step=2", "batch.max_tokens=4000", "run.precision=fp32", "lora.dropout=0.0"]
    job = make_job(model, data, out, overrides)
    engine = build_engine(job)
    step = job.plan.step(0)
    stop = StopRequest(Launcher())
    validation = evaluate(engine, job.reader, step.packs, [], 0, stop, Watchdog(0))
    stop.close()
    clock = WaitClock(job.reader[pack] for pack in step.packs)
    sums, _ = train_step(engine, clock, step, 0, 1e-3, job.recipe, Watchdog(0))
    losses = step_metrics(sum_over_ranks(sums), step, job.recipe.loss)
    masters = zero.gather_masters(engine)
    engine.destroy()
    return losses, validation, {name: float(value.norm()) for name, value in masters.items() if "lora_B" in name}


@pytest.mark.parametrize(
    ("override", "found"),
    [
        ("conditioning=whisper", "conditioning=whisper"),
        ("loss.consistency_weight=0.1", "loss.consistency_weight=0.1"),
        (None, "a base with an audio tower"),
    ],
)
def test_what_a_written_conversation_does_not_say_is_refused(as_written, model_folder, tmp_path, override, found):
    model = build_model(tmp_path / "tower", audio_tower=True) if override != "loss.consistency_weight=0.1" else None
    with pytest.raises(InputError) as caught:
        prepare_job(
            str(ZERO2),
            str(ROOT / "launch" / "recipes" / "demo.yaml"),
            [override] if override else [],
            str(model or model_folder),
            [str(as_written)],
            out=str(tmp_path / "run"),
            world_size=1,
        )
    assert_parts(caught.value, "--layout as-written", found, "conditioning=codes", "--layout canonical")


def test_corpora_of_two_layouts_are_refused(as_written, own_system):
    with pytest.raises(InputError, match="layout.name 'canonical'; expected layout.name 'as-written'"):
        Corpora([as_written, own_system])


def test_no_reference_of_a_conversation_is_swapped(as_written, model_folder):
    samples = planned_samples(PackReader(Corpora([as_written]), model_folder, "packed"))
    assert any(sample.references for sample in samples)
    assert swap_references([Pack(tuple(samples))]) == []


def test_a_conversation_is_verified_shown_and_reused(as_written, tools, model_folder, tmp_path, capsys):
    assert verify([str(as_written)]) == 0
    row = WRITTEN["voices in the system turn"]
    corpus = Corpora([as_written])
    names = {clip.meta["source"]: clip for clip in clips_by_name(corpus).values()}
    capsys.readouterr()
    assert show([str(as_written), names[CLIPS[1]].key, "--model", str(model_folder)]) == 0
    said = capsys.readouterr().out
    assert f"audio that the model does not receive: {names[CLIPS[0]].key}" in said
    assert f"audio columns: target {names[CLIPS[1]].key}" in said

    again = {name: value for name, value in tools.items() if name != "val_speakers"}
    held_out = write_jsonl(tmp_path / "val.jsonl", [{"messages": [turn("assistant", audio(5))]}])
    more = {"layout": "as-written", "keep_system": True, "reuse": as_written, "val_manifest": held_out}
    folder = run_shard(tmp_path, again, [row], **more)
    said = capsys.readouterr().out
    assert "reused: 4 clips" in said
    assert "warning: 1 rows have audio in turns of the user or the system" in said
    split = {row["key"]: row["split"] for row in Corpora([folder]).index.to_pylist()}
    assert [split[names[CLIPS[number]].key] for number in (0, 1, 6, 5)] == ["train"] * 3 + ["val"]


def test_a_dry_run_shows_the_conversation_with_what_is_trained(tools, tmp_path, capsys):
    manifest = write_jsonl(tmp_path / "rows.jsonl", [WRITTEN["several turns, the last trained"]])
    flags = {"manifest": manifest, "model": tools["model"], "audio_root": tools["audio_root"], "keep_system": True}
    assert shard(**flags, layout="as-written", dry_run=True) == 0
    said = capsys.readouterr().out
    assert "Two friends talk." in said
    assert "[[well<|audio_out_bos|><|AUDIO_OUT|><|audio_eos|><|eot_id|>]]" in said
    assert said.count("[[") == 2, "once in the line above it"
    assert f"audio: {CLIPS[0]}, {CLIPS[1]}, {CLIPS[2]}" in said
