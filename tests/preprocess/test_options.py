"""Flags: each is taken or refused before anything is read, at its very border."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest

from preprocess import options, verify
from preprocess.common.errors import InputError
from preprocess.options import parse_settings
from preprocess.plan.screening import Screening
from preprocess.plan.settings import Settings
from preprocess.plan.slices import Slice
from tests.preprocess.helpers import assert_parts, flags


def parsed(**given):
    return parse_settings(flags(manifest="m.jsonl", model="m", dry_run=True, **given))


def actions() -> dict:
    """{name: action} of every flag, --help left out."""
    return {action.dest: action for action in options.make_parser()._actions if action.dest != "help"}


def test_every_flag_is_a_field_of_settings_and_every_field_a_flag():
    fields = {field.name for field in dataclasses.fields(Settings)}
    assert actions().keys() == fields
    for name, action in actions().items():
        assert action.option_strings == [f"--{name.replace('_', '-')}"]


def test_the_settings_without_flags_are_the_defaults_that_help_names(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    needed = {name: tmp_path / name for name in ("manifest", "model", "audio_tokenizer", "hubert", "out")}
    assert parse_settings(flags(**{name: name for name in needed})) == Settings(
        **needed,
        audio_root=None,
        allow_outside=False,
        columns={},
        speaker=None,
        val_speakers="0.02",
        val_manifest=None,
        reuse=None,
        system_text="Generate audio following instruction.",
        keep_system=False,
        allow_marks=False,
        layout="canonical",
        screening=Screening(),
        max_failure_share=0.05,
        noisy_references=0.0,
        noise=None,
        room_responses=None,
        waveforms="flac",
        hours_per_shard=0.5,
        seed=0,
        workers=0,
        executor="local",
        slice=None,
        finalize=False,
        device="cpu",
        precision="fp32",
        validate_only=False,
        dry_run=False,
    )
    for name in ("max_failure_share", "waveforms", "hours_per_shard", "seed", "executor", "device", "precision"):
        assert f"({actions()[name].default})" in actions()[name].help, name


@pytest.mark.parametrize("name", actions())
def test_each_flag_sets_its_field_to_a_value_of_its_type_and_no_other_field(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "thresholds.yaml").write_text("max_peak: 1.5\n")
    special = {
        "columns": ("audio=path", {"audio": "path"}),
        "val_speakers": ("3", "3"),
        "screening": ("thresholds.yaml", Screening(max_peak=1.5)),
        "slice": ("2/3", Slice(2, 3)),
        "waveforms": ("none", "none"),
        "layout": ("as-written", "as-written"),
        "executor": ("ray", "ray"),
        "device": ("cuda", "cuda"),
        "precision": ("bf16", "bf16"),
        "system_text": ("Speak.", "Speak."),
        "speaker": ("salma", "salma"),
    }
    plain = {bool: (True, True), int: ("7", 7), float: ("0.25", 0.25)}
    hint = get_type_hints(Settings)[name]
    text, value = special.get(name) or plain.get(hint, ("folder", tmp_path / "folder"))
    required = {"manifest": "m", "model": "m", "audio_tokenizer": "c", "hubert": "h", "out": "o"}
    more = {"noisy_references": "0.5"} if name in ("noise", "room_responses") else {}
    before, after = (
        parse_settings(flags(**required, **more)),
        parse_settings(flags(**{**required, **more, name: text})),
    )
    assert getattr(after, name) == value
    expected = {name: value} | ({"val_speakers": "0"} if name == "val_manifest" else {})
    assert after == dataclasses.replace(before, **expected)
    assert before != after


def test_settings_never_change():
    settings = parsed()
    for field in dataclasses.fields(Settings):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(settings, field.name, None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.another = 1


def test_all_paths_are_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    names = [name for name, action in actions().items() if action.type is Path and name != "screening"]
    assert len(names) == 10
    given = dict.fromkeys(names, "some/where")
    settings = parse_settings(flags(**given, noisy_references="0.5"))
    assert {getattr(settings, name) for name in names} == {tmp_path / "some/where"}


def test_audio_lies_in_the_folder_of_its_manifest_unless_a_root_is_named(tmp_path):
    settings = parsed()
    assert settings.audio_root_of(tmp_path / "m.jsonl") == tmp_path
    assert settings.audio_root_of(tmp_path) == tmp_path
    assert parsed(audio_root=tmp_path / "root").audio_root_of(tmp_path / "m.jsonl") == tmp_path / "root"


def test_all_wrong_values_are_named_at_once(tmp_path):
    (tmp_path / "t.yaml").write_text("max_peek: 1\n")
    with pytest.raises(InputError) as caught:
        parsed(workers="-1", hours_per_shard="0", slice="2/2", columns="x", screening=tmp_path / "t.yaml")
    for found, expected in (
        ("--workers -1", "--workers 0 (all cores) or more"),
        ("--hours-per-shard 0.0", "--hours-per-shard hours above 0"),
        ("--slice '2/2'", "--slice i/n with i from 0 to n - 1"),
        ("--columns 'x'", "--columns FIELD=COLUMN"),
        ("max_peek", f"{tmp_path / 't.yaml'} "),
    ):
        assert_parts(caught.value, "command line", found, expected, "Use --hours-per-shard 0.5.")
    assert "--seed" not in str(caught.value)


@pytest.mark.parametrize("name", ["slice", "val_speakers"])
def test_an_empty_value_is_no_value_left_out(name):
    with pytest.raises(InputError) as caught:
        parse_settings([*flags(manifest="m", model="m", dry_run=True), f"--{name.replace('_', '-')}", ""])
    assert caught.value.found == "''"


@pytest.mark.parametrize("argument", ["--hours=1", "--noisy=0.1", "--validate", "--val-man=m", "--workrs=1"])
def test_an_unknown_or_shortened_flag_is_refused(argument, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse_settings([*flags(manifest="m", model="m", dry_run=True), argument])
    assert stopped.value.code == 2
    assert f"unrecognized arguments: {argument}" in capsys.readouterr().err


def test_verify_refuses_shortened_flags_and_no_clips(capsys):
    with pytest.raises(SystemExit):
        verify.parse_arguments(["shards", "--clip", "3"])
    assert "unrecognized arguments: --clip" in capsys.readouterr().err
    verify.parse_arguments(["shards", "--clips", "1"])
    for value in ("0", "-1"):
        with pytest.raises(InputError) as caught:
            verify.parse_arguments(["shards", "--clips", value])
        assert_parts(caught.value, "--clips", value, "1 or more", "--clips 20")


def test_reading_the_flags_imports_nothing_heavy():
    """--help and a missing flag are answered before anything heavy is imported, good flags before torch is."""
    code = (
        "import sys\n"
        "from preprocess import options, shard, verify\n"
        "options.make_parser().format_help()\n"
        "heavy = {'torch', 'numpy', 'pyarrow', 'transformers', 'omegaconf', 'soundfile'}\n"
        "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()\n"
        "options.parse_settings(['--manifest', 'm', '--model', 'm', '--dry-run'])\n"
        "assert not {'torch', 'transformers'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


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
            parse_settings([*flags(manifest="m", model="m", dry_run=True), f"{flag}={value}"])
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
    parse_settings(["--manifest", "m", "--model", "m", "--validate-only"])
    with pytest.raises(InputError, match="found no --audio-tokenizer, --hubert, --out"):
        parse_settings(["--manifest", "m", "--model", "m"])
    with pytest.raises(InputError, match="found no --manifest, --model; expected --manifest, --model. Add"):
        parse_settings(["--dry-run"])


def test_a_validation_manifest_holds_out_no_voices_and_has_its_own_folder(tmp_path):
    args = parsed(val_manifest=tmp_path / "val/v.jsonl")
    assert (args.val_speakers, args.val_audio_root) == ("0", tmp_path / "val")
    assert parsed(val_manifest=tmp_path / "val/v.jsonl", audio_root=tmp_path).val_audio_root == tmp_path
    args = parsed()
    assert (args.val_speakers, args.val_audio_root) == ("0.02", None)


@pytest.mark.parametrize("name", ["", "  ", "None", "sal\0ma"])
def test_a_speaker_without_a_name_is_refused(name):
    with pytest.raises(InputError) as caught:
        parsed(speaker=name)
    assert_parts(caught.value, "--speaker", repr(name), "a name", "--speaker salma")


def test_the_speaker_is_written_as_the_speakers_of_rows_are():
    assert parsed(speaker=" Jose\u0301 ").speaker == "Jos\u00e9"
    assert parsed(speaker="7.0").speaker == "7"
