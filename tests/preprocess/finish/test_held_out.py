"""Voices held out for validation: whole voices, never one that training hears."""

from hypothesis import given
from hypothesis import strategies as st

from preprocess.corpus.shards import Corpus
from preprocess.finish.held_out import held_out_speakers


def corpus(num_speakers, clips_each=3):
    return [(f"s{speaker:03d}", 2.0) for speaker in range(num_speakers) for _ in range(clips_each)]


def test_by_default_two_voices_of_four_or_more_are_held_out_one_of_three_and_none_of_two():
    for num_voices in range(4, 101):
        assert len(held_out_speakers(corpus(num_voices), [], "0.02", 0)) == 2
    assert len(held_out_speakers(corpus(3), [], "0.02", 0)) == 1
    assert held_out_speakers(corpus(2), [], "0.02", 0) == set()
    assert len(held_out_speakers(corpus(200), [], "0.02", 0)) == 4
    assert len(held_out_speakers(corpus(10), [], "3", 0)) == 3
    assert held_out_speakers(corpus(10), [], "0", 0) == set()
    assert held_out_speakers([], [], "0.02", 0) == set()


def test_the_seed_chooses_the_voices_and_the_order_of_clips_does_not():
    chosen = held_out_speakers(corpus(50), [], "5", 0)
    assert held_out_speakers(reversed(corpus(50)), [], "5", 0) == chosen
    assert held_out_speakers(corpus(50), [], "5", 1) != chosen


def test_voices_with_much_audio_or_a_single_clip_are_never_held_out():
    clips = corpus(6) + [("big", 2.0)] * 50 + [("single", 2.0)]
    for seed in range(30):
        assert not held_out_speakers(clips, [], "3", seed) & {"big", "single"}


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=8), st.integers(0, 99))
def test_voices_that_meet_in_a_dialogue_stay_on_one_side(pairs, seed):
    pairs = [(f"s{a:03d}", f"s{b:03d}") for a, b in pairs]
    held_out = held_out_speakers(corpus(10), pairs, "3", seed)
    assert all((a in held_out) == (b in held_out) for a, b in pairs)


def test_the_index_holds_out_whole_voices(speech_corpus):
    index = Corpus(speech_corpus).index.to_pylist()
    by_split = {split: {row["speaker"] for row in index if row["split"] == split} for split in ("train", "val")}
    assert (len(by_split["train"]), len(by_split["val"])) == (2, 2)
    assert not by_split["train"] & by_split["val"]
