"""corpus.json of a stranger: whatever it says, it is refused or read, and no name of it becomes a path."""

import copy
import json
import shutil

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocess.common.errors import InputError
from preprocess.common.record import record_bytes, write_record
from preprocess.corpus.shards import Corpus
from preprocess.corpus.storage import Cache
from preprocess.corpus.verify_shards import verify_corpus
from tests.fixtures.strange import made_strange, used_or_refused
from tests.preprocess.corpus.test_shards import make_clips, write
from tests.preprocess.helpers import assert_parts


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A corpus that no test changes."""
    return write(tmp_path_factory.mktemp("whole"), make_clips()).folder


@pytest.fixture(scope="module")
def info(whole):
    return json.loads((whole / "corpus.json").read_text())


def use(folder, cache=None):
    """What training does with a corpus: open it, take its facts, read each clip; the codes."""
    corpus = Corpus(folder, cache)
    assert corpus.fingerprint
    corpus.notes()
    return [corpus.clip(row, waveform=True).codes.tolist() for row in range(len(corpus.index))]


@given(data=st.data())
@settings(deadline=None, max_examples=300)
def test_a_strange_value_anywhere_is_refused_or_changes_nothing_that_counts(data, whole, info, tmp_path_factory):
    changed = data.draw(made_strange(info))
    folder = shutil.copytree(whole, tmp_path_factory.mktemp("changed") / "corpus")
    write_record(folder / "corpus.json", changed)
    codes = used_or_refused(lambda: use(folder))
    assert isinstance(codes, InputError) or codes == use(whole)
    used_or_refused(lambda: list(verify_corpus(folder)))


def test_a_letter_of_the_prompt_that_was_changed_is_refused(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "corpus")
    text = (folder / "corpus.json").read_text()
    assert text.count("instruction.") == 1
    (folder / "corpus.json").write_text(text.replace("instruction.", "instruciton."))
    for act in (use, lambda folder: list(verify_corpus(folder))):
        with pytest.raises(InputError) as caught:
            act(folder)
        assert_parts(caught.value, "corpus.json", "they were changed or damaged", "record_sha256", "Copy it again")


NAMES = ["../x.tar", "/tmp/x.tar", "a/b.tar", ".hidden", "", "a\\0b", "a\\nb", "\\x1b[2J", "x" * 300, ".."]
HASHES = ["../../x", "/home/u/uv.x", "", "A" * 64, "0" * 63, "0" * 64 + "\\n", "0" * 65, "." * 64]


@pytest.mark.parametrize("at_address", [False, True])
@pytest.mark.parametrize("place", ["index", "shards"])
@pytest.mark.parametrize(("what", "value"), [("name", n) for n in NAMES] + [("sha256", h) for h in HASHES])
def test_no_name_or_hash_becomes_a_path(what, value, place, at_address, whole, info, tmp_path):
    """Refused before anything is opened: beside the cache lies a file that the hash would name."""
    value = value.encode().decode("unicode_escape")
    changed = copy.deepcopy(info)
    (changed["index"] if place == "index" else changed["shards"][0])[what] = value
    (tmp_path / "uv.lock").write_text("mine")
    if at_address:
        files = fsspec.filesystem("memory")
        for path in whole.iterdir():
            files.pipe(f"/strange/{path.name}", path.read_bytes())
        files.pipe("/strange/corpus.json", record_bytes(changed))
        folder, cache = "memory://strange", Cache(tmp_path / "cache")
    else:
        folder, cache = shutil.copytree(whole, tmp_path / "corpus"), None
        write_record(folder / "corpus.json", changed)
    with pytest.raises(InputError) as caught:
        use(folder, cache)
    assert_parts(caught.value, "corpus.json", f".{what} = ", "a record as it was written", "Copy it again")
    assert (tmp_path / "uv.lock").read_text() == "mine"
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(("name", "value"), [("codebook_size", 2), ("num_codebooks", 7)])
def test_codes_that_the_codec_does_not_have_are_refused_when_they_are_read(name, value, whole, info, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "corpus")
    write_record(folder / "corpus.json", {**info, "codec": {**info["codec"], name: value}})
    with pytest.raises(InputError) as caught:
        use(folder)
    assert "code" in caught.value.found
    assert "preprocess.verify" in caught.value.action
