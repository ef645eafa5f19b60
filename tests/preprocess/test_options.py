"""Flags: each is taken or refused before anything is read, at its very border."""

import pytest

from preprocess.common.errors import InputError
from preprocess.options import parse
from tests.preprocess.helpers import flags


def parsed(**given):
    return parse(flags(manifest="m.jsonl", model="m", dry_run=True, **given))


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("val_speakers", ("0", "1", "0.0", "0.999"), ("-1", "1.0", "-0.1", "x", "1e3")),
        ("noisy_references", ("0", "1"), ("-0.001", "1.001", "nan")),
        ("hours_per_shard", ("0.001", "1000"), ("0", "-1", "inf", "nan")),
        ("max_failure_share", ("0", "1"), ("-0.001", "1.001", "nan")),
        ("workers", ("0", "1"), ("-1",)),
        ("slice", ("0/1", "7/8"), ("8/8", "1/0", "-1/2", "1", "a/b")),
    ],
)
def test_a_number_is_taken_up_to_its_border(name, good, bad):
    flag = f"--{name.replace('_', '-')}"
    for value in good:
        parsed(**{name: value})
    for value in bad:
        with pytest.raises(InputError) as caught:
            parse([*flags(manifest="m", model="m", dry_run=True), f"{flag}={value}"])
        assert caught.value.where == flag, value
        assert value in caught.value.found or float(value) == float(caught.value.found)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"val_manifest": "v", "val_speakers": "2"}, "--val-manifest and --val-speakers"),
        ({"slice": "0/2", "finalize": True}, "--slice and --finalize"),
        ({"executor": "ray", "device": "cuda"}, "--executor ray and --device cuda"),
        ({"layout": "as-written", "noisy_references": "0.5"}, "--layout as-written and --noisy-references"),
        ({"noise": "n"}, "--noise or --room-responses alone"),
        ({"room_responses": "r"}, "--noise or --room-responses alone"),
    ],
)
def test_flags_that_contradict_each_other_are_refused_and_each_alone_is_not(given, found):
    with pytest.raises(InputError) as caught:
        parsed(**given)
    assert (caught.value.where, caught.value.found) == ("command line", found)
    assert caught.value.action
    if len(given) == 2:
        for name, value in given.items():
            parsed(**{name: value})


def test_what_is_needed_depends_on_what_is_done():
    parse(["--manifest", "m", "--model", "m", "--validate-only"])
    with pytest.raises(InputError, match="found no --audio-tokenizer, --hubert, --out"):
        parse(["--manifest", "m", "--model", "m"])
    with pytest.raises(InputError, match="found no --manifest, --model; expected --manifest, --model. Add"):
        parse(["--dry-run"])


def test_a_validation_manifest_holds_out_no_voices_and_has_its_own_folder(tmp_path):
    args = parsed(val_manifest=tmp_path / "val/v.jsonl")
    assert (args.val_speakers, args.val_audio_root) == ("0", tmp_path / "val")
    assert parsed(val_manifest=tmp_path / "val/v.jsonl", audio_root=tmp_path).val_audio_root == tmp_path
    args = parsed()
    assert (args.val_speakers, args.val_audio_root) == ("0.02", None)
