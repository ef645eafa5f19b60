"""Several corpora under one plan, and the recipe's group `data`: how often, and with which references."""

import json
from collections import Counter, defaultdict

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.base.ranks import packs_of_rank
from engine.batch.loader import PackReader, load_packs
from engine.batch.sample import layout_cost
from engine.job import prepare_job
from engine.loop import _seed_pack
from engine.plan.corpora import Corpora
from engine.plan.plan import describe_plan
from preprocess.common.errors import InputError
from preprocess.common.record import write_record
from tests.fixtures import gate
from tests.fixtures.corpus import write_random_corpus
from tests.fixtures.index import (
    all_samples,
    dialogue_at,
    expected_samples,
    make_plan,
    named_dialogue,
    random_rows,
    recording_of,
    row,
    tables,
)
from tests.fixtures.ranks import RankError
from tests.fixtures.steps import ROOT, ZERO2

several = st.lists(st.builds(random_rows, seed=st.integers(0, 2**31), num_clips=st.integers(50, 90)), max_size=3)
several = several.filter(len)
seeds = st.integers(0, 2**63 - 1)
ALL = 10_000  # a budget that drops nothing


@st.composite
def data_settings(draw, num_corpora):
    """A recipe's group `data` for so many corpora."""
    return {
        "references_per_sample": draw(st.integers(1, 3)),
        "share_without_reference": draw(st.sampled_from([0.0, 0.1, 0.5])),
        "repeat": draw(st.lists(st.sampled_from([0.5, 1.0, 1.5, 3.0]), min_size=num_corpora, max_size=num_corpora)),
    }


def numbered(corpora):
    """(corpus, row) of each row of the index."""
    return [(number, r) for number, rows in enumerate(corpora) for r in rows]


@settings(max_examples=25, deadline=None)
@given(several, seeds, st.data())
def test_every_sample_is_taken_as_often_as_its_corpus_repeats(corpora, seed, data):
    chosen = [0.25, 0.5, 1.0, 2.5, 3.0]
    repeat = data.draw(st.lists(st.sampled_from(chosen), min_size=len(corpora), max_size=len(corpora)))
    plan = make_plan(tables(corpora), seed=seed, repeat=repeat, max_tokens=ALL, packs_per_step=1)
    first_rows = np.cumsum([0, *map(len, corpora)])
    expected = {
        (first + target, position): times
        for rows, first, times in zip(corpora, first_rows, repeat, strict=False)
        for target, position in expected_samples(rows, "train")
    }
    start, together = data.draw(st.integers(0, 5)), Counter()
    for epoch in range(start, start + 4):
        taken = Counter((sample.target, sample.dialogue) for sample in all_samples(plan, epoch))
        assert taken.keys() <= expected.keys()
        # What an epoch takes of a corpus is its share of the samples, and of each sample about its number.
        for number, times in enumerate(repeat):
            mine = [sample for sample in expected if first_rows[number] <= sample[0] < first_rows[number + 1]]
            assert abs(sum(taken[sample] for sample in mine) - times * len(mine)) < 1
            assert all(abs(taken[sample] - times) < 1 for sample in mine)
        together += taken
    # Nothing is missed for long: four epochs take each sample four times its number, whichever they are.
    assert together == {sample: 4 * times for sample, times in expected.items()}


@settings(max_examples=40, deadline=None)
@given(several, seeds, st.integers(0, 4), st.data())
def test_references_are_distinct_of_the_same_speaker_and_another_recording(corpora, seed, epoch, data):
    wanted = data.draw(data_settings(len(corpora)))
    rows = numbered(corpora)
    plan = make_plan(tables(corpora), seed=seed, max_tokens=ALL, packs_per_step=1, **wanted)
    others = defaultdict(set)
    for number, (corpus, r) in enumerate(rows):
        if r["use"] and r["split"] == "train" and r["speaker"] is not None:
            others[corpus, r["speaker"]].add(number)
    left_out = drawing = 0
    for sample in all_samples(plan, epoch):
        corpus, target = rows[sample.target]
        if sample.dialogue >= 0:
            named = [audio["key"] for audio in dialogue_at(target, sample.dialogue)["audios"]]
            named = [key for key in named if key != target["key"]]
            assert [rows[number][1]["key"] for number in sample.references] == named
            assert all(rows[number][0] == corpus for number in sample.references)
            continue
        mine = {n for n in others[corpus, target["speaker"]] if recording_of(rows[n][1]) != recording_of(target)}
        assert set(sample.references) <= mine
        assert len(set(sample.references)) == len(sample.references)
        if mine:
            drawing += 1
            left_out += not sample.references
            assert len(sample.references) in (0, min(len(mine), wanted["references_per_sample"]))
        else:
            assert not sample.references
    assert left_out == round(wanted["share_without_reference"] * drawing)
    summary = plan.summary(epoch)
    assert (summary["drawn"], summary["reference_left_out"]) == (drawing - left_out, left_out)
    assert summary["samples"] == drawing + summary["without_reference"] + summary["named"]
    assert [corpus["repeat"] for corpus in summary["corpora"]] == wanted["repeat"]
    assert sum(corpus["samples"] for corpus in summary["corpora"]) == summary["samples"]
    assert sum(corpus["tokens"] for corpus in summary["corpora"]) == plan.epoch(epoch).num_tokens.sum()


