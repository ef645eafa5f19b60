"""Convert: write a base in the layout of transformers 5, as the hub's main holds it, in Boson's own layout.

    python -m launch.convert --model DOWNLOADED --out BASE

Names and config change, no bit of a tensor does. BASE is then the --model of every other command.
"""

import argparse
from pathlib import Path

from launch.arguments import require_flags
from preprocess.common.errors import exit_on_input_error
from preprocess.common.say import say
from preprocess.common.shell import shell_line

EXAMPLE = "python -m launch.convert --model higgs-audio-v2-main/ --out base/"


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line. Raises InputError that names all missing flags."""
    parser = argparse.ArgumentParser(
        prog="python -m launch.convert",
        description="Write a base model in the layout of transformers 5 (model_type higgs_audio_v2) in Boson's own "
        "layout, which training, merging and Boson's serve engine read.",
        epilog=f"example: {EXAMPLE}",
        allow_abbrev=False,
    )
    needed = parser.add_argument_group("needed")
    needed.add_argument("--model", metavar="FOLDER", type=Path, help="the base as it was downloaded")
    needed.add_argument(
        "--out", metavar="FOLDER", type=Path, help="folder for the base in Boson's layout, new or empty"
    )
    arguments = parser.parse_args(argv)
    require_flags(arguments, ("model", "out"), EXAMPLE)
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Convert, and print what was written and what to do next."""
    arguments = parse_arguments(argv)
    from engine.model.convert import convert_to_boson

    num_tensors = convert_to_boson(arguments.model, arguments.out)
    say(f"{arguments.out}: {num_tensors} tensors in Boson's layout, each with the bits it had")
    words = ["python", "-m", "preprocess.shard", "--manifest", "corpus.jsonl", "--model", arguments.out]
    say(f"next: {shell_line(*words, '--audio-tokenizer', 'CODEC', '--hubert', 'HUBERT', '--out', 'shards')}")
    return 0


if __name__ == "__main__":
    exit_on_input_error(main)
