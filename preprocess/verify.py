"""The command that checks a finished corpus: hashes, and every byte of every shard against the index and the format.

Each shard is read by our own reader and once more by webdataset's.

    python -m preprocess.verify shards/
    python -m preprocess.verify shards/ --audio-tokenizer CODEC --hubert HUBERT --clips 20 --audio-root recordings/

The second form also encodes some of the clips again, by Boson's own encode, and compares the codes. Prints progress
and one line per problem. Exit code 0: the corpus is what preprocess.shard wrote; 2: it is not. Nothing is unpickled
and nothing is written.
"""

import argparse
from pathlib import Path

from preprocess.common.errors import InputError, exit_on_input_error, stop_on_signals
from preprocess.common.say import say


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m preprocess.verify",
        description="Check a corpus that preprocess.shard wrote: the sha256 of each file, every header and member of "
        "each shard against the index, and that shards hold nothing else. Exit code 2 if something is wrong.",
        epilog="example: python -m preprocess.verify shards/",
        allow_abbrev=False,
    )
    parser.add_argument("shards", metavar="SHARDS", help="folder that preprocess.shard finished")
    parser.add_argument(
        "--model",
        type=Path,
        metavar="BASE",
        help="base model: count the tokens of each text again, with its tokenizer",
    )
    codes = parser.add_argument_group(
        "codes", "compare the codes of some clips with Boson's own encode of their files"
    )
    codes.add_argument("--audio-tokenizer", type=Path, metavar="CODEC", help="folder of the codec")
    codes.add_argument("--hubert", type=Path, metavar="HUBERT", help="folder of the codec's HuBERT")
    codes.add_argument("--clips", type=int, default=20, metavar="N", help="how many clips are compared (20)")
    codes.add_argument("--audio-root", type=Path, metavar="DIR", help="folder that source file names are relative to")
    arguments = parser.parse_args(argv)
    if (arguments.audio_tokenizer is None) != (arguments.hubert is None):
        raise InputError("command line", "one of --audio-tokenizer and --hubert", "both, or none", "Add the other.")
    if arguments.clips < 1:
        raise InputError("--clips", str(arguments.clips), "1 or more", "Use --clips 20.")
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Check the corpus, print each problem, and return the exit code: 0, or 2 where there is one."""
    arguments = parse_arguments(argv)

    # Imported after the flags are read, because these import pyarrow.
    from preprocess.corpus.shards import INDEX_FILE
    from preprocess.corpus.verify_shards import verify_corpus

    num_problems = num_shards = 0
    try:
        for name, problems in verify_corpus(arguments.shards, arguments.model):
            num_problems += len(problems)
            for problem in problems:
                say(f"problem: {problem}")
            if name != INDEX_FILE:
                num_shards += 1
                if num_shards % 100 == 0:
                    say(f"{num_shards:,} shards checked, {num_problems:,} problems")
    except KeyboardInterrupt as stop:
        stop.add_note(f"{num_shards:,} shards checked, {num_problems:,} problems so far")
        raise
    say(f"{num_shards:,} shards checked, {num_problems:,} problems in all")
    if arguments.audio_tokenizer and not num_problems:
        num_problems = _compare_codes(arguments)
    return 2 if num_problems else 0


def _compare_codes(arguments: argparse.Namespace) -> int:
    """Print the share of equal codes and each problem; returns the number of problems."""
    # Imported only where codes are compared, because verify_codes imports torch.
    from preprocess.corpus.shards import Corpus
    from preprocess.encode.verify_codes import verify_codes

    corpus = Corpus(arguments.shards)
    shares, problems = verify_codes(
        corpus, arguments.audio_tokenizer, arguments.hubert, arguments.clips, arguments.audio_root
    )
    say("equal codes, by codebook: " + ", ".join(f"{share:.4%}" for share in shares))
    for problem in problems:
        say(f"problem: {problem}")
    num_tried = min(arguments.clips, corpus.info["clips"]["written"])
    say(f"{num_tried} clips tried, {len(problems)} problems")
    return len(problems)


if __name__ == "__main__":
    stop_on_signals()
    exit_on_input_error(main)