@settings(max_examples=25, deadline=None)
@given(seeds, st.integers(2, 12), st.integers(1, 3), st.sampled_from([0.5, 1.0, 1.5, 3.0]))
def test_a_target_meets_every_other_clip_before_one_comes_again(seed, num_clips, references, times):
    rows = [row(f"clip{number:02d}") for number in range(num_clips)]
    plan = make_plan(rows, seed=seed, repeat=[times], references_per_sample=references, packs_per_step=1)
    met = defaultdict(Counter)
    for epoch in range(8):
        for sample in all_samples(plan, epoch):
            met[sample.target].update(sample.references)
        for target in range(num_clips):
            counts = [met[target][other] for other in range(num_clips) if other != target]
            assert max(counts) - min(counts) <= 1


def test_those_who_train_without_a_reference_are_others_each_epoch():
    rows = [row(f"clip{number:03d}", speaker=f"s{number % 20}") for number in range(400)]
    keys = [f"named{number}" for number in range(50)]
    rows += [row(key, draws_reference=False, dialogues=[named_dialogue(key, "clip000")]) for key in keys]
    plan = make_plan(rows, share_without_reference=0.25)
    without = [{s.target for s in all_samples(plan, epoch) if not s.references} for epoch in range(2)]
    assert [len(targets) for targets in without] == [100, 100]
    assert 10 < len(without[0] & without[1]) < 45  # 25 by chance
    packs = make_plan([{**r, "split": "val"} for r in rows], split="val", share_without_reference=0.25)
    assert all(sample.references for pack in packs.evaluation_packs() for sample in pack.samples)


def test_evaluation_takes_each_sample_once_whatever_the_repeat():
    rows = [row(f"clip{number:02d}", split="val") for number in range(20)]
    for times in (0.25, 3.0):
        packs = make_plan(rows, split="val", repeat=[times]).evaluation_packs()
        assert sorted(sample.target for pack in packs for sample in pack.samples) == list(range(20))


def test_the_narrow_index_of_training_plans_what_the_whole_one_does(random_corpus, twin_corpus):
    whole = [random_corpus.index, twin_corpus.index]
    numbers = [pa.array([number] * len(index), pa.int32()) for number, index in enumerate(whole)]
    whole = pa.concat_tables(i.append_column("corpus", n) for i, n in zip(whole, numbers, strict=True))
    narrow = Corpora([random_corpus.folder, twin_corpus.folder]).index
    assert narrow.nbytes < whole.nbytes
    assert narrow.to_pylist() == whole.select(narrow.column_names).to_pylist()
    settings = {"references_per_sample": 2, "repeat": [1, 0.5], "max_tokens": 600, "packs_per_step": 2}
    plans = [make_plan(index, **settings) for index in (narrow, whole)]
    steps = [[plan.step(number) for number in range(plan.total_steps(2))] for plan in plans]
    assert steps[0] == steps[1]


def test_speakers_of_two_corpora_are_two_even_under_one_name():
    corpora = [[row("a0"), row("a1"), row("alone", speaker="x")], [row("a0"), row("b1"), row("b2", speaker="x")]]
    plan = make_plan(tables(corpora), packs_per_step=1)
    samples = {sample.target: sample for sample in all_samples(plan, 0)}
    assert [samples[number].references for number in range(6)] == [(1,), (0,), (), (4,), (3,), ()]
    assert plan.summary()["speakers_per_step"] == 4
    assert len({sample.speaker for sample in samples.values()}) == 4


def test_names_are_looked_up_in_the_corpus_of_their_target():
    named = [row(key, draws_reference=False, dialogues=[named_dialogue(key, "voice")]) for key in "ab"]
    corpora = [[named[0], row("voice")], [named[1], row("voice")]]
    plan = make_plan(tables(corpora), packs_per_step=1)
    assert {s.target: s.references for s in all_samples(plan, 0) if s.dialogue >= 0} == {0: (1,), 2: (3,)}
    with pytest.raises(InputError, match=r"1 references to clips that are not there: voice \(named by b\)"):
        make_plan(tables([corpora[0], [named[1]]]))


