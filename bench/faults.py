"""docs/faults.md: the faults that the tests try, how many of each kind, and whether any got through.

python bench/faults.py                          all tests below, the soak among them: two hours on two cores
python bench/faults.py --results A.xml B.xml    from earlier runs of `pytest --junitxml A.xml`, without -n
"""

import argparse
import base64
import re
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "faults.md"


def some(file: str, *names: str) -> list[str]:
    """The tests of a file whose names begin so, without "test_"."""
    return [f"{file}::test_{name}" for name in names]


# Heading: {what is tried, and what must hold: test files, or tests in them}.
FAULTS = {
    "Kills, stops and hangs": {
        "random kills, stops, full disks, damaged checkpoints in one training of 1, then 2, then 1 ranks: weights, "
        "moments and metrics are those of the undisturbed run, to the byte": ["tests/test_soak.py::test_a_training"],
        "random kills, stops, full disks and damage in one preprocessing, with slices and Ray: the corpus is that of "
        "the undisturbed run, to the byte": ["tests/test_soak.py::test_a_corpus"],
        "a save killed at each call that changes a file, with and without a power cut: the checkpoint before or the "
        "new one": ["tests/engine/checkpoint/test_checkpoint.py::test_a_save_killed_at_any_call"],
        "a signal to one rank at any moment: all ranks stop together, the resumed run is the straight one": [
            "tests/engine/base/test_stop.py"
        ],
        "a rank that hangs is named, and all processes end; one that works for long is left alone": [
            "tests/engine/base/test_watchdog.py",
            "tests/test_launched_hangs.py",
        ],
        "workers of the preprocessing killed or hanging: one clip at most": some(
            "tests/preprocess/encode/test_local_pool.py",
            "a_killed",
            "a_job_that",
            "a_worker_that",
            "a_bug",
            "workers_die",
        ),
    },
    "Disks": {
        "full, read-only, gone: named, and what was there stays": [
            "tests/preprocess/common/test_files.py",
            "tests/engine/monitor/test_run_log.py",
            "tests/preprocess/common/test_locks.py",
        ],
        "storage at an address that fails, breaks off, or holds other bytes": some(
            "tests/preprocess/corpus/test_storage.py", "a_service", "a_byte", "a_shard", "a_file_that", "a_cache"
        ),
    },
    "Damaged and strange files": {
        "records (corpus.json, fragments, state.json, run.json, voice_training.json): bytes flipped, files cut, "
        "values of other types anywhere": [
            "tests/preprocess/common/test_record.py",
            "tests/preprocess/corpus/test_corpus_record.py",
            "tests/engine/checkpoint/test_records.py",
        ],
        "shards and indexes: cut at every block, bytes flipped, hostile members, strange cells that are hashed": [
            "tests/preprocess/test_verify.py",
            "tests/engine/batch/test_strange_corpus.py",
        ],
        "base models: strange configs, indexes, headers, tensors, pickles, code": [
            "tests/preprocess/corpus/test_base_model.py",
            "tests/engine/model/test_weight_files.py",
            "tests/engine/model/test_base_tensors.py",
        ],
        "codecs and HuBERT: the same": some(
            "tests/preprocess/codec/test_load.py",
            "a_",
            "values_that",
            "weights_that",
            "hubert_without",
            "codec_weights",
        ),
        "checkpoints and adapters: damaged in each file, tensors of any type, shape and value": [
            "tests/engine/checkpoint/test_checkpoint.py::test_a_broken_checkpoint_is_named",
            "tests/engine/checkpoint/test_strange_tensors.py",
        ],
        "recipes, overrides, DeepSpeed settings: any value at any key": some(
            "tests/engine/base/test_recipe.py", "a_wrong", "a_value", "a_file", "a_json", "aliases", "any", "no_file"
        ),
        "manifests: any value at any place, in every dialect: one row at most": [
            "tests/preprocess/manifest/test_strange_rows.py",
            "tests/preprocess/manifest/test_bad_input.py",
        ],
        "recordings: cut, flipped, empty, of another format, over which a decoder crashes or hangs: one clip": [
            *some("tests/preprocess/audio/test_decode.py", "a_file_cut", "a_flac", "what_is_no_audio", "no_samples"),
            *some(
                "tests/preprocess/audio/test_decode.py", "a_part_of_a_file", "a_header", "a_broken", "a_path", "a_pro"
            ),
            "tests/preprocess/encode/test_bad_audio.py",
            "tests/preprocess/encode/test_surprises.py",
        ],
    },
    "Payloads": {
        "names with terminal escapes, newlines, bidirectional overrides: shown, not obeyed": [
            "tests/preprocess/common/test_say.py"
        ],
        "paths out of the audio root: absolute, `..`, links": ["tests/preprocess/plan/test_outside.py"],
        "every command without a network": ["tests/test_without_network.py"],
    },
}


