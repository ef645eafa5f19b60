"""The plan: exact, the same for every world size, and full."""

import json
import os
import pickle  # noqa: S403 - only to measure how long an epoch is as spawned workers get it
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.base.ranks import packs_of_rank
from engine.plan.packing import complete_last_step, pack_samples
from engine.plan.plan import describe_epoch_start, describe_plan, locate_step
from preprocess.common.errors import InputError
from tests.fixtures.index import (
    all_samples,
    expected_labels,
    expected_samples,
    expected_tokens,
    make_plan,
    named_dialogue,
    random_rows,
    row,
    table,
)

REPOSITORY = Path(__file__).parents[3]


corpora = st.builds(random_rows, seed=st.integers(0, 2**31), num_clips=st.integers(60, 160))
seeds = st.integers(0, 2**63 - 1)
epochs = st.integers(0, 5)
# The longest samples of `corpora` (two references of 30 s) don't fit into the smaller budgets.
budgets = st.integers(1200, 9000)


@settings(max_examples=60, deadline=None)
@given(corpora, seeds, epochs, budgets, st.sampled_from([1, 2, 3, 8]))
def test_an_epoch_is_whole_steps_of_each_sample_once(rows, seed, epoch, max_tokens, packs_per_step):
    plan = make_plan(rows, seed=seed, max_tokens=max_tokens, packs_per_step=packs_per_step)
    epoch_plan = plan.epoch(epoch)
    seen = []
    assert epoch_plan.num_steps > 0
    for number in range(epoch_plan.num_steps):
        step = epoch_plan.step(number)
        samples = [sample for pack in step.packs for sample in pack.samples]
        assert len(step.packs) == packs_per_step
        for pack in step.packs:
            assert pack.samples
            assert pack.num_tokens == sum(expected_tokens(rows, sample) for sample in pack.samples) <= max_tokens
        assert step.num_samples == len(samples)
        assert step.num_tokens == sum(sample.num_tokens for sample in samples)
        labels = [expected_labels(rows, sample) for sample in samples]
        assert (step.text_count, step.audio_count) == tuple(map(sum, zip(*labels, strict=True)))
        assert step.audio_frames == step.audio_count - sum(sample.num_trained for sample in samples)
        seen += [(sample.target, sample.dialogue) for sample in samples]
    dropped = Counter(key for key, _ in epoch_plan.dropped)
    assert all(tokens > max_tokens for _, tokens in epoch_plan.dropped)
    missing = expected_samples(rows, "train") - set(seen)
    assert len(seen) == len(set(seen))
    assert set(seen) <= expected_samples(rows, "train")
    assert Counter(rows[target]["key"] for target, _ in missing) == dropped


def test_first_references_are_uniform_over_the_other_clips():
    rows = [row(f"clip{n}") for n in range(5)] + [row("other", speaker="b")]
    drawn = Counter()
    for seed in range(1000):
        samples = all_samples(make_plan(rows, packs_per_step=1, seed=seed), 0)
        drawn.update((sample.target, reference) for sample in samples for reference in sample.references)
    assert len(drawn) == 5 * 4
    # Each pair is drawn 250 times on average, with a standard deviation of 14.
    assert all(180 < count < 320 for count in drawn.values())


@pytest.mark.parametrize("changed", [{"seed": 1}, {"epoch": 1}])
def test_another_seed_or_epoch_draws_and_orders_anew(changed):
    rows = [row(f"clip{n:04d}", speaker=f"speaker{n % 20}") for n in range(1000)]

    def references_and_order(seed=0, epoch=0):
        samples = all_samples(make_plan(rows, seed=seed), epoch)
        return {s.target: s.references for s in samples}, [s.target for s in samples]

    (references, order), (other_references, other_order) = references_and_order(), references_and_order(**changed)
    same = np.mean([references[target] == other_references[target] for target in references])
    assert same < 0.05  # 1 in 49 by chance
    assert np.mean(np.array(order) == np.array(other_order)) < 0.02


