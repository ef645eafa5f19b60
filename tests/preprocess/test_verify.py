"""preprocess.verify: whatever happened to a corpus after it was written is found and named."""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess.common.errors import InputError
from preprocess.common.files import sha256_file
from preprocess.common.record import write_record
from preprocess.corpus.shards import Corpus, write_corpus
from preprocess.corpus.verify_shards import compare_with_webdataset, read_tar, verify_corpus, verify_shard
from tests.preprocess.corpus.test_shards import make_clips, write
from tests.preprocess.helpers import assert_parts

SHARD = "shard-000000.tar"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A corpus of 5 clips, two of them with FLAC: never changed."""
    return write(tmp_path_factory.mktemp("whole"), make_clips()).folder


@pytest.fixture
def corpus(whole, tmp_path):
    """A copy that a test may spoil."""
    return shutil.copytree(whole, tmp_path / "corpus")


def problems(folder) -> list[InputError]:
    return [problem for _, found in verify_corpus(folder) for problem in found]


def spoil(folder, change, hashed: bool = True) -> None:
    """Apply `change` to the shard's bytes; `hashed`: corpus.json is told the new hash, as one who forges would."""
    path = folder / SHARD
    path.write_bytes(change(path.read_bytes()))
    if hashed:
        info = json.loads((folder / "corpus.json").read_text())
        info["shards"][0] |= {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        write_record(folder / "corpus.json", info)


def flip(offset):
    return lambda data: data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :]


def place(folder, row, member):
    return pq.read_table(folder / "index.parquet").column(f"{member}_offset")[row].as_py()


def test_a_corpus_as_written_is_right(whole, speech_corpus, random_corpus):
    for folder in (whole, speech_corpus, random_corpus.folder):
        assert problems(folder) == []


def test_a_tar_cut_at_every_block_is_named_with_and_without_its_hash(whole):
    """With its hash: the walk alone must see where the file ends."""
    data = (whole / SHARD).read_bytes()
    (row_list,) = [pq.read_table(whole / "index.parquet").to_pylist()]
    rows = {row["key"]: row for row in row_list}
    info = json.loads((whole / "corpus.json").read_text())
    true = info["shards"][0]
    cuts = range(0, len(data), 512)
    assert len(cuts) > 30
    for cut in cuts:
        path = whole.parent / "cut.tar"
        path.write_bytes(data[:cut])
        (first, *_) = verify_shard(path, true, rows, info)
        assert first.found.startswith(f"{cut} bytes with sha256")
        forged = {"bytes": cut, "sha256": sha256_file(path)}
        (problem,) = verify_shard(path, forged, rows, info)
        assert f"{path} at byte " in problem.where
        assert "end" in problem.found
        assert "again" in problem.action


@pytest.mark.parametrize("member", ["json", "codes", "flac"])
def test_a_flipped_byte_of_a_payload_is_named_by_member(member, corpus):
    spoil(corpus, flip(place(corpus, 1, member) + 20))
    (problem,) = problems(corpus)
    suffix = {"codes": "codes.npy"}.get(member, member)
    assert_parts(problem, f"{SHARD}[clip-1.{suffix}]", "with crc32", "as index.parquet says", "again")


def test_any_flipped_byte_is_seen_by_the_hash(corpus):
    spoil(corpus, flip(700), hashed=False)
    assert_parts(problems(corpus)[0], SHARD, "with sha256", "as corpus.json says", "Copy the shard again")


@pytest.mark.parametrize("byte", [0, 100, 108, 124, 136, 148, 156, 257, 265, 345, 511])
def test_a_flipped_byte_of_a_header_is_named_by_its_place(byte, corpus):
    begin = place(corpus, 2, "codes") - 512
    spoil(corpus, flip(begin + byte))
    (problem,) = problems(corpus)
    assert problem.where.endswith(f"{SHARD} at byte {begin}")
    assert_parts(problem, "", "no tar header (bad checksum)", "a header of 512 bytes", "Copy the shard again")


def test_a_byte_between_members_or_after_the_last_is_named(corpus):
    spoil(corpus, flip(place(corpus, 2, "json") - 513))
    assert_parts(problems(corpus)[0], "at byte", "bytes other than zero behind clip-1.flac", "zeros", "again")
    spoil(corpus, flip(place(corpus, 2, "json") - 513))
    assert problems(corpus) == []
    spoil(corpus, flip(-1 + (corpus / SHARD).stat().st_size))
    assert_parts(problems(corpus)[0], "at byte", "to the end", "only zeros", "again")