@dataclass
class Count:
    """Of the tests of one row. tried: cases, with the examples of property tests and the faults of a soak."""

    tests: int = 0
    tried: int = 0
    failed: int = 0
    skipped: int = 0
    kinds: Counter[str] = field(default_factory=Counter)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--results", nargs="+", type=Path, metavar="XML", help="JUnit files; without it the tests run"
    )
    results = parser.parse_args().results
    with tempfile.TemporaryDirectory() as folder:
        counts = count(results or [run_tests(Path(folder) / "results.xml")])
    PAGE.write_text(page(counts), encoding="utf-8")
    print(f"wrote {PAGE}")


def run_tests(results: Path) -> Path:
    files = sorted({name.split("::")[0] for rows in FAULTS.values() for names in rows.values() for name in names})
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not long or long", "--junitxml", str(results), *files]
    subprocess.run(command, cwd=ROOT, check=False)  # what failed is counted
    return results


def count(results: list[Path]) -> dict[str, Count]:
    """{row: its counts}. A test that stands in several files counts as in the last one.

    Raises SystemExit where a row has no result.
    """
    cases: dict[str, tuple[ElementTree.Element, int]] = {}
    for path in results:
        root = ElementTree.parse(path).getroot()
        examples = {
            name.removeprefix("hypothesis-statistics-"): num_examples(value)
            for name, value in properties(root.find(".//testsuite"))
            if name.startswith("hypothesis-statistics-")
        }
        for case in root.iter("testcase"):
            node = f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}"
            cases[node] = case, examples.get(node, 1)
    found = {row: Count() for rows in FAULTS.values() for row in rows}
    for rows in FAULTS.values():
        for row, names in rows.items():
            for node, (case, num) in cases.items():
                if node.startswith(tuple(names)):
                    add(found[row], case, num)
    if never := [row for row, each in found.items() if not each.tests]:
        raise SystemExit(f"no result of: {'; '.join(never)}")
    return found


def add(into: Count, case: ElementTree.Element, examples: int) -> None:
    """Count one test. examples: of a property test, otherwise 1."""
    given = dict(properties(case))
    kinds = Counter(
        {name.removeprefix("faults: "): int(n) for name, n in given.items() if name.startswith("faults: ")}
    )
    kinds.pop("no damage", None)
    into.tests += 1
    into.failed += case.find("failure") is not None or case.find("error") is not None
    into.skipped += case.find("skipped") is not None
    into.tried += kinds.total() or examples
    into.kinds += kinds


def properties(element: ElementTree.Element | None) -> list[tuple[str, str]]:
    inner = element.find("properties") if element is not None else None
    return [(each.get("name", ""), each.get("value", "")) for each in (inner if inner is not None else [])]


def num_examples(statistics: str) -> int:
    """Of a property test, by Hypothesis's statistics in base64: those it generated and those it reused."""
    text = base64.b64decode(statistics).decode()
    return max(1, sum(int(number) for number in re.findall(r"(\d+) passing", text)))


def page(counts: dict[str, Count]) -> str:
    total = sum(each.tried for each in counts.values())
    failed, skipped = (sum(getattr(each, name) for each in counts.values()) for name in ("failed", "skipped"))
    lines = [
        "# Faults",
        "",
        f"What the tests do to the system, by a run of {date.today()}: {total:,} faults, of which {failed or 'none'}",
        "got through. Written by `python bench/faults.py`, which says where each row is tested.",
    ]
    if skipped:
        lines += ["", f"{skipped} tests were skipped: the machine had no program or file that they need."]
    for heading, rows in FAULTS.items():
        lines += [
            "",
            f"## {heading}",
            "",
            "| fault, and what must hold | tests | tried | failed |",
            "|---|---|---|---|",
        ]
        for row in rows:
            each = counts[row]
            kinds = ", ".join(
                f"{name} {number}" for name, number in sorted(each.kinds.items(), key=lambda n: (-n[1], n[0]))
            )
            lines.append(f"| {row}{f' ({kinds})' if kinds else ''} | {each.tests} | {each.tried:,} | {each.failed} |")
    lines += [
        "",
        "Tried: one for each test case, each example of a property test (`make fuzz` makes others in each round),",
        "each call at which a save was killed, each fault of a soak.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
