"""What the tests of the offline stage share: running the command, writing manifests, the parts of an error."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from preprocess.common.errors import InputError, exit_on_input_error
from preprocess.shard import main


def write_jsonl(path: Path, rows: Sequence[dict | str]) -> Path:
    """Rows as JSON, strings as they are, one line per row."""
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def flags(**values: object) -> list[str]:
    """--name value of each, with dashes for underscores; True is a bare flag."""
    argv = []
    for name, value in values.items():
        argv += [f"--{name.replace('_', '-')}"] + ([] if value is True else [str(value)])
    return argv


def shard(**values: object) -> int:
    """Run the command in this process; returns its exit code."""
    return main(flags(**values))


def failures(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "failures.jsonl").read_text().splitlines()]


def row_failure(out: Path, line: int) -> dict:
    """The record of the manifest's line in failures.jsonl."""
    (record,) = [record for record in failures(out) if record["line"] == line]
    return record


def assert_parts(error: InputError | dict, where: str, found: str, expected: str, action: str) -> None:
    """All four parts of a message say what they should."""
    parts = error if isinstance(error, dict) else vars(error)
    for name, text in {"where": where, "found": found, "expected": expected, "action": action}.items():
        assert text in parts[name], f"{name}: {parts[name]!r} lacks {text!r}"


def refused(**values: object) -> InputError:
    """The error with which the command refuses to do anything; its exit code is 2."""
    errors = []

    def command() -> int:
        try:
            return shard(**values)
        except InputError as error:
            errors.append(error)
            raise

    with pytest.raises(SystemExit) as stopped:
        exit_on_input_error(command)
    assert stopped.value.code == 2
    return errors[0]


def folder_bytes(out: Path) -> dict[str, bytes]:
    """Every file of a corpus folder by its name under it."""
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
