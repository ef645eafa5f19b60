"""Corpora at an address: fetched once, whole, checked on arrival, within the limit of the cache."""

import json
import os
import shutil
import threading
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context

import fsspec
import numpy as np
import pytest

from preprocess.common.errors import InputError
from preprocess.common.files import sha256_file
from preprocess.common.record import record_bytes
from preprocess.corpus import storage
from preprocess.corpus.shards import Clip, Corpus, write_corpus, write_shard
from preprocess.corpus.storage import Cache
from tests.fixtures.corpus import PROMPT_FACTS
from tests.preprocess.corpus.test_shards import index_row, make_clips
from tests.preprocess.helpers import assert_parts

NUM_SHARDS = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A corpus of 3 shards of 2 clips."""
    folder, rows, shards = tmp_path_factory.mktemp("corpus"), [], []
    clips = make_clips(2 * NUM_SHARDS)
    for number in range(NUM_SHARDS):
        path, part = folder / f"shard-{number:06d}.tar", clips[2 * number : 2 * number + 2]
        for row, clip in zip(write_shard(path, part), part, strict=True):
            rows.append(index_row(row, clip))
        shards.append({"name": path.name, "bytes": path.stat().st_size, "sha256": sha256_file(path)})
    write_corpus(folder, rows, {"shards": shards, **PROMPT_FACTS})
    return folder


class Server(ThreadingHTTPServer):
    """A folder over HTTP; `failures` of the next requests for a tar are answered 503, `damaged` lose a byte."""

    def __init__(self, folder):
        self.requests, self.failures, self.damaged = [], 0, 0
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        threading.Thread(target=self.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self.server_port}"


class Handler(SimpleHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append(self.path)
        if self.path.endswith(".tar") and self.server.failures:
            self.server.failures -= 1
            self.send_error(503)
        else:
            super().do_GET()

    def copyfile(self, source, outputfile):
        data = bytearray(source.read())
        if self.path.endswith(".tar") and self.server.damaged:
            self.server.damaged -= 1
            data[600] ^= 1
        outputfile.write(data)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(folder, monkeypatch):
    monkeypatch.setattr(storage, "WAITS_SEC", (0.01,) * 3)
    server = Server(folder)
    yield server
    server.shutdown()
    server.server_close()


def same(remote: Corpus, folder) -> None:
    local = Corpus(folder)
    assert remote.index.equals(local.index)
    assert remote.fingerprint == local.fingerprint
    for row in range(local.index.num_rows):
        expected, found = local.clip(row, waveform=True), remote.clip(row, waveform=True)
        assert (found.key, found.meta, found.flac) == (expected.key, expected.meta, expected.flac)
        assert np.array_equal(found.codes, expected.codes)


def cached(cache) -> dict[str, int]:
    """Sizes of the files in the cache, locks left out."""
    return {path.name: path.stat().st_size for path in cache.folder.iterdir() if path.suffix != ".lock"}


def test_a_corpus_in_fsspec_s_memory_reads_like_the_folder(tmp_path, folder):
    fsspec.filesystem("memory").put(f"{folder}/", "/bucket/shards/", recursive=True)
    cache = Cache(tmp_path / "cache")
    remote = Corpus("memory://bucket/shards/", cache)
    assert remote.address == str(remote.folder) == "memory://bucket/shards"
    assert str(remote.folder / "corpus.json") == "memory://bucket/shards/corpus.json"
    same(remote, folder)
    assert len(cached(cache)) == NUM_SHARDS + 1, "the shards and the index, by their sha256"
    assert {len(name) for name in cached(cache)} == {64}


def test_over_http_each_shard_is_fetched_once_and_then_never_again(tmp_path, folder, server):
    cache = Cache(tmp_path / "cache")
    same(Corpus(server.address, cache), folder)
    same(Corpus(server.address, cache), folder)
    assert sorted(path for path in server.requests if path != "/corpus.json") == [
        "/index.parquet",
        *(f"/shard-{number:06d}.tar" for number in range(NUM_SHARDS)),
    ]


def read_all(address, cache):
    corpus = Corpus(address, cache)
    return [corpus.clip(row).key for row in range(corpus.index.num_rows)]


def test_processes_of_a_machine_share_the_cache_and_fetch_nothing_twice(tmp_path, folder, server):
    cache = Cache(tmp_path / "cache")
    with ProcessPoolExecutor(4, mp_context=get_context("fork")) as pool:
        keys = list(pool.map(read_all, [server.address] * 4, [cache] * 4))
    assert keys == [read_all(folder, None)] * 4
    fetched = [path for path in server.requests if path != "/corpus.json"]
    assert len(fetched) == len(set(fetched)) == NUM_SHARDS + 1


def test_an_opened_corpus_goes_to_forked_workers(tmp_path, folder, server):
    corpus = Corpus(server.address, Cache(tmp_path / "cache"))
    corpus.clip(0)
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        assert pool.submit(corpus.clip, 5).result().key == Corpus(folder).clip(5).key


def test_a_service_that_fails_for_a_while_is_asked_again(tmp_path, folder, server):
    server.failures = 3
    same(Corpus(server.address, Cache(tmp_path / "cache")), folder)
    assert server.failures == 0


def test_a_service_that_goes_on_failing_ends_in_a_clear_error(tmp_path, server):
    server.failures = 100
    corpus = Corpus(server.address, Cache(tmp_path / "cache"))
    with pytest.raises(InputError) as caught:
        corpus.clip(0)
    assert_parts(caught.value, f"{server.address}/shard-000000.tar", "503", "preprocess.shard wrote", "Tried 4 times")
    assert len(server.requests) == 2 + 4
    assert not [name for name in cached(corpus_cache(corpus)) if "partial" in name]


def corpus_cache(corpus):
    return Cache(corpus._storage.folder)


def test_a_byte_damaged_on_its_way_is_fetched_again(tmp_path, folder, server):
    server.damaged = 2
    same(Corpus(server.address, Cache(tmp_path / "cache")), folder)
    assert server.requests.count("/shard-000000.tar") == 3


def test_a_shard_that_is_damaged_where_it_lies_is_refused_and_not_kept(tmp_path, server):
    server.damaged = 100
    corpus = Corpus(server.address, Cache(tmp_path / "cache"))
    with pytest.raises(InputError) as caught:
        corpus.clip(0)
    where = f"{server.address}/shard-000000.tar"
    assert_parts(caught.value, where, "with sha256", "preprocess.shard wrote", "upload the file again")
    assert f"not {corpus.info['shards'][0]['bytes']} with {corpus.info['shards'][0]['sha256'][:12]}" in str(
        caught.value
    )
    assert list(cached(corpus_cache(corpus))) == [corpus.info["index"]["sha256"]]


def test_a_file_that_is_not_there_is_named_at_once(tmp_path, folder, server):
    corpus = Corpus(server.address, Cache(tmp_path / "cache"))
    corpus._shards["shard-000000.tar"] = {**corpus.info["shards"][0], "name": "gone.tar"}
    with pytest.raises(InputError) as caught:
        corpus.clip(0)
    assert_parts(caught.value, "/gone.tar", "FileNotFoundError", "preprocess.shard wrote", "Correct --data")
    assert server.requests.count("/gone.tar") == 1
    with pytest.raises(InputError, match=r"no corpus\.json"):
        Corpus(f"{server.address}/nothing", Cache(tmp_path / "cache"))


def test_the_cache_stays_within_its_limit_and_what_was_used_longest_ago_goes(tmp_path, folder, server):
    info = Corpus(folder).info
    sizes = [shard["bytes"] for shard in info["shards"]]
    cache = Cache(tmp_path / "cache", limit_bytes=info["index"]["bytes"] + sizes[0] + sizes[1])
    corpus = Corpus(server.address, cache)
    names = [shard["sha256"] for shard in info["shards"]]
    for row in (0, 2, 0):  # shards 0, 1, 0
        corpus.clip(row)
    os.utime(cache.folder / info["index"]["sha256"])
    kept = corpus._open("shard-000000.tar")
    corpus.clip(4)
    assert set(cached(cache)) == {info["index"]["sha256"], names[0], names[2]}, "shard 1 was used longest ago"
    corpus.clip(0)
    corpus._open("shard-000000.tar")
    Corpus(server.address, cache).clip(2)
    assert sum(cached(cache).values()) <= cache.limit_bytes
    assert kept is not None
    same(corpus, folder)


def test_a_file_being_read_outlives_its_removal_from_the_cache(tmp_path, folder, server):
    cache = Cache(tmp_path / "cache")
    corpus = Corpus(server.address, cache)
    corpus.clip(0)
    shutil.rmtree(cache.folder)
    cache.folder.mkdir()
    assert corpus.clip(1).key == Corpus(folder).clip(1).key
    assert server.requests.count("/shard-000000.tar") == 1


def test_a_cache_smaller_than_the_corpus_is_told_and_a_full_disk_refused(tmp_path, folder, server):
    cache = Cache(tmp_path / "cache", limit_bytes=5000)
    found, warning = Corpus(server.address, cache).notes()
    assert f"are in the cache {cache.folder}" in found
    assert "warning: the cache holds" in warning
    assert "raise --cache-gb" in warning
    assert len(Corpus(server.address, Cache(tmp_path / "cache")).notes()) == 1

    info = json.loads((folder / "corpus.json").read_text())
    info["shards"][0]["bytes"] = 10**18
    fsspec.filesystem("memory").pipe("/vast/corpus.json", record_bytes(info))
    with pytest.raises(InputError) as caught:
        Corpus("memory://vast", Cache(tmp_path / "other"))
    assert_parts(caught.value, f"cache {tmp_path / 'other'}", "GB free on its disk", "1000000000.0 GB", "--cache-gb")


def test_a_folder_on_this_machine_needs_no_cache(folder):
    corpus = Corpus(folder, Cache("/nonexistent"))
    assert corpus.notes() == []
    assert corpus.clip(0).key == "clip-0"
    assert isinstance(corpus.clip(0), Clip)
