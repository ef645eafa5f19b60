"""A record that was changed, damaged or cut is refused when it is read, and so is one of other types."""

import contextlib
import copy
import json
from typing import Annotated

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from preprocess.common.errors import InputError
from preprocess.common.record import SEAL, Form, read_record, record_bytes, seal, write_record
from tests.preprocess.helpers import assert_parts

VALUE = {"count": 3, "name": "سلمى", "share": 0.25, "inner": {"list": [1, None, True]}}


class Sample(Form):
    """The form of VALUE."""

    count: Annotated[int, Field(ge=0)]
    name: str
    inner: dict[str, list[object]]


def read(data):
    return read_record("m.json", data, Sample, "Copy it again.")


def test_a_record_is_read_as_it_was_written(tmp_path):
    write_record(tmp_path / "m.json", VALUE)
    data = (tmp_path / "m.json").read_bytes()
    assert read(data) == seal(VALUE)
    assert record_bytes(read(data)) == data
    reordered = {name: seal(VALUE)[name] for name in sorted(seal(VALUE), reverse=True)}
    assert read(json.dumps(reordered).encode()) == seal(VALUE), "order and blanks are no values"


@given(place=st.integers(0, len(record_bytes(VALUE)) - 1), byte=st.integers(0, 255))
@settings(deadline=None, max_examples=400)
def test_a_byte_that_was_changed_is_found(place, byte):
    data = bytearray(record_bytes(VALUE))
    data[place] = byte
    with contextlib.suppress(InputError):
        assert read(bytes(data)) == seal(VALUE), "only a blank was changed"


@pytest.mark.parametrize("cut", range(0, len(record_bytes(VALUE)) - 2, 7))
def test_a_record_that_was_cut_is_refused(cut):
    with pytest.raises(InputError) as caught:
        read(record_bytes(VALUE)[:cut])
    assert_parts(caught.value, "m.json", "no JSON object", "a record as it was written", "Copy it again")


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"[1]", "JSON of type list"),
        (b'{"count": 3}', f"no {SEAL}: another program"),
        (b"[" * 100_000, "no JSON object"),
        (b'{"a": "\\ud800", "record_sha256": ""}', "values that can't be hashed"),
        (record_bytes({**VALUE, "count": "3"}), "count = '3'"),
        (record_bytes({**VALUE, "count": -1}), "count = -1"),
        (record_bytes({**VALUE, "count": True}), "count = True"),
        (record_bytes({"count": 3}), "no name"),
        (record_bytes({**VALUE, "inner": {"list": {}}}), "inner.list = {}"),
    ],
)
def test_what_is_no_such_record_is_refused_by_its_place(data, found):
    with pytest.raises(InputError) as caught:
        read(data)
    assert found in caught.value.found


def test_a_value_that_was_changed_by_hand_is_refused():
    changed = copy.deepcopy(seal(VALUE)) | {"name": "salma"}
    with pytest.raises(InputError) as caught:
        read(json.dumps(changed).encode())
    assert_parts(caught.value, "m.json", "they were changed or damaged", f"as its {SEAL} says", "Copy it again")
