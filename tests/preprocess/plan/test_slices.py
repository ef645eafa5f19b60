"""Slices of one corpus on one folder: the same bytes as one run, whatever dies and whoever ends last."""

import json
import shutil
from multiprocessing import get_context

import pytest

from preprocess.common.errors import InputError
from preprocess.plan.slices import Slice, parse_slice
from tests.preprocess.helpers import assert_parts, folder_bytes, refused, shard


@pytest.fixture(scope="module")
def given(short_folder, model_folder, codec_folder, hubert_folder):
    """Flags of a command that makes 4 shards of 8 clips, but --out."""
    tools = {"model": model_folder, "audio_tokenizer": codec_folder, "hubert": hubert_folder}
    return {"manifest": short_folder / "corpus.jsonl", "hours_per_shard": 0.0004, "workers": 1, **tools}


@pytest.fixture(scope="module")
def expected(tmp_path_factory, given):
    out = tmp_path_factory.mktemp("expected") / "out"
    assert shard(out=out, **given) == 0
    return folder_bytes(out)


def test_slices_one_after_another_write_the_bytes_of_one_run(tmp_path, given, expected, capsys):
    out = tmp_path / "out"
    assert shard(out=out, slice="1/3", **given) == 0
    assert "slice 1/3 is done; 1 of 4 shards of the corpus are finished" in capsys.readouterr().out
    assert shard(out=out, slice="0/3", **given) == 0
    assert not (out / "corpus.json").exists()
    assert shard(out=out, slice="2/3", **given) == 0
    assert folder_bytes(out) == expected


def test_slices_at_once_write_the_bytes_of_one_run(tmp_path, given, expected):
    out, context = tmp_path / "out", get_context("fork")
    slices = [context.Process(target=shard, kwargs={"out": out, "slice": f"{n}/4", **given}) for n in range(4)]
    for process in slices:
        process.start()
    for process in slices:
        process.join()
    assert [process.exitcode for process in slices] == [0] * 4
    assert folder_bytes(out) == expected


def test_finalize_writes_what_the_last_slice_could_not_and_refuses_what_is_not_finished(tmp_path, given, expected):
    out = tmp_path / "out"
    assert shard(out=out, slice="0/2", **given) == 0
    error = refused(out=out, finalize=True, **given)
    assert_parts(error, str(out), "2 of 4 shards not finished: shard-000001, shard-000003", "all shards", "slices")
    for name in (
        "shard-000001.tar",
        "shard-000003.tar",
        "fragments/shard-000001.json",
        "fragments/shard-000003.json",
    ):
        (out / name).write_bytes(expected[name])  # as a slice leaves them that died before it wrote the index
    assert shard(out=out, finalize=True, **given) == 0
    assert folder_bytes(out) == expected


def test_another_count_is_refused_and_a_run_without_slices_makes_what_is_missing(tmp_path, given, expected):
    out = tmp_path / "out"
    assert shard(out=out, slice="0/2", **given) == 0
    error = refused(out=out, slice="1/3", **given)
    assert_parts(error, "slices.json", "--slice i/3", "--slice i/2", "Use 2 slices")
    assert json.loads((out / "slices.json").read_text())["count"] == 2
    assert shard(out=out, **given) == 0
    assert folder_bytes(out) == expected


def test_a_slice_that_another_run_holds_is_refused_and_others_are_not(tmp_path, given):
    out, held = tmp_path / "out", get_context("fork").Event()

    def hold():
        import preprocess.encode.run

        preprocess.encode.run.run_local = lambda *arguments: held.set() or signal_wait()
        shard(out=out, slice="0/2", **given)

    def signal_wait():
        get_context("fork").Event().wait()

    process = get_context("fork").Process(target=hold)
    process.start()
    assert held.wait(60)
    error = refused(out=out, slice="0/2", **given)
    assert_parts(error, str(out), "another run of slice 0/2", "one run", "Wait for it")
    error = refused(out=out, **given)
    assert_parts(error, str(out), "another run that is writing", "one run", "Wait for it")
    assert shard(out=out, slice="1/2", **given) == 0
    process.kill()
    process.join()
    assert shard(out=out, slice="0/2", **given) == 0, "the lock died with its holder"
    assert (out / "corpus.json").exists()
    shutil.rmtree(out)


@pytest.mark.parametrize("text", ["3/3", "-1/3", "1", "a/b", "1/0"])
def test_a_slice_that_is_none_is_refused(text):
    with pytest.raises(InputError, match="SLURM_ARRAY_TASK_ID"):
        parse_slice(text)
    assert parse_slice("2/3") == Slice(2, 3)
