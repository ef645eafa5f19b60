"""The flags of preprocess.shard, which become Settings. Imports little, so that `--help` answers at once."""

import argparse
import math
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from preprocess.common.errors import InputError
from preprocess.corpus.dialogue import AS_WRITTEN, CANONICAL, DEFAULT_SYSTEM_TEXT

if TYPE_CHECKING:
    from preprocess.plan.settings import Settings

EXAMPLE = """example:
  python -m preprocess.shard --manifest corpus.jsonl --model models/base \\
      --audio-tokenizer models/codec --hubert models/hubert --out shards/"""
REQUIRED = {
    "manifest": "the list of recordings: .jsonl, .json, .csv, .tsv or .parquet; or a folder with metadata.json, "
    "metadata.csv (LJSpeech, audiofolder) or Parquet files; or a pattern ('data/train-*.parquet')",
    "model": "folder of the Higgs Audio v2 base model (config and tokenizer are read)",
    "audio_tokenizer": "folder of the codec (config.json, model.pth)",
    "hubert": "folder of the HuBERT that the codec is built on",
    "out": "folder to write",
}


def parse(argv: list[str] | None) -> "Settings":
    """The command line, read and checked. Raises InputError: all flags that are missing, or all wrong values."""
    args = flags().parse_args(argv)
    _refuse_missing(args)
    _refuse_contradictions(args)
    if args.val_speakers is None:
        args.val_speakers = "0" if args.val_manifest else "0.02"

    # After the flags are read, so that --help need not wait for these.
    from preprocess.manifest.columns import parse_columns
    from preprocess.plan.screening import load_screening
    from preprocess.plan.settings import Settings
    from preprocess.plan.slices import parse_slice

    values = vars(args) | {name: path.absolute() for name, path in vars(args).items() if isinstance(path, Path)}
    problems = list(_wrong_numbers(args))
    readers: dict[str, Callable] = {"columns": parse_columns, "screening": load_screening, "slice": parse_slice}
    for name, read in readers.items():
        try:
            values[name] = read(getattr(args, name))
        except InputError as problem:
            problems.append(problem)
    _refuse(problems)
    return Settings(**values)


