"""Text files of manifests: the same bytes whether they are compressed or not, and nothing of a broken one."""

import gzip
from pathlib import Path

import pytest

from preprocess.common.errors import InputError
from preprocess.manifest.text_file import manifest_suffix, read_text_bytes

TEXT = "id|صباح الخير\n".encode() * 50


@pytest.mark.parametrize("name", ["m.csv", "m.csv.gz"], ids=["honest name", "other name"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_the_bytes_say_whether_a_file_is_compressed_and_its_name_does_not(pack, name, tmp_path):
    (tmp_path / name).write_bytes(pack(b"\xef\xbb\xbf" + TEXT))
    assert read_text_bytes(tmp_path / name) == TEXT


def test_files_that_were_joined_compressed_are_read_whole(tmp_path):
    (tmp_path / "m.gz").write_bytes(gzip.compress(TEXT) + gzip.compress(b"more\n"))
    assert read_text_bytes(tmp_path / "m.gz") == TEXT + b"more\n"


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-20], lambda data: data[:15] + b"\xff" * 9 + data[24:], lambda data: data + b"x"]
)
def test_a_broken_gzip_is_refused_by_name(damage, tmp_path):
    (tmp_path / "m.gz").write_bytes(damage(gzip.compress(TEXT)))
    with pytest.raises(InputError, match=r"m\.gz: found a file that can.t be read"):
        read_text_bytes(tmp_path / "m.gz")


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_utf_16_is_refused_with_the_command_that_converts_it(pack, tmp_path):
    (tmp_path / "m.csv").write_bytes(pack("audio|text".encode("utf-16")))
    with pytest.raises(InputError, match="iconv -f UTF-16 -t UTF-8"):
        read_text_bytes(tmp_path / "m.csv")


@pytest.mark.parametrize(
    ("name", "suffix"),
    [("cuts.jsonl.gz", ".jsonl"), ("CUTS.JSONL.GZ", ".jsonl"), ("m.CSV", ".csv"), ("m.gz", ""), ("metadata", "")],
)
def test_the_suffix_is_that_of_the_unpacked_file(name, suffix):
    assert manifest_suffix(Path(name)) == suffix


def test_a_small_file_that_unpacks_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("preprocess.manifest.text_file._MOST_BYTES", 10_000)
    (tmp_path / "m.gz").write_bytes(gzip.compress(b"a" * 10_001))
    with pytest.raises(InputError, match=r"more than 10,000 bytes of text in \d+ gzipped bytes"):
        read_text_bytes(tmp_path / "m.gz")
    (tmp_path / "m.gz").write_bytes(gzip.compress(b"a" * 10_000))
    assert len(read_text_bytes(tmp_path / "m.gz")) == 10_000
