"""The command that turns a manifest and its audio files into a folder of shards for training.

    python -m preprocess.shard --manifest corpus.jsonl --model BASE --audio-tokenizer CODEC --hubert HUBERT \\
        --out shards/

preprocess/pipeline.py has its stages in order.
"""

from preprocess.common.errors import exit_on_input_error, stop_on_signals
from preprocess.options import parse_settings


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code. Raises InputError for wrong flags and unusable input."""
    settings = parse_settings(argv)

    from preprocess.pipeline import make_corpus  # after the flags are read: it imports torch

    return make_corpus(settings)


if __name__ == "__main__":
    stop_on_signals()
    exit_on_input_error(main)
