"""Convert: write a base in the other layout: Boson's own, or that of transformers 5, as the hub's main holds it.

    python -m launch.convert --model DOWNLOADED --format boson --out BASE
    python -m launch.convert --adapter RUN/checkpoints/best --format transformers --out ADAPTER

Names and config change, no bit of a tensor does. No other command needs it: all read both layouts. Other software may
read one alone: Boson's own code the first, vLLM-Omni, MLX and GGUF the second. With --adapter, the adapter of a
checkpoint is written under the names of the second, for plain PEFT on transformers' own class.
"""

import argparse
from pathlib import Path

from launch.arguments import require_flags
from preprocess.common.errors import InputError, exit_on_input_error
from preprocess.common.say import say

EXAMPLE = "python -m launch.convert --model higgs-audio-v2-main/ --format boson --out base/"


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line. Raises InputError that names all missing flags."""
    parser = argparse.ArgumentParser(
        prog="python -m launch.convert",
        description="Write a base model in the other layout, to the bit: Boson's own (model_type higgs_audio), or "
        "that of transformers 5 (higgs_audio_v2). Every command of this project reads both.",
        epilog=f"example: {EXAMPLE}",
        allow_abbrev=False,
    )
    needed = parser.add_argument_group("needed")
    needed.add_argument("--model", metavar="FOLDER", type=Path, help="the base as it was downloaded")
    parser.add_argument(
        "--adapter", metavar="FOLDER", type=Path, help="in place of --model: a checkpoint or a PEFT adapter folder"
    )
    needed.add_argument("--format", choices=("boson", "transformers"), help="the layout to write")
    needed.add_argument("--out", metavar="FOLDER", type=Path, help="folder for the base in that layout, new or empty")
    arguments = parser.parse_args(argv)
    require_flags(arguments, ("model" if arguments.adapter is None else "adapter", "format", "out"), EXAMPLE)
    if arguments.adapter is not None and arguments.model is not None:
        raise InputError("command line", "--model and --adapter", "one of them", "Convert one after the other.")
    if arguments.adapter is not None and arguments.format == "boson":
        expected, action = "--format transformers", "Checkpoints have Boson's names already: use it as it is."
        raise InputError("--adapter", "--format boson", expected, action)
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Convert, and print what was written."""
    arguments = parse_arguments(argv)
    from engine.model.convert import convert

    if arguments.adapter is not None:
        from engine.merge.native_adapter import convert_adapter

        num_tensors = convert_adapter(arguments.adapter, arguments.out)
        say(f"{arguments.out}: {num_tensors} tensors of an adapter under the names of transformers 5")
        return 0
    num_tensors = convert(arguments.model, arguments.out, arguments.format)
    say(f"{arguments.out}: {num_tensors} tensors in the layout of {arguments.format}, each with the bits it had")
    return 0


if __name__ == "__main__":
    exit_on_input_error(main)
