"""Demo: the whole pipeline in small, from audio files to a model that speaks, on a laptop's CPU or on GPUs.

    make demo

It makes a small random model, codec and tokenizer with Boson's classes, then runs the commands of the README as a
user would type them. Everything is written to demo/, and replaces an earlier demo there once it is ready.
"""

import argparse
import os
from pathlib import Path

from preprocess.common.errors import InputError, exit_on_input_error
from preprocess.common.say import say
from preprocess.common.shell import shell_line

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = "python -m launch.demo --out demo"


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line. `out` is relative to the repository, where the demo's commands run, if it is inside it."""
    parser = argparse.ArgumentParser(
        prog="python -m launch.demo",
        description="Make Arabic recordings and a small random model, then run all commands on them, from the "
        "recordings to speech. An earlier demo in the folder is kept until the new one is ready.",
        epilog=f"example: {EXAMPLE}",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--out", metavar="FOLDER", type=Path, help="folder for everything (default: demo/ in the repository)"
    )
    arguments = parser.parse_args(argv)
    out = ROOT / "demo" if arguments.out is None else arguments.out.resolve()
    if ROOT.is_relative_to(out):
        raise InputError("--out", str(out), "a folder for the demo alone", f"For example: {EXAMPLE}")
    arguments.out = out.relative_to(ROOT) if out.is_relative_to(ROOT) else out
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Run the demo in a process of its own, which ends with this one and ends all its children with itself."""
    out = parse_arguments(argv).out
    from launch.demo.family import run_in_own_process
    from launch.demo.folder import new_demo_folder

    def work() -> None:
        if Path.cwd() != ROOT:
            say(f"$ {shell_line('cd', ROOT)}")
            os.chdir(ROOT)
        with new_demo_folder(out) as demo:
            from launch.demo.stages import run_stages  # imports torch, so only once the folder is locked

            run_stages(demo)

    return run_in_own_process(work)


if __name__ == "__main__":
    exit_on_input_error(main)