def flags() -> argparse.ArgumentParser:
    """The parser: one flag per field of Settings."""
    parser = argparse.ArgumentParser(
        prog="python -m preprocess.shard",
        description=textwrap.fill(
            "Encode recordings with Boson's codec and write shards for training. Rows are `audio`, `text` and "
            "`speaker`, or `reference_audio` and `reference_text`, and `start` and `end` (seconds) where a clip is a "
            "part of a longer file; ChatML voice-cloning rows, LJSpeech and Hugging Face's folders are read too. A "
            "row that can't be used is named in failures.jsonl and the others go on. Run the same command again to "
            "continue where it stopped."
        ),
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    needed = parser.add_argument_group("needed")
    for name, help_text in REQUIRED.items():
        needed.add_argument(_flag(name), type=Path, metavar="PATH", help=help_text)
    _add_recordings(parser.add_argument_group("recordings", "rows and the audio they name"))
    _add_prompt(parser.add_argument_group("prompt", "what the model reads beside the codes; recorded in corpus.json"))
    _add_clips(parser.add_argument_group("clips", "what becomes of a recording"))
    _add_machine(parser.add_argument_group("machine", "where and how codes are computed"))
    _add_previews(parser.add_argument_group("looks", "what writes nothing; --manifest and --model are enough"))
    return parser


def _add_recordings(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--audio-root", type=Path, metavar="PATH", help="what audio paths are relative to (the manifest's folder)"
    )
    group.add_argument(
        "--columns",
        default="",
        metavar="FIELD=COLUMN,...",
        help="which columns of the manifest are what, where their names do not say so: for Common Voice "
        "audio=path,text=sentence,speaker=client_id. What was taken for what is printed",
    )
    group.add_argument(
        "--val-speakers",
        metavar="N|SHARE",
        help="voices held out for validation: a number (3), or a share with a point (0.02, the default: at least "
        "one of three voices or more); 0 for none",
    )
    group.add_argument(
        "--val-manifest",
        type=Path,
        metavar="PATH",
        help="a manifest whose rows are the validation split, instead of --val-speakers; read as --manifest is",
    )
    group.add_argument(
        "--reuse",
        type=Path,
        metavar="OLD",
        help="an earlier corpus, finished, of the same codec: recordings that did not change are not encoded again, "
        "whatever became of their text and speaker",
    )


def _add_prompt(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--system-text", default=DEFAULT_SYSTEM_TEXT, metavar="TEXT", help="the system turn of every prompt"
    )
    group.add_argument(
        "--keep-system",
        action="store_true",
        help="a ChatML row's own system text, where it has one, in place of --system-text; launch.generate takes one "
        "too",
    )
    group.add_argument(
        "--layout",
        choices=[CANONICAL, AS_WRITTEN],
        default=CANONICAL,
        help="how dialogues are laid out: as inference clones a voice (canonical), or as ChatML rows are written",
    )


def _add_clips(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--screening",
        type=Path,
        metavar="YAML",
        help="thresholds for dropping clips, as launch/recipes/screening_arabic.yaml has them (without it: 0.5 to "
        "30 s, no silence, no samples far beyond full scale, no clip that is a quarter clipped)",
    )
    group.add_argument(
        "--max-failure-share",
        type=float,
        default=0.05,
        metavar="SHARE",
        help="stop when more than this share of at least 200 rows or clips fails (0.05); screened ones do not count",
    )
    group.add_argument(
        "--noisy-references",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="for this share of the clips (0: none) make a second one with noise at 5 to 15 dB and the echo of a "
        "room, which is drawn as a reference only: a voice is then learned from poor recordings too",
    )
    group.add_argument(
        "--noise", type=Path, metavar="DIR", help="noise for --noisy-references (without it: made-up noise)"
    )
    group.add_argument(
        "--room-responses",
        type=Path,
        metavar="DIR",
        help="impulse responses for --noisy-references (without them: echoes that decay exponentially)",
    )
    group.add_argument(
        "--waveforms", choices=["flac", "none"], default="flac", help="store 16 kHz waveforms in the shards (flac)"
    )
    group.add_argument("--hours-per-shard", type=float, default=0.5, metavar="HOURS", help="audio in a shard (0.5)")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="deals speakers and the split (0)")


def _add_machine(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--workers", type=int, default=0, metavar="N", help="processes (all cores; with --device cuda all GPUs)"
    )
    group.add_argument(
        "--executor",
        choices=["local", "ray"],
        default="local",
        help="where shards are made: processes of this machine (local), or a Ray cluster (requirements-cluster.txt)",
    )
    group.add_argument(
        "--slice",
        metavar="i/n",
        help="make the i-th of n shares of the shards (i from 0), as other runs on the same --out make the others; "
        "the last to end writes index and corpus.json",
    )
    group.add_argument(
        "--finalize", action="store_true", help="encode nothing: write index and corpus.json of slices that all ended"
    )
    group.add_argument(
        "--device",
        choices=["cpu", "cuda"],
        default="cpu",
        help="where codes are computed (cpu): with cuda by a process a GPU, which reads ahead of it",
    )
    group.add_argument(
        "--precision",
        choices=["fp32", "tf32", "bf16"],
        default="fp32",
        help="of the encoder (fp32): bf16 on GPUs and CPUs that have it, tf32 on GPUs. All but fp32 on the CPU is "
        "faster and gives some other codes than Boson's: how many is measured on the first clips, said and recorded",
    )


def _add_previews(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--validate-only", action="store_true", help="check manifest and headers, encode nothing")
    group.add_argument(
        "--dry-run",
        action="store_true",
        help="say what was detected, one row as it will be trained, hours, size and time (with --audio-tokenizer and "
        "--hubert: from an encode of 3 clips); write nothing",
    )


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _refuse_missing(args: argparse.Namespace) -> None:
    required = ["manifest", "model"] if args.validate_only or args.dry_run else list(REQUIRED)
    missing = [_flag(name) for name in required if getattr(args, name) is None]
    if missing:
        expected = ", ".join(_flag(name) for name in required)
        raise InputError("command line", f"no {', '.join(missing)}", expected, f"Add what is missing.\n{EXAMPLE}")


def _refuse_contradictions(args: argparse.Namespace) -> None:
    for both, found, action in (
        (
            args.val_manifest and args.val_speakers is not None,
            "--val-manifest and --val-speakers",
            "Leave out --val-speakers.",
        ),
        (
            args.layout == AS_WRITTEN and args.noisy_references,
            "--layout as-written and --noisy-references",
            "Rows that are kept as written name their own references: none is drawn.",
        ),
        (args.slice is not None and args.finalize, "--slice and --finalize", "Run --finalize after the slices."),
        (
            args.executor == "ray" and args.device == "cuda",
            "--executor ray and --device cuda",
            "GPUs work under the local executor: on many machines run a --slice on each.",
        ),
    ):
        if both:
            raise InputError("command line", found, "one of them", action)
    if (args.noise or args.room_responses) and not args.noisy_references:
        found = "--noise or --room-responses alone"
        raise InputError("command line", found, "--noisy-references with it", "Add --noisy-references 0.2.")


def _wrong_numbers(args: argparse.Namespace) -> Iterator[InputError]:
    share = "a share from 0 to 1"
    for name, fits, expected, example in (
        (
            "val_speakers",
            _is_number_of_voices(args.val_speakers),
            "a number of voices (3) or a share below 1 with a point (0.02)",
            "0.02, or 0 for no validation",
        ),
        ("max_failure_share", 0 <= args.max_failure_share <= 1, share, "0.05"),
        ("noisy_references", 0 <= args.noisy_references <= 1, share, "0.2"),
        ("hours_per_shard", 0 < args.hours_per_shard < math.inf, "hours above 0", "0.5"),
        ("workers", args.workers >= 0, "0 (all cores) or more", "0"),
    ):
        if not fits:
            flag = _flag(name)
            yield InputError(flag, repr(getattr(args, name)), expected, f"Use {flag} {example}.")


def _is_number_of_voices(text: str) -> bool:
    try:
        return 0 <= float(text) < 1 if "." in text else int(text) >= 0
    except ValueError:
        return False


def _refuse(problems: list[InputError]) -> None:
    """Raise the one problem, or one InputError that names all."""
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise InputError(
            "command line",
            "; ".join(f"{problem.where} {problem.found}" for problem in problems),
            "; ".join(f"{problem.where} {problem.expected}" for problem in problems),
            " ".join(problem.action for problem in problems),
        )
