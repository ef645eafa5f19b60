"""A corpus of a stranger, every hash in order: training uses it or refuses it by name, and never looks elsewhere."""

import copy
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.batch.loader import PackReader, load_packs
from engine.batch.sample import layout_cost
from engine.plan.corpora import Corpora
from engine.plan.plan import Plan
from launch.show import main as show
from preprocess.common.errors import InputError
from preprocess.common.files import sha256_file
from preprocess.common.record import write_record
from preprocess.corpus.dialogue import canonical_dialogue, written_dialogue
from preprocess.corpus.index_rules import COMPLETE
from preprocess.corpus.shards import INDEX_SCHEMA, Clip, Corpus, write_shard
from preprocess.corpus.verify_shards import verify_corpus
from tests.fixtures.corpus import random_clip, write_clips
from tests.fixtures.strange import made_strange, used_or_refused
from tests.preprocess.helpers import assert_parts

WRITTEN = written_dialogue(
    [("user", [("text", "say it"), ("audio", "clip-1")]), ("assistant", [("text", "so"), ("audio", "clip-5")])], 1
)


def clips():
    """Plain clips, one with a canonical dialogue and one with a written one."""
    made = [random_clip(f"clip-{number}", f"صباح {number}", 10 + number, 8, 1024, number) for number in range(6)]
    made[4].meta["dialogues"] = [canonical_dialogue("صباح 4", [("clip-0", "صباح 0")], "Be calm.")]
    made[5].meta["dialogues"] = [WRITTEN]
    made[3].meta["system_text"] = "Speak up."
    return made


@pytest.fixture(scope="module")
def whole(tmp_path_factory, model_folder):
    """A corpus that no test changes."""
    return write_clips(tmp_path_factory.mktemp("corpus") / "whole", model_folder, clips(), codebook_size=1024).folder


@pytest.fixture(scope="module")
def rows(whole):
    return pq.read_table(whole / "index.parquet").to_pylist()


def train_on(folder, model_folder):
    """All packs that training would read in an epoch."""
    reader = PackReader(Corpora([folder]), model_folder, "packed")
    cost = layout_cost(reader.tokenizer, reader.config, reader.system_text)
    plan = Plan(reader.corpora.index, split="train", cost=cost, packs_per_step=1, max_tokens=10_000, seed=0)
    epoch = plan.epoch(0)
    packs = [pack for n in range(epoch.num_steps) for pack in epoch.step(n).packs]
    return sum(len(loaded.keys) for loaded in load_packs(reader, packs, 0, pin_memory=False))


def use(folder, model_folder):
    """What each command does with a corpus; an InputError alone ends one."""
    acts = {
        "train": lambda: train_on(folder, model_folder),
        "verify": lambda: [p for _, problems in verify_corpus(folder, model_folder) for p in problems],
        "table": lambda: show([str(folder)]),
        "show": lambda: show([str(folder), "clip-4", "--model", str(model_folder)]),
    }
    return {name: used_or_refused(act) for name, act in acts.items()}


def assert_expected_kinds(found):
    """A count of clips, a list of problems or exit code 0 of each command that has not refused the corpus."""
    used = {name: each for name, each in found.items() if not isinstance(each, InputError)}
    assert used.pop("train", 0) <= 6
    assert all(isinstance(problem, InputError) for problem in used.pop("verify", []))
    assert set(used.values()) <= {0}


def write_index(folder, whole, table):
    """A corpus with this index, which corpus.json knows, and the shards of `whole`."""
    folder.mkdir()
    for path in whole.glob("*.tar"):
        (folder / path.name).symlink_to(path)
    pq.write_table(table, folder / "index.parquet")
    _tell(folder, whole)
    return folder


def _tell(folder, whole, **more):
    path = folder / "index.parquet"
    info = json.loads((whole / "corpus.json").read_text())
    index = {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256_file(path)}
    write_record(folder / "corpus.json", {**info, "index": index, **more})


NUMBERS = [-1, 0, 1, 7, 2**31 - 1, -(2**31)]
LARGE = [*NUMBERS, 2**32, 2**40, 2**63 - 1, -(2**63)]
STRINGS = ["", "../../x", "/etc/passwd", "clip-0", "clip-9", "x" * 300, "\x1b[2J", "trian", "val", "shard-000001.tar"]


def strange_value(kind: pa.DataType) -> st.SearchStrategy:
    """A value that a Parquet column of this type may hold."""
    if pa.types.is_boolean(kind):
        return st.sampled_from([None, True, False])
    if pa.types.is_string(kind):
        return st.sampled_from([None, *STRINGS])
    if pa.types.is_floating(kind):
        return st.sampled_from([None, -1.0, 0.0, float("nan"), float("inf"), 1e300 if kind == pa.float64() else 1e30])
    if pa.types.is_integer(kind):
        return st.sampled_from([None, *(LARGE if kind == pa.int64() else NUMBERS)])
    if pa.types.is_list(kind):
        return st.none() | st.lists(strange_value(kind.value_type), max_size=2)
    return st.none() | st.fixed_dictionaries({field.name: strange_value(field.type) for field in kind})