def test_a_long_reference_drops_its_sample_for_that_epoch_alone():
    rows = [row(f"clip{n:02d}") for n in range(20)] + [row("long", frames=700, draws_reference=False)]
    plan = make_plan(rows, max_tokens=600, packs_per_step=2)
    dropped = [dict(plan.epoch(epoch).dropped) for epoch in range(10)]
    assert len({frozenset(names) for names in dropped}) > 1
    assert any(dropped)
    assert all(tokens == 23 + 10 + 50 + 9 + 11 + 10 + 700 + 9 for names in dropped for tokens in names.values())
    epoch = next(epoch for epoch in range(1, 10) if dropped[epoch])
    key = next(iter(dropped[epoch]))
    text = describe_epoch_start(epoch, plan.epoch(epoch))
    assert text.startswith(f"Epoch {epoch} begins: {20 - len(dropped[epoch])} samples in ")
    assert f"Dropped as longer than a pack: {len(dropped[epoch])}: {key} (822 tokens)" in text


def test_steps_count_through_the_epochs():
    rows = random_rows(seed=5, num_clips=150)
    plan, steps = make_plan(rows), []
    for epoch in range(4):
        steps += [(epoch, number) for number in range(plan.num_steps(epoch))]
    assert plan.total_steps(4) == len(steps)
    assert [locate_step(plan, number) for number in range(len(steps))] == steps
    backwards = {number: plan.step(number) for number in reversed(range(len(steps)))}
    assert [backwards[n] for n in range(len(steps))] == [plan.epoch(e).step(n) for e, n in steps]
    with pytest.raises(IndexError):
        plan.epoch(0).step(plan.num_steps(0))


def test_chunks_of_the_index_do_not_matter():
    rows = random_rows(seed=1, num_clips=120)
    whole = table(rows)
    parts = pa.concat_tables([whole.slice(0, 50), whole.slice(50, 1), whole.slice(51)])
    assert make_plan(parts).epoch(0).step(0) == make_plan(whole).epoch(0).step(0)


DIGEST = """
import hashlib, sys
import pyarrow.parquet
from engine.plan.plan import Plan
from engine.plan.samples import LayoutCost
cost = LayoutCost(tokens_base=23, tokens_per_reference=11, columns_extra=9, text_labels=3)
index = pyarrow.parquet.read_table(sys.argv[1])
plan = Plan(index, split="train", cost=cost, packs_per_step=8, max_tokens=2000, seed=0)
digest = hashlib.sha256()
for epoch in range(2):
    digest.update(repr([plan.epoch(epoch).step(number) for number in range(plan.num_steps(epoch))]).encode())
assert "torch" not in sys.modules
print(digest.hexdigest())
"""


def test_the_plan_has_the_same_bytes_under_every_hash_seed(tmp_path):
    pq.write_table(table(random_rows(3, 150)), tmp_path / "index.parquet")
    outputs = []
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        command = [sys.executable, "-c", DIGEST, str(tmp_path / "index.parquet")]
        outputs.append(subprocess.check_output(command, cwd=REPOSITORY, env=environment, text=True))
    assert outputs[0] == outputs[1]
    assert len(outputs[0].strip()) == 64


@pytest.mark.parametrize("max_tokens", [8192, 16384])
def test_packs_of_speech_are_full_and_mixed(speech_index, max_tokens):
    plan = make_plan(speech_index, max_tokens=max_tokens)
    epoch = plan.epoch(0)
    assert len(epoch.order) == 100_000
    assert plan.summary()["fill"] >= 0.99
    # A step is as mixed as samples picked at random. Lengths: the share of their variance that lies between
    # steps, which for random picks is one part in samples a step. Speakers: how many a step has.
    step = np.repeat(np.arange(epoch.num_steps), epoch.num_samples)
    lengths = epoch.drawn.tokens[epoch.order].astype(float)
    means = np.bincount(step, lengths) / epoch.num_samples
    between_steps = np.average((means - lengths.mean()) ** 2, weights=epoch.num_samples) / lengths.var()
    assert abs(between_steps - epoch.num_steps / len(lengths)) < 0.006
    speakers = np.random.default_rng(0).permutation(epoch.order) // 50  # about 50 clips each
    picked = len(np.unique(step * 10_000 + speakers)) / epoch.num_steps
    assert abs(plan.summary()["speakers_per_step"] / picked - 1) < 0.02
    assert len(pickle.dumps(epoch)) < 48 * 100_000