def test_a_long_sample_of_several_corpora_is_named_with_its_corpus():
    corpora = [[row(f"clip{n}") for n in range(9)] + [row("long", speaker="b")], [row("long", frames=9000)]]
    plan = make_plan(tables(corpora), repeat=[1.0, 2.0])
    assert plan.epoch(0).dropped == (("long of corpus 2", 9042), ("long of corpus 2", 9042))
    text = describe_plan(json.loads(json.dumps(plan.summary())))
    assert "10 from corpus 1 (1 times each, 100.0% of the tokens), 0 from corpus 2 (2 times each, 0.0%" in text


def test_copies_of_one_recording_are_never_each_others_references():
    rows = [row("clip"), row("clip_noisy", derived_from="clip"), row("clip_loud", derived_from="clip")]
    rows += [row(f"of_lost_{number}", derived_from="lost", speaker="b") for number in range(2)]
    assert not any(sample.references for sample in all_samples(make_plan(rows, packs_per_step=1), 0))
    rows += [row("other"), row("of_lost_too", derived_from="lost_too", speaker="b")]
    keys = [r["key"] for r in sorted(rows, key=lambda r: r["key"])]
    samples = all_samples(make_plan(rows, packs_per_step=1), 0)
    drawn = {keys[s.target]: {keys[reference] for reference in s.references} for s in samples}
    assert drawn["clip"] == drawn["clip_noisy"] == drawn["clip_loud"] == {"other"}
    assert drawn["of_lost_0"] == drawn["of_lost_1"] == {"of_lost_too"}


def test_a_copy_of_a_copy_is_refused():
    rows = [row("clip"), row("copy", derived_from="clip"), row("copy_of_copy", derived_from="copy")]
    with pytest.raises(InputError) as caught:
        make_plan(rows)
    assert caught.value.where == "index: derived_from"
    assert caught.value.found == "1 clips derived from a clip that is itself derived: copy_of_copy"
    assert caught.value.expected == "keys of originals"
    assert "first recording" in caught.value.action


@settings(max_examples=20, deadline=None)
@given(several, seeds, st.integers(1500, 9000), st.sampled_from([1, 2, 4, 8]), st.data())
def test_every_world_size_trains_the_same_sequence_from_any_step_on(corpora, seed, max_tokens, world_size, data):
    wanted = {"seed": seed, "max_tokens": max_tokens, **data.draw(data_settings(len(corpora)))}
    plan = make_plan(tables(corpora), **wanted)
    total_steps = plan.total_steps(2)
    straight = [plan.step(number).packs for number in range(total_steps)]
    assert all(pack.samples for packs in straight for pack in packs)
    assert all(pack.num_tokens <= max_tokens for packs in straight for pack in packs)
    first_step = data.draw(st.integers(0, total_steps - 1))
    dealt = [[None] * 8 for _ in range(first_step, total_steps)]
    for rank in range(world_size):
        own_plan = make_plan(tables(corpora), **wanted)  # as a resumed rank makes it
        for number in range(first_step, total_steps):
            packs = own_plan.step(number).packs
            for pack in packs_of_rank(8, rank, world_size):
                dealt[number - first_step][pack] = packs[pack]
    assert dealt == straight[first_step:]


@pytest.fixture(scope="module")
def twin_corpus(tmp_path_factory, model_folder):
    """Another corpus for `model_folder` whose clips have the keys and speakers of `random_corpus`."""
    return write_random_corpus(tmp_path_factory.mktemp("twin_corpus"), model_folder, seed=5)


def test_loader_workers_deliver_the_plan_of_two_corpora_in_order(model_folder, random_corpus, twin_corpus):
    corpora = Corpora([random_corpus.folder, twin_corpus.folder])
    reader = PackReader(corpora, model_folder, "packed")
    cost = layout_cost(reader.tokenizer, reader.config, reader.system_text)
    settings = {"references_per_sample": 2, "repeat": [1, 0.5], "max_tokens": 600, "packs_per_step": 2}
    plan = make_plan(corpora.index, cost=cost, **settings)
    packs = [pack for number in range(plan.total_steps(2)) for pack in plan.step(number).packs]
    expected = [reader[pack] for pack in packs]
    assert len({loaded.keys[0] for loaded in expected}) > 4
    for num_workers in (0, 1, 3, 8):
        loaded = list(load_packs(reader, packs, num_workers, pin_memory=False))
        assert [pack.keys for pack in loaded] == [pack.keys for pack in expected]
        for one, other in zip(loaded, expected, strict=True):
            for name, value in vars(one.batch).items():
                assert torch.equal(value, getattr(other.batch, name)) if torch.is_tensor(value) else True, name