def rewrite(change):
    """Change the list of (TarInfo, payload) of the shard, by hand and by our writer's settings."""

    def apply(data: bytes) -> bytes:
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            entries = [(info, tar.extractfile(info).read()) for info in tar.getmembers()]
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for info, payload in change(entries):
                tar.addfile(info, io.BytesIO(payload))
        return out.getvalue()

    return apply


def entry(name, payload=b"x", **fields):
    info = tarfile.TarInfo(name)
    info.size = len(payload)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, payload


STRANGERS = {
    "a key with a dot": (lambda e: [*e, entry("clip.9.json")], "a member named 'clip.9.json'"),
    "pickled .pyd": (lambda e: [*e, entry("clip-9.pyd")], "a member named 'clip-9.pyd'"),
    "pickled .pth of a clip": (lambda e: [*e, entry("clip-4.pth")], "a member named 'clip-4.pth'"),
    "a path upwards": (lambda e: [*e, entry("../clip-9.json")], "a member named '../clip-9.json'"),
    "an absolute path": (lambda e: [*e, entry("/etc/clip.json")], "a member named '/etc/clip.json'"),
    "a duplicate key": (lambda e: [*e, *e[:2]], "clip-0.json after clip-4.codes.npy, and key clip-0 before"),
    "a duplicate member": (lambda e: [e[0], e[0], *e[1:]], "clip-0.json after clip-0.json, and key clip-0 before"),
    "members apart": (lambda e: [e[0], *e[2:], e[1]], "clip-0.codes.npy after clip-4.codes.npy, and key clip-0"),
    "a link": (
        lambda e: [*e, entry("clip-9.json", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")],
        "a symbolic link named 'clip-9.json'",
    ),
    "a hard link": (
        lambda e: [*e, entry("clip-9.json", b"", type=tarfile.LNKTYPE, linkname="clip-0.json")],
        "a hard link named 'clip-9.json'",
    ),
    "a device": (lambda e: [*e, entry("clip-9.json", b"", type=tarfile.CHRTYPE)], "a device named 'clip-9.json'"),
    "a pipe": (lambda e: [*e, entry("clip-9.json", b"", type=tarfile.FIFOTYPE)], "a pipe named 'clip-9.json'"),
    "a folder": (lambda e: [*e, entry("clip-9.json", b"", type=tarfile.DIRTYPE)], "a folder named 'clip-9.json"),
    "an owner": (lambda e: [entry(e[0][0].name, e[0][1], uid=7), *e[1:]], "a header of clip-0.json with an owner"),
    "a clip too many": (lambda e: [*e, entry("clip-9.json", b"{}")], "a clip clip-9"),
    "a clip too few": (lambda e: e[:-2], "no member clip-4.codes.npy"),
    "a clip elsewhere": (lambda e: [*e[2:5], *e[:2], *e[5:]], "bytes at"),
}


@pytest.mark.parametrize("case", STRANGERS)
def test_what_does_not_belong_is_named(case, corpus):
    change, found = STRANGERS[case]
    spoil(corpus, rewrite(change))
    reported = problems(corpus)
    assert any(found in problem.found for problem in reported), reported
    assert all(problem.where.startswith(str(corpus / SHARD)) and problem.action for problem in reported)


GROUPED_OTHERWISE = {
    "a key with a dot": (lambda e: [*e, entry("clip-4.x.json")], "clip-4.x.json with crc32"),
    "another suffix": (lambda e: [*e, entry("clip-4.pth")], "clip-4.pth with crc32"),
    "members apart": (lambda e: [*e[1:], e[0]], "clip-0.codes.npy with crc32"),
    "a duplicate member": (lambda e: [e[0], e[0], *e[1:]], "clip-0.json: duplicate file name"),
    "a clip too many": (lambda e: [*e, entry("clip-9.json")], "clip-9.json with crc32"),
    "a clip too few": (lambda e: [entry("none")], "no sample"),
    "no tar": (lambda e: [], "empty file"),
}


@pytest.mark.parametrize("case", GROUPED_OTHERWISE)
def test_what_stock_webdataset_reads_otherwise_than_training_is_named(case, corpus):
    rows = {row["key"]: row for row in pq.read_table(corpus / "index.parquet").to_pylist()}
    assert list(compare_with_webdataset(corpus / SHARD, rows)) == []
    change, found = GROUPED_OTHERWISE[case]
    spoil(corpus, (lambda data: b"") if case == "no tar" else rewrite(change))
    (problem,) = compare_with_webdataset(corpus / SHARD, rows)
    assert_parts(problem, str(corpus / SHARD), found, "", "Copy the shard again")


def test_a_pipe_in_a_name_runs_nothing(corpus, monkeypatch):
    """To webdataset an address `pipe:COMMAND` is a command."""
    rows = {row["key"]: row for row in pq.read_table(corpus / "index.parquet").to_pylist()}
    monkeypatch.chdir(corpus)
    Path(SHARD).rename("pipe:touch ran")
    assert list(compare_with_webdataset(Path("pipe:touch ran"), rows)) == []
    assert not Path("ran").exists()


def replace_member(folder, suffix, payload):
    """Put `payload` into clip-0's member, and tell index and corpus.json of it: only the decoders can refuse."""
    spoil(folder, rewrite(lambda e: [entry(i.name, payload if i.name == f"clip-0.{suffix}" else p) for i, p in e]))
    info = json.loads((folder / "corpus.json").read_text())
    rows = pq.read_table(folder / "index.parquet").to_pylist()
    with tarfile.open(folder / SHARD) as tar:
        for member in tar.getmembers():
            key, _, suffix = member.name.partition(".")
            (row,) = [row for row in rows if row["key"] == key]
            data = tar.extractfile(member).read()
            found = {"offset": member.offset_data, "bytes": len(data), "crc32": zlib.crc32(data)}
            row |= {f"{suffix.split('.')[0]}_{part}": value for part, value in found.items()}
    info.pop("index")
    write_corpus(folder, rows, info)


def npy(array, **options) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


class Bomb:
    """Unpickling it leaves a trace."""

    def __reduce__(self):
        return exec, ("import os; os.environ['UNPICKLED'] = 'yes'",)


HOSTILE = {
    "an object array": ("codes.npy", npy(np.array([[Bomb()]], dtype=object), allow_pickle=True), "'descr': '|O'"),
    "floats": ("codes.npy", npy(np.zeros((8, 10), np.float32)), "not the header of a uint16 array"),
    "one dimension": ("codes.npy", npy(np.zeros(80, np.uint16)), "not the header of a uint16 array"),
    "columns first": ("codes.npy", npy(np.asfortranarray(np.zeros((8, 10), np.uint16))), "not the header"),
    "no array": ("codes.npy", b"PK\x03\x04" + bytes(100), "not the header of a uint16 array"),
    "nothing": ("codes.npy", b"", "not the header of a uint16 array"),
    "a vast shape": (
        "codes.npy",
        npy(np.zeros((8, 10), np.uint16)).replace(b"(8, 10), }" + b" " * 12, b"(999999999, 999999), }"),
        "160 bytes for 999999999 x 999999 codes",
    ),
    "brackets without end": ("codes.npy", b"\x93NUMPY\x01\x00\x76\x00" + b"(" * 118, "not the header"),
    "other frames than in the index": ("codes.npy", npy(np.zeros((8, 11), np.uint16)), "11 frames"),
    "cut codes": ("codes.npy", npy(np.zeros((8, 10), np.uint16))[:-2], "158 bytes for 8 x 10 codes"),
    "no text": ("json", b'{"dialogues": []}', "no text"),
    "a list": ("json", b"[]", "a valid dictionary"),
    "not utf-8": ("json", b"\xff\xfe", "can't decode"),
    "half a json": ("json", b'{"text_normalised": "a', "Unterminated string"),
    "a deep json": ("json", b"[" * 100_000, "nested too deep"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_member_is_named_by_verify_and_by_training_and_never_unpickled(case, corpus):
    suffix, payload, found = HOSTILE[case]
    replace_member(corpus, suffix, payload)
    (problem,) = problems(corpus)
    assert_parts(problem, f"{SHARD}[clip-0.{suffix}]", found, "what preprocess.shard writes", "preprocess.shard")
    opened = Corpus(corpus)
    assert opened.clip(1).key == "clip-1"
    if case != "other frames than in the index":
        with pytest.raises(InputError) as caught:
            opened.clip(0)
        assert_parts(caught.value, f"{SHARD}[clip-0]", found, "what preprocess.shard writes", "preprocess.verify")
    assert "UNPICKLED" not in os.environ


FIELDS = {"name": (0, 100), "mode": (100, 8), "size": (124, 12), "mtime": (136, 12), "type": (156, 1)}
FIELDS |= {"magic": (257, 8), "owner": (265, 32), "prefix": (345, 155)}
SIZES = [
    b"\x80" + bytes(10) + b"\x05",
    b"\x80" + b"\xff" * 11,
    b"\xff" * 12,
    b"77777777777\0",
    b"-0000000001\0",
    b"x" * 12,
]
NAMES = [
    b"a\0b.json",
    b"\0.json",
    b"../x.json",
    b"/etc/passwd",
    b"\x1b[2J.json",
    b"\xff\xfe.json",
    b"k.json\0\0.codes.npy",
]


@given(data=st.data())
def test_any_header_with_a_fitting_sum_is_a_member_or_refused(data, whole):
    """Sizes as other tars write them (base 256, below zero, beyond the file), NUL in names, links, owners."""
    tar = bytearray((whole / SHARD).read_bytes())
    with tarfile.open(whole / SHARD) as opened:
        at = data.draw(st.sampled_from([member.offset for member in opened]))
    begin, length = FIELDS[data.draw(st.sampled_from(sorted(FIELDS)))]
    value = data.draw(st.binary(max_size=length) | st.sampled_from([*SIZES, *NAMES]))[:length]
    tar[at + begin : at + begin + length] = value.ljust(length, b"\0")
    total = sum(tar[at : at + 512]) - sum(tar[at + 148 : at + 156]) + 8 * ord(" ")
    tar[at + 148 : at + 156] = b"%06o\0 " % total
    try:
        members = list(read_tar(Path(SHARD), bytes(tar)))
    except InputError as error:
        members, where = [], error.where
        assert where.startswith(f"{SHARD} at byte ")
    assert members in ([], list(read_tar(Path(SHARD), (whole / SHARD).read_bytes())))


def test_a_changed_index_is_refused_by_its_hash(corpus):
    path = corpus / "index.parquet"
    path.write_bytes(flip(path.stat().st_size // 2)(path.read_bytes()))
    for open_it in (Corpus, problems):
        with pytest.raises(InputError) as caught:
            open_it(corpus)
        assert_parts(caught.value, "index.parquet", "sha256", "as corpus.json says", "copy the folder again")


def test_rows_and_tars_that_belong_to_no_shard_are_named(corpus):
    rows = pq.read_table(corpus / "index.parquet").to_pylist()
    info = json.loads((corpus / "corpus.json").read_text())
    info.pop("index")
    write_corpus(corpus, [*rows, {**rows[0], "key": "zz", "shard": "../other.tar"}, rows[1]], info)
    (corpus / "shard-000007.tar").write_bytes(b"")
    found = [problem.found for problem in problems(corpus)]
    assert found == ["two rows of this key", "shard '../other.tar'", "a tar of another corpus"]


def test_a_shard_that_is_gone_is_named(corpus):
    (corpus / SHARD).unlink()
    assert_parts(problems(corpus)[0], SHARD, "no file", "as corpus.json says", "run preprocess.shard again")


def test_the_command_prints_a_line_a_problem_and_exits_with_2(corpus):
    command = [sys.executable, "-m", "preprocess.verify", str(corpus)]
    right = subprocess.run(command, capture_output=True, text=True)
    assert (right.returncode, right.stdout) == (0, "1 shards checked, 0 problems in all\n")
    spoil(corpus, rewrite(lambda entries: entries[:-2]))
    wrong = subprocess.run(command, capture_output=True, text=True)
    assert wrong.returncode == 2
    assert wrong.stdout.count("problem: ") == 2
    assert "1 shards checked, 2 problems in all" in wrong.stdout
    nothing = subprocess.run([*command[:-1], str(corpus / "nothing")], capture_output=True, text=True)
    assert nothing.returncode == 2
    assert "no corpus.json" in nothing.stderr
