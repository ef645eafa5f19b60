"""Demo: the whole way in small, from audio files to a model that speaks, on a laptop's CPU or on GPUs.

    make demo

Boson's model, codec and tokenizer are made here, small and random; then the commands of the README run as anyone
would type them. All of it lands in demo/; an earlier demo there is replaced once the new one is ready.
"""

import argparse
import os
from pathlib import Path

from preprocess.common.errors import InputError, exit_on_input_error

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = "python -m launch.demo --out demo"


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; `out` as the commands of the demo name it, which run in the repository."""
    parser = argparse.ArgumentParser(
        prog="python -m launch.demo",
        description="Make Arabic recordings and a small random model, and run every command on them, from the "
        "recordings to speech. An earlier demo in the folder is kept until the new one is ready.",
        epilog=f"example: {EXAMPLE}",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--out", metavar="FOLDER", type=Path, help="where all of it lands (default: demo/ in the repository)"
    )
    arguments = parser.parse_args(argv)
    out = ROOT / "demo" if arguments.out is None else arguments.out.resolve()
    if ROOT.is_relative_to(out):
        raise InputError("--out", str(out), "a folder for the demo alone", f"For example: {EXAMPLE}")
    arguments.out = out.relative_to(ROOT) if out.is_relative_to(ROOT) else out
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Run the demo in a process of its own, which ends with this one and takes all its children with it."""
    out = parse_arguments(argv).out
    from launch.demo.family import run_in_own_process
    from launch.demo.folder import replacing

    def work() -> None:
        if Path.cwd() != ROOT:
            print(f"$ cd {ROOT}", flush=True)
            os.chdir(ROOT)
        with replacing(out) as demo:
            from launch.demo.stages import run_stages  # imports torch: not before the folder is ours

            run_stages(demo)

    return run_in_own_process(work)


if __name__ == "__main__":
    exit_on_input_error(main)