def test_rows_of_the_second_corpus_are_its_own_clips(random_corpus, twin_corpus):
    corpora = Corpora([random_corpus.folder, twin_corpus.folder])
    first = random_corpus.index.num_rows
    assert corpora.index.num_rows == first + twin_corpus.index.num_rows
    assert corpora.clip(first).key == corpora.clip(0).key
    for place in (0, first - 1):
        assert np.array_equal(corpora.clip(place).codes, random_corpus.clip(place).codes)
        assert np.array_equal(corpora.clip(first + place).codes, twin_corpus.clip(place).codes)
    assert corpora.fingerprints == [random_corpus.fingerprint, twin_corpus.fingerprint]


def test_packs_and_steps_have_dropout_of_their_own():
    def mask(seed, step, pack):
        _seed_pack(seed, step, pack)
        return torch.nn.functional.dropout(torch.ones(200), 0.5)

    masks = {place: mask(*place) for place in [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 1, 1)]}
    # Ranks take different packs of a step, so their masks differ too.
    assert len({tuple(value.tolist()) for value in masks.values()}) == len(masks)
    assert all(torch.equal(mask(*place), value) for place, value in masks.items())


def refused(model, data, overrides=()):
    with pytest.raises(InputError) as caught:
        prepare_job(
            deepspeed=str(ZERO2),
            recipe=str(ROOT / "launch" / "recipes" / "demo.yaml"),
            overrides=list(overrides),
            model=str(model),
            data=[str(folder) for folder in data],
            out="/nonexistent",
            world_size=1,
        )
    return caught.value


def test_corpora_that_disagree_are_refused_with_all_that_differs(tmp_path, model_folder, random_corpus, twin_corpus):
    other = tmp_path / "other"
    other.mkdir()
    for path in twin_corpus.folder.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    info = json.loads((other / "corpus.json").read_text())
    info["codec"]["fingerprint"] = "another codec"
    info["text_tokenizer"]["fingerprint"] = "another tokenizer"
    info["layout"] = {"system_text": "Speak.", "normaliser_version": 0}
    write_record(other / "corpus.json", info)
    error = refused(model_folder, [random_corpus.folder, other])
    assert error.where == str(other / "corpus.json")
    assert error.found.startswith(
        "codec.fingerprint 'another codec'; text_tokenizer.fingerprint 'another tokenizer'; "
    )
    assert error.found.endswith("layout.system_text 'Speak.'; layout.normaliser_version 0")
    assert "codec.fingerprint 'random codes'" in error.expected
    assert error.expected.endswith(f"as {random_corpus.folder / 'corpus.json'} says")
    assert "preprocess.shard" in error.action


def test_a_corpus_given_twice_is_refused(model_folder, random_corpus, twin_corpus):
    error = refused(model_folder, [random_corpus.folder, twin_corpus.folder, random_corpus.folder])
    assert error.where == f"--data {random_corpus.folder}"
    assert error.found == f"the same clips as in --data {random_corpus.folder}"
    assert error.expected == "each corpus once"
    assert "data.repeat" in error.action


def test_another_number_of_repeats_than_corpora_is_refused(model_folder, random_corpus, twin_corpus):
    error = refused(model_folder, [random_corpus.folder, twin_corpus.folder], ["data.repeat=[1, 2, 3]"])
    assert error.where == "recipe: data.repeat"
    assert error.found == "3 numbers"
    assert error.expected.startswith("2, one per --data in the same order")
    assert error.action == "Correct the list."


def test_a_run_records_its_corpora_and_resumes_with_the_same_alone(
    tmp_path, one_rank, model_folder, random_corpus, twin_corpus
):
    data = [random_corpus.folder, twin_corpus.folder]
    overrides = ["data.repeat=[1,0.5]", "run.max_steps=2", "run.epochs=2", "batch.max_tokens=600"]
    one_rank.run(gate.train, model_folder, data, tmp_path, overrides)
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["corpora"] == [str(folder) for folder in data]
    assert run["identity"]["corpus_fingerprints"] == [random_corpus.fingerprint, twin_corpus.fingerprint]
    chosen = {"references_per_sample": 1, "share_without_reference": 0.0, "repeat": [1, 0.5]}
    assert run["identity"]["data"] == chosen
    assert [corpus["samples"] for corpus in run["plan"]["corpora"]] == [18, 9]
    with pytest.raises(RankError) as caught:
        one_rank.run(gate.train, model_folder, data, tmp_path, [*overrides, "data.repeat=[1,1]"])
    assert isinstance(caught.value.original, InputError)
    assert "data" in caught.value.original.where
