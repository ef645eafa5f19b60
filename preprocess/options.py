"""The flags of preprocess.shard, read into Settings. It imports little, so that `--help` answers at once."""

import argparse
import math
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preprocess.common.errors import InputError
from preprocess.corpus.dialogue import AS_WRITTEN, CANONICAL, DEFAULT_SYSTEM_TEXT

if TYPE_CHECKING:
    from preprocess.plan.settings import Settings

EXAMPLE = """example:
  python -m preprocess.shard --manifest corpus.jsonl --model models/base \\
      --audio-tokenizer models/codec --hubert models/hubert --out shards/"""
REQUIRED = {
    "manifest": "the list of recordings: .jsonl, .json, .csv, .tsv (or .gz of one), .parquet, a .txt with | between "
    "columns; or a folder with metadata.json, metadata.csv (LJSpeech, audiofolder), Parquet files or Kaldi's wav.scp "
    "and text; or a pattern ('data/train-*.parquet')",
    "model": "folder of the Higgs Audio v2 base model (config and tokenizer are read)",
    "audio_tokenizer": "folder of the codec, in either layout",
    "hubert": "folder of the HuBERT that the codec is built on",
    "out": "folder to write",
}


def parse_settings(argv: list[str] | None) -> "Settings":
    """The settings of a command line. Raises one InputError for all missing flags, or for all wrong values."""
    args = make_parser().parse_args(argv)
    _refuse_missing(args)
    _refuse_contradictions(args)
    if args.val_speakers is None:
        args.val_speakers = "0" if args.val_manifest else "0.02"

    # Imported after the flags are read, so that --help need not wait for these.
    from preprocess.manifest.field_names import parse_columns
    from preprocess.manifest.values import parse_speaker
    from preprocess.plan.screening import load_screening
    from preprocess.plan.settings import Settings
    from preprocess.plan.slices import parse_slice

    values = vars(args) | {name: path.absolute() for name, path in vars(args).items() if isinstance(path, Path)}
    problems = list(_wrong_numbers(args))
    readers: dict[str, Callable[[Any], object]] = {
        "columns": parse_columns,
        "screening": load_screening,
        "slice": parse_slice,
        "speaker": parse_speaker,
    }
    for name, read in readers.items():
        try:
            values[name] = read(getattr(args, name))
        except InputError as problem:
            problems.append(problem)
    _refuse(problems)
    return Settings(**values)


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command line: one flag per field of Settings."""
    parser = argparse.ArgumentParser(
        prog="python -m preprocess.shard",
        description=textwrap.fill(
            "Encode recordings with Boson's codec and write shards for training. Manifest rows have `audio`, `text` "
            "and `speaker`, optionally `reference_audio` and `reference_text`, and `start` and `end` (seconds) for a "
            "part of a longer file; ChatML voice-cloning rows, LJSpeech, Kaldi, lhotse, NeMo and Hugging Face's "
            "folders are read too. A row that can't be used is named in failures.jsonl, and the command goes on with "
            "the others. Run the same command again to continue where it stopped."
        ),
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    needed = parser.add_argument_group("needed")
    for name, help_text in REQUIRED.items():
        needed.add_argument(_flag(name), type=Path, metavar="PATH", help=help_text)
    _add_recordings(parser.add_argument_group("recordings", "the rows of the manifest and their audio"))
    _add_prompt(parser.add_argument_group("prompt", "what the model gets besides the codes; recorded in corpus.json"))
    _add_clips(parser.add_argument_group("clips", "which recordings are kept, and what is stored of them"))
    _add_machine(parser.add_argument_group("machine", "where and how codes are computed"))
    _add_previews(parser.add_argument_group("previews", "write nothing; --manifest and --model are enough"))
    return parser


def _add_recordings(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--audio-root",
        type=Path,
        metavar="PATH",
        help="folder that audio paths are relative to, and under which all recordings lie (the manifest's)",
    )
    group.add_argument(
        "--allow-outside",
        action="store_true",
        help="read recordings outside --audio-root too, and through links that lead out of it: only for a manifest "
        "that you trust with every file that you may read",
    )
    group.add_argument(
        "--columns",
        default="",
        metavar="FIELD=COLUMN,...",
        help="the column of the manifest that holds a field, where it has another name: for Common Voice "
        "audio=path,text=sentence,speaker=client_id. The command prints which column it takes for which field",
    )
    group.add_argument(
        "--speaker",
        metavar="NAME",
        help="the speaker of all rows that name none, for a corpus of one voice",
    )
    group.add_argument(
        "--val-speakers",
        metavar="N|SHARE",
        help="voices held out for validation: a number (3), or a share with a decimal point (0.02, the default; at "
        "least one of three voices, and two of four or more); 0 for none",
    )
    group.add_argument(
        "--val-manifest",
        type=Path,
        metavar="PATH",
        help="a manifest whose rows are the validation split, instead of --val-speakers; in any form of --manifest",
    )
    group.add_argument(
        "--reuse",
        type=Path,
        metavar="OLD",
        help="a finished earlier corpus of the same codec: recordings that did not change are not encoded again, "
        "even if their text or speaker changed",
    )


def _add_prompt(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--system-text", default=DEFAULT_SYSTEM_TEXT, metavar="TEXT", help="the system turn of every prompt"
    )
    group.add_argument(
        "--keep-system",
        action="store_true",
        help="a ChatML row's own system text, where it has one, replaces --system-text; launch.generate takes "
        "such a text too",
    )
    group.add_argument(
        "--allow-marks",
        action="store_true",
        help="transcripts may have Boson's marks for sounds that are no words, such as <SE>[Laughter]</SE>; "
        "launch.generate then speaks such texts",
    )
    group.add_argument(
        "--layout",
        choices=[CANONICAL, AS_WRITTEN],
        default=CANONICAL,
        help="the layout of dialogues: the one in which inference clones a voice (canonical), or that of the ChatML "
        "rows (as-written)",
    )


def _add_clips(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--screening",
        type=Path,
        metavar="YAML",
        help="thresholds for dropping clips, for example launch/recipes/screening_arabic.yaml (without it: clips of "
        "0.5 to 30 s, not silent, no samples far beyond full scale, at most a quarter of them clipped)",
    )
    group.add_argument(
        "--max-failure-share",
        type=float,
        default=0.05,
        metavar="SHARE",
        help="stop when more than this share of at least 200 rows or clips fails (0.05); clips that the screening "
        "drops do not count",
    )
    group.add_argument(
        "--noisy-references",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="for this share of the clips (0: none) also make a copy with noise, at a signal-to-noise ratio of 5 to "
        "15 dB, and the echo of a room. Copies are drawn as references only, so that the model learns to clone a "
        "voice from poor recordings too",
    )
    group.add_argument(
        "--noise", type=Path, metavar="DIR", help="noise for --noisy-references (without it: synthetic noise)"
    )
    group.add_argument(
        "--room-responses",
        type=Path,
        metavar="DIR",
        help="impulse responses for --noisy-references (without it: synthetic echoes that decay exponentially)",
    )
    group.add_argument(
        "--waveforms", choices=["flac", "none"], default="flac", help="store 16 kHz waveforms in the shards (flac)"
    )
    group.add_argument("--hours-per-shard", type=float, default=0.5, metavar="HOURS", help="audio per shard (0.5)")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="seed of shards, split and noisy copies (0)")


def _add_machine(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--workers", type=int, default=0, metavar="N", help="processes (one per core; with --device cuda, per GPU)"
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
        help="make the i-th of n shares of the shards (i from 0); other runs on the same --out make the others. The "
        "run that ends last writes index and corpus.json",
    )
    group.add_argument(
        "--finalize", action="store_true", help="encode nothing: write index and corpus.json of slices that all ended"
    )
    group.add_argument(
        "--device",
        choices=["cpu", "cuda"],
        default="cpu",
        help="where codes are computed (cpu): with cuda by one process per GPU, which decodes ahead in threads",
    )
    group.add_argument(
        "--precision",
        choices=["fp32", "tf32", "bf16"],
        default="fp32",
        help="number format of the encoder (fp32): bf16 on GPUs and CPUs that have it, tf32 on GPUs. All but fp32 on "
        "the CPU is faster and gives some other codes than Boson's: their share is measured on the first clips, "
        "printed and recorded",
    )


def _add_previews(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--validate-only",
        action="store_true",
        help="decode and screen every clip as a run does, and say what it would lose; exit code 1 where it stops",
    )
    group.add_argument(
        "--dry-run",
        action="store_true",
        help="print how the manifest is read, one row as it will be trained, hours, size and time (with "
        "--audio-tokenizer and --hubert: measured by encoding 3 clips), and what a run would lose by the files' "
        "headers; exit code 1 where it would stop; write nothing",
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
    if args.val_manifest and args.val_speakers is not None:
        raise _contradiction("--val-manifest and --val-speakers", "Leave out --val-speakers.")
    if args.layout == AS_WRITTEN and args.noisy_references:
        action = "Leave out --noisy-references: rows that are kept as written name their own references."
        raise _contradiction("--layout as-written and --noisy-references", action)
    if args.slice is not None and args.finalize:
        raise _contradiction("--slice and --finalize", "Run --finalize after the slices.")
    if args.executor == "ray" and args.device == "cuda":
        action = "GPUs work under the local executor: on many machines run one --slice on each."
        raise _contradiction("--executor ray and --device cuda", action)
    if (args.noise or args.room_responses) and not args.noisy_references:
        found = "--noise or --room-responses alone"
        raise InputError("command line", found, "--noisy-references with it", "Add --noisy-references 0.2.")


def _contradiction(found: str, action: str) -> InputError:
    return InputError("command line", found, "one of them", action)


def _wrong_numbers(args: argparse.Namespace) -> Iterator[InputError]:
    share, voices = "a share from 0 to 1", "a number of voices (3) or a share below 1 with a decimal point (0.02)"
    for name, fits, expected, example in (
        ("val_speakers", _is_number_of_voices(args.val_speakers), voices, "0.02, or 0 for no validation"),
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