def test_packs_of_long_clips_are_full():
    """Eight samples a pack leave little to choose from: here the longest have to go first."""
    rng = np.random.default_rng(0)
    duration_sec = np.clip(rng.lognormal(np.log(15), 0.7, (2, 20_000)), 1, 30)
    tokens = (duration_sec * 30).astype(int).sum(axis=0) + 68
    _, pack_offsets = pack_samples(tokens, 8192, rng)
    assert tokens.sum() / (8192 * (len(pack_offsets) - 1)) >= 0.99


@settings(max_examples=100, deadline=None)
@given(st.integers(10, 500), st.lists(st.floats(0, 1), max_size=400), seeds)
@example(10, [1.0] * 400, 0)  # windows with fewer samples than packs
def test_any_lengths_are_packed_within_the_budget(max_tokens, shares, seed):
    tokens = np.array([1 + round(share * (max_tokens - 1)) for share in shares], dtype=np.int64)
    samples, offsets = pack_samples(tokens, max_tokens, np.random.default_rng(seed))
    assert sorted(samples) == list(range(len(tokens)))
    packs = np.split(samples, offsets[1:-1]) if len(tokens) else []
    assert all(0 < tokens[pack].sum() <= max_tokens for pack in packs)
    assert offsets[0] == 0
    assert offsets[-1] == len(tokens)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=40), st.integers(1, 9))
def test_the_last_step_is_dealt_over_all_its_packs(sizes, packs_per_step):
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    samples = np.random.default_rng(0).permutation(offsets[-1])
    num_steps = -(-len(sizes) // packs_per_step)
    if len(sizes) % packs_per_step and len(samples) < num_steps * packs_per_step:
        with pytest.raises(InputError):
            complete_last_step(samples, offsets, packs_per_step)
        return
    dealt, dealt_offsets = complete_last_step(samples, offsets, packs_per_step)
    assert len(dealt_offsets) - 1 == num_steps * packs_per_step
    assert sorted(dealt) == list(range(len(samples)))
    packs = [frozenset(pack.tolist()) for pack in np.split(dealt, dealt_offsets[1:-1])]
    whole = [frozenset(pack.tolist()) for pack in np.split(samples, offsets[1:-1])]
    assert all(packs)
    # A pack is a part of one that was there, so its tokens fit; steps before those that share are as they were.
    assert all(any(pack <= old for old in whole) for pack in packs)
    num_dealt = num_steps * packs_per_step
    firsts = range(num_dealt - packs_per_step, -1, -packs_per_step) if len(sizes) % packs_per_step else [num_dealt]
    untouched = next(first for first in firsts if sum(sizes[first:]) >= num_dealt - first)
    assert packs[:untouched] == whole[:untouched]


def test_the_last_two_steps_share_evenly_where_too_few_samples_are_left():
    sizes = [24, 24, 24, 24, 8, 8, 8, 8, 3]  # a step of 8 packs and one pack
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    dealt, dealt_offsets = complete_last_step(np.arange(131), offsets, 8)
    assert len(dealt) == 131
    assert len(dealt_offsets) == 17
    num_samples = np.diff(dealt_offsets[::8])
    assert abs(num_samples[0] - num_samples[1]) < 12


def test_a_world_size_that_does_not_divide_the_packs_is_refused():
    with pytest.raises(InputError) as error:
        packs_of_rank(packs_per_step=12, rank=0, world_size=8)
    assert error.value.where == "world size"
    assert error.value.found == "8 ranks"
    assert error.value.expected.startswith("1, 2, 3, 4, 6, 12:")
    assert "--num_gpus" in error.value.action
    assert "packs_per_step to a multiple of 8" in error.value.action


def test_a_split_of_fewer_samples_than_packs_is_refused():
    rows = [row(f"clip{n}") for n in range(6)] + [row("long", frames=5000, speaker="b"), row("val", split="val")]
    with pytest.raises(InputError) as error:
        make_plan(rows).epoch(0)
    assert error.value.where == "plan of split 'train'"
    assert error.value.found == "6 samples of at most max_tokens=2000 tokens, and 1 longer"
    assert error.value.expected.startswith("at least packs_per_step=8")
    assert "smaller batch.packs_per_step" in error.value.action


def test_packs_of_one_sample_that_make_no_whole_steps_are_refused():
    rows = [row(f"clip{n}", frames=500, speaker=f"speaker{n}") for n in range(9)]
    with pytest.raises(InputError) as error:
        make_plan(rows, max_tokens=600).epoch(0)
    assert error.value.where == "plan"
    assert error.value.found == "9 samples in 9 packs"
    assert error.value.expected.startswith("at least 16 samples")
    assert "Raise batch.max_tokens" in error.value.action
    assert "batch.packs_per_step" in error.value.action
    assert make_plan(rows, max_tokens=600, packs_per_step=3).epoch(0).num_steps == 3


def test_named_references_that_are_not_in_the_index_are_refused_all_at_once():
    rows = [row("a", dialogues=[named_dialogue("a", "b", "lost1"), named_dialogue("a", "lost2")]), row("b")]
    unused = row("c", dialogues=[named_dialogue("c", "lost3")], use=False)
    with pytest.raises(InputError) as error:
        make_plan([*rows, unused])
    assert error.value.where == "index: dialogues"
    assert error.value.found == "2 references to clips that are not there: lost1 (named by a), lost2 (named by a)"
    assert error.value.expected == "keys of clips in the same index"
    assert "failures.jsonl" in error.value.action


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 60), st.integers(200, 3000))
def test_evaluation_holds_each_sample_once_and_never_changes(corpus_seed, num_clips, max_tokens):
    """Even where samples are fewer than packs a step, or longer than a pack."""
    rows = random_rows(corpus_seed, num_clips)
    plan = make_plan(rows, split="val", max_tokens=max_tokens)
    packs = plan.evaluation_packs()
    samples = [sample for pack in packs for sample in pack.samples]
    assert len(samples) == len({(s.target, s.dialogue) for s in samples})
    assert {(s.target, s.dialogue) for s in samples} == expected_samples(rows, "val")
    assert all(len(pack.samples) == 1 or 0 < pack.num_tokens <= max_tokens for pack in packs)
    assert packs == plan.evaluation_packs() == make_plan(rows, split="val", max_tokens=max_tokens).evaluation_packs()


