"""Rows that nobody foresaw: a value of any kind at any place of a row costs that row, and no other."""

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocess.corpus.dialogue import DEFAULT_SYSTEM_TEXT
from preprocess.manifest.read import read_manifest
from tests.preprocess.helpers import write_jsonl

GOOD = {"audio": "good.wav", "text": "words", "speaker": "good"}


def _places(value, path=()):
    """The path of each value inside a JSON value."""
    yield path
    for key, inner in (
        value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else ())
    ):
        yield from _places(inner, (*path, key))


AUDIO = {"type": "audio", "audio_url": "r.wav", "offset": 0.5, "duration": 1.0}
SUPERVISION = {"id": "s", "start": 0.5, "duration": 1.0, "channel": 0, "text": "x", "speaker": "s", "language": "ar"}
RECORDING = {"sources": [{"type": "file", "channels": [0, 1], "source": "a.wav"}], "duration": 9.0, "transforms": []}
CUT = {"id": "c", "type": "MonoCut", "start": 1.0, "duration": 3.0, "channel": 0, "recording": RECORDING}
ROWS = {
    "columns": {**GOOD, "start": 0.5, "duration": 1.0, "channel": 0, "reference_audio": "r.wav", "id": 7},
    "ChatML": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "ref"}, AUDIO]},
            {"role": "assistant", "content": "said<audio>"},
        ],
        "speaker": "s",
        "misc": {"ref_transcript": "ref", "speaker": "s"},
        "audios": ["u.wav"],
    },
    "lhotse": {**CUT, "supervisions": [SUPERVISION]},
}
STRANGE = st.sampled_from(
    [None, True, -1, 0, 10**400, float("nan"), float("inf"), "", "x", "nan", [], [None], {}, {"a": 1}]
)


@pytest.mark.parametrize("dialect", ROWS)
@given(data=st.data())
@settings(deadline=None, max_examples=300)
def test_a_value_of_any_kind_at_any_place_costs_its_row_at_most(dialect, data, tmp_path_factory):
    row = copy.deepcopy(ROWS[dialect])
    *place, key = data.draw(st.sampled_from([path for path in _places(row) if path]))
    inner = row
    for name in place:
        inner = inner[name]
    inner[key] = data.draw(STRANGE)
    first = CUT | {"supervisions": [SUPERVISION | {"id": "first"}]} if dialect == "lhotse" else GOOD
    path = write_jsonl(tmp_path_factory.mktemp("rows") / "m.jsonl", [first, row, first])
    manifest = read_manifest(path, ["<|eot_id|>"], DEFAULT_SYSTEM_TEXT)
    others = [row for row in manifest.rows if row.line != 2]
    assert len(others) == 2
    assert manifest.num_rows == 3
