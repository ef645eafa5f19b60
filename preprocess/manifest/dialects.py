"""Which files make up a manifest, and in which dialect each is written."""

import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from preprocess.common.errors import InputError
from preprocess.manifest import metadata_json, pipe_separated
from preprocess.manifest.delimited import find_separator
from preprocess.manifest.kaldi import find_kaldi_files, is_kaldi_file, read_kaldi
from preprocess.manifest.lhotse import is_cut, read_cuts
from preprocess.manifest.tables import SUFFIXES, read_records
from preprocess.manifest.text_file import manifest_suffix

_METADATA = ("metadata.json", "metadata.jsonl", "metadata.csv", "metadata.parquet")
# Hugging Face names the parts of a split like train-00000-of-00003.parquet.
_PART = re.compile(r"-\d+-of-\d+$")


class Dialect(NamedTuple):
    """How a file is read: the dialect's name, what it calls a row, and its records as (number, record).

    columns: {field: column} of this dialect. voice: the speaker of all rows, for a dialect that names none.
    """

    name: str
    unit: str
    records: Iterator[tuple[int, object]]
    columns: Mapping[str, str] = {}
    voice: str | None = None


def open_dialect(path: Path, root: Path, chosen: Mapping[str, str]) -> Dialect:
    """The dialect of a manifest file. root: where its recordings lie. chosen: {field: column} of --columns."""
    suffix = manifest_suffix(path)
    if is_kaldi_file(path):
        return Dialect("Kaldi", "line", read_kaldi(path))
    if suffix == ".json" and metadata_json.read_samples(path) is not None:
        return Dialect("metadata.json", "sample", metadata_json.read_sample_records(path), metadata_json.COLUMNS)
    if pipe_separated.is_piped(path):
        piped = pipe_separated.read_piped(path, root, chosen)
        voice = None if piped.has_speakers else path.absolute().parent.name
        return Dialect(piped.dialect, "line", piped.records, piped.columns, voice)
    if suffix not in SUFFIXES:
        raise _no_manifest(path, f"a {suffix or 'nameless'} file without | between columns")
    records = read_records(path)
    if suffix == ".parquet":
        return Dialect("columns", "row", records)
    if suffix in (".csv", ".tsv"):
        sign = find_separator(path) if suffix == ".csv" else ","
        name = "columns" if sign == "," else f"columns separated by {'tabs' if sign == chr(9) else sign}"
        return Dialect(name, "line", records)
    first = next(records, None)
    records = itertools.chain([first] if first else [], records)
    if first and is_cut(first[1]):
        return Dialect("lhotse cuts", "supervision", read_cuts(records))
    return Dialect("columns", "line", records)


def find_files(path: Path) -> list[Path]:
    """The manifest files of a file, a folder or a pattern, sorted by name. Raises InputError if there is none."""
    if path.is_dir():
        return _find_in_folder(path)
    if path.name == "wav.scp" or is_kaldi_file(path):
        return find_kaldi_files(path.parent)
    found = sorted(path.parent.glob(path.name)) if "*" in path.name else [path]
    wrong = next((file for file in found if not file.is_file() or manifest_suffix(file) not in _ALL_SUFFIXES), None)
    if not found or (wrong and not wrong.is_file()):
        raise _no_manifest(path, "no such file")
    if wrong:
        raise _no_manifest(path, f"a {wrong.suffix or 'nameless'} file")
    return found


_ALL_SUFFIXES = {*SUFFIXES, *pipe_separated.SUFFIXES}


def _find_in_folder(folder: Path) -> list[Path]:
    names = [name + more for name in _METADATA for more in ("", ".gz")]
    found = [[folder / name] for name in names if (folder / name).is_file()]
    kaldi = find_kaldi_files(folder)
    found += [kaldi] if kaldi else []
    if len(found) > 1:
        what = f"{len(found)} manifests: {', '.join(files[0].name for files in found)}"
        raise InputError(str(folder), what, "one", f"Name it, for example --manifest {found[0][0]}")
    if found:
        return found[0]
    if (folder / "metadata.txt").is_file():
        return [folder / "metadata.txt"]
    parts = sorted(folder.glob("*.parquet")) or sorted(folder.glob("data/*.parquet"))
    splits = sorted({_PART.sub("", file.stem) for file in parts if _PART.search(file.stem)})
    if len(splits) > 1:
        raise InputError(
            str(folder),
            f"Parquet files of {len(splits)} splits: {', '.join(splits)}",
            "the rows to train on",
            f"Name one by a pattern, for example --manifest '{parts[0].parent}/{splits[-1]}-*.parquet'",
        )
    if not parts:
        raise _no_manifest(folder, f"no {', no '.join(_METADATA)}, no wav.scp and no Parquet files")
    return parts


def _no_manifest(path: Path, found: str) -> InputError:
    expected = (
        "a manifest: .jsonl, .json, .csv, .tsv or .parquet, a .txt or .list with | between columns, or a folder with "
        "metadata.json, metadata.csv, metadata.jsonl, Parquet files, or Kaldi's wav.scp and text"
    )
    return InputError(str(path), found, expected, "Name it with --manifest.")
