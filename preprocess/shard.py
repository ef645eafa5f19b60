"""The offline command: a manifest and its audio files become a folder of shards, ready for training.

    python -m preprocess.shard --manifest corpus.jsonl --model BASE --audio-tokenizer CODEC --hubert HUBERT \\
        --out shards/

What it does, in order, is preprocess/pipeline.py.
"""

from preprocess.common.errors import exit_on_input_error, stop_on_signals
from preprocess.options import parse


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code. Raises InputError where nothing can be done."""
    settings = parse(argv)

    from preprocess.pipeline import run  # after the flags are read: it imports torch

    return run(settings)


if __name__ == "__main__":
    stop_on_signals()
    exit_on_input_error(main)
