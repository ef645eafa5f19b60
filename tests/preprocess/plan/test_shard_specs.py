"""Dealing clips into shards: grouped by speaker, sized by hours, the same for the same seed."""

from preprocess.audio.decode import Header
from preprocess.plan.clips import ClipPlan
from preprocess.plan.shard_specs import deal_clips


def make(num_speakers=5, clips_each=4, duration_sec=9.0):
    clips = [
        ClipPlan(f"{speaker}-{n}", f"{speaker}/{n}.wav", "", speaker=f"speaker{speaker}")
        for speaker in range(num_speakers)
        for n in range(clips_each)
    ]
    return clips, {clip.key: Header(1000, duration_sec) for clip in clips}


def names(shards):
    return [[clip.key for clip in shard] for _, shard in shards]


def test_every_clip_is_dealt_once_and_shards_are_as_long_as_asked():
    clips, headers = make()
    shards = list(deal_clips(clips, headers, hours_per_shard=0.01, seed=0))  # 36 s: four clips
    assert [name for name, _ in shards] == [f"shard-{n:06d}" for n in range(5)]
    assert sorted(key for shard in names(shards) for key in shard) == sorted(headers)
    assert all(len(shard) == 4 for _, shard in shards)
    assert all(shard == sorted(shard) for shard in names(shards))


def test_a_shard_holds_one_speaker_where_hours_allow():
    clips, headers = make()
    for _, shard in deal_clips(clips, headers, hours_per_shard=0.01, seed=0):
        assert len({clip.speaker for clip in shard}) == 1


def test_dealing_depends_on_the_seed_and_not_on_the_order():
    clips, headers = make()
    dealt = names(deal_clips(clips, headers, 0.01, seed=0))
    assert names(deal_clips(clips[::-1], headers, 0.01, seed=0)) == dealt
    assert names(deal_clips(clips, headers, 0.01, seed=1)) != dealt


def test_a_header_that_promises_hours_does_not_fill_a_shard():
    clips, headers = make(num_speakers=1)
    headers[clips[0].key] = Header(1000, 1e6)
    assert len(list(deal_clips(clips, headers, hours_per_shard=0.02, seed=0, longest_sec=30.0))) == 1