@given(data=st.data())
@settings(deadline=None, max_examples=80)
def test_a_strange_cell_of_the_index_is_refused_or_used(data, whole, rows, model_folder, tmp_path_factory):
    changed = copy.deepcopy(rows)
    field = data.draw(st.sampled_from(list(INDEX_SCHEMA)))
    for number in data.draw(st.sets(st.sampled_from(range(len(rows))), min_size=1, max_size=2)):
        row = changed[number]
        if field.name == "dialogues" and row["dialogues"] and data.draw(st.booleans()):
            dialogue = data.draw(st.sampled_from(row["dialogues"]))
            inner = data.draw(st.sampled_from(list(field.type.value_type)))
            dialogue[inner.name] = data.draw(strange_value(inner.type))
        else:
            row[field.name] = data.draw(strange_value(field.type))
    folder = tmp_path_factory.mktemp("strange") / "corpus"
    table = pa.Table.from_pylist(changed, INDEX_SCHEMA)
    assert_expected_kinds(use(write_index(folder, whole, table), model_folder))


@given(data=st.data())
@settings(deadline=None, max_examples=25)
def test_an_index_with_other_columns_is_refused(data, whole, model_folder, tmp_path_factory):
    table = pq.read_table(whole / "index.parquet")
    name = data.draw(st.sampled_from(table.column_names))
    number = table.column_names.index(name)
    kinds = [pa.string(), pa.int8(), pa.list_(pa.int64()), pa.binary(), pa.timestamp("s"), pa.float16()]
    kind = data.draw(st.sampled_from([kind for kind in kinds if kind != table.field(name).type]))
    column = pa.nulls(len(table), kind) if data.draw(st.booleans()) else None
    other = table.remove_column(number) if column is None else table.set_column(number, name, column)
    folder = write_index(tmp_path_factory.mktemp("strange") / "corpus", whole, other)
    found = use(folder, model_folder)
    assert name not in COMPLETE or all(isinstance(each, InputError) for each in found.values()), (name, kind, found)


@pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1" * 100, bytes(1000)])
def test_an_index_that_is_no_table_is_refused_though_its_hash_fits(data, whole, model_folder, tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "shard-000000.tar").symlink_to(whole / "shard-000000.tar")
    (folder / "index.parquet").write_bytes(data)
    _tell(folder, whole)
    for found in use(folder, model_folder).values():
        assert_parts(found, "index.parquet", "a table that can't be read", "columns", "copy the folder again")


@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_a_strange_value_in_a_member_is_refused_or_used(data, whole, rows, model_folder, tmp_path_factory):
    """Shard, index and corpus.json know of it: what the index counts is what it was before."""
    folder = tmp_path_factory.mktemp("strange") / "corpus"
    folder.mkdir()
    number = data.draw(st.integers(0, 5))
    made = clips()
    made[number] = Clip(made[number].key, data.draw(made_strange(made[number].meta)), made[number].codes)
    places = write_shard(folder / "shard-000000.tar", made)
    table = pa.Table.from_pylist([{**row, **place} for row, place in zip(rows, places, strict=True)], INDEX_SCHEMA)
    pq.write_table(table, folder / "index.parquet")
    path = folder / "shard-000000.tar"
    shard = {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256_file(path), "clips": len(rows)}
    _tell(folder, whole, shards=[shard])
    assert_expected_kinds(use(folder, model_folder))


def test_a_name_in_the_index_never_becomes_a_path(whole, rows, model_folder, tmp_path):
    (tmp_path / "mine.tar").write_bytes((whole / "shard-000000.tar").read_bytes())
    table = pa.Table.from_pylist([{**row, "shard": "../mine.tar"} for row in rows], INDEX_SCHEMA)
    found = use(write_index(tmp_path / "corpus", whole, table), model_folder)
    assert_parts(found["train"], "index.parquet[clip-", "of ../mine.tar", "a shard that corpus.json names", "copy")


def test_a_sample_longer_than_the_index_says_is_refused(whole, rows, model_folder, tmp_path):
    changed = [{**row, "text_tokens": row["text_tokens"] - (row["key"] == "clip-2")} for row in rows]
    folder = write_index(tmp_path / "corpus", whole, pa.Table.from_pylist(changed, INDEX_SCHEMA))
    found = use(folder, model_folder)
    assert_parts(found["train"], "clip clip-", " tokens", "as index.parquet counts them", "preprocess.verify")
    (problem,) = found["verify"]
    assert_parts(problem, "clip-2.json", "text_tokens", "what preprocess.shard writes", "copy the shard")
    assert [p for _, problems in verify_corpus(folder) for p in problems] == [], "without --model none are counted"


def test_codes_of_other_frames_than_the_index_says_are_refused(whole, rows, model_folder, tmp_path):
    changed = [{**row, "frames": row["frames"] + (row["key"] == "clip-1")} for row in rows]
    folder = write_index(tmp_path / "corpus", whole, pa.Table.from_pylist(changed, INDEX_SCHEMA))
    with pytest.raises(InputError) as caught:
        Corpus(folder).clip(1)
    assert_parts(caught.value, "[clip-1]", "codes of 11 frames, not 12", "what preprocess.shard writes", "verify")


def test_the_whole_corpus_is_used(whole, model_folder):
    found = use(whole, model_folder)
    assert found == {"train": 6, "verify": [], "table": 0, "show": 0}
    assert np.all(Corpus(whole).index.column("frames").to_numpy() == [10, 11, 12, 13, 14, 15])