def test_the_summary_balances_and_names_what_was_dropped():
    dialogue = named_dialogue("named", "a00")
    rows = [row(f"a{n:02d}") for n in range(30)] + [row(f"single{n}", speaker=f"s{n}") for n in range(4)]
    rows += [row("named", draws_reference=False, dialogues=[dialogue, dialogue], speaker="n")]
    rows += [row("long", frames=9999, speaker="l"), row("unused", use=False), row("val", split="val")]
    rows += [row("reference_only", draws_reference=False)]
    plan = make_plan(rows, packs_per_step=2, max_tokens=700)
    summary = json.loads(json.dumps(plan.summary()))
    counts = {name: summary[name] for name in ("samples", "targets", "drawn", "without_reference", "named")}
    assert counts == {"samples": 36, "targets": 35, "drawn": 30, "without_reference": 4, "named": 2}
    assert summary["dropped"] == [{"key": "long", "tokens": 23 + 10 + 9999 + 9}]
    steps = [plan.epoch(0).step(number) for number in range(summary["steps"])]
    for name, values in {
        "samples_per_step": [step.num_samples for step in steps],
        "tokens_per_step": [step.num_tokens for step in steps],
    }.items():
        assert summary[name] == {"mean": pytest.approx(np.mean(values)), "min": min(values), "max": max(values)}
    keyed = sorted(rows, key=lambda row: row["key"])
    speakers = [{keyed[s.target]["speaker"] for pack in step.packs for s in pack.samples} for step in steps]
    assert summary["speakers_per_step"] == pytest.approx(np.mean([len(names) for names in speakers]))
    assert summary["fill"] == pytest.approx(sum(step.num_tokens for step in steps) / (len(steps) * 2 * 700))
    text = describe_plan(summary)
    assert "36 samples (30 with drawn references, 4 of speakers with one clip, 0 set to none" in text
    assert "2 with named ones)" in text
    assert text.endswith("Dropped as longer than a pack: 1: long (10,041 tokens).")
