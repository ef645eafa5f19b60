"""Check a finished corpus whole: hashes, and every byte of every shard against the index and the format.

Each shard is read by our own reader of the format, and once more by stock webdataset.

    python -m preprocess.verify shards/
    python -m preprocess.verify shards/ --audio-tokenizer CODEC --hubert HUBERT --clips 20 --audio-root recordings/

The second form also encodes some of the clips again, by Boson's own encode, and compares. Prints progress and a line
a problem. Exit code 0: the corpus is what preprocess.shard wrote; 2: it is not. Nothing is unpickled and nothing is
written.
"""

import argparse
from pathlib import Path

from preprocess.common.errors import InputError, exit_on_input_error, stop_on_signals


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m preprocess.verify",
        description="Check a corpus of preprocess.shard whole: sha256 of each file; every header and member of "
        "each shard against the index, and that nothing else is in there. Exit code 2 if something is wrong.",
        epilog="example: python -m preprocess.verify shards/",
        allow_abbrev=False,
    )
    parser.add_argument("shards", metavar="SHARDS", help="folder that preprocess.shard finished")
    codes = parser.add_argument_group(
        "codes", "compare the codes of some clips with Boson's own encode of their files"
    )
    codes.add_argument("--audio-tokenizer", type=Path, metavar="CODEC", help="folder of the codec")
    codes.add_argument("--hubert", type=Path, metavar="HUBERT", help="folder of its HuBERT")
    codes.add_argument("--clips", type=int, default=20, metavar="N", help="how many clips (20)")
    codes.add_argument("--audio-root", type=Path, metavar="DIR", help="what the names of the source files are under")
    arguments = parser.parse_args(argv)
    if (arguments.audio_tokenizer is None) != (arguments.hubert is None):
        raise InputError("command line", "one of --audio-tokenizer and --hubert", "both, or none", "Add the other.")
    if arguments.clips < 1:
        raise InputError("--clips", str(arguments.clips), "1 or more", "Use --clips 20.")
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Check the corpus and tell of each problem; 0 or 2."""
    arguments = parse_arguments(argv)

    # After the flags are read: these import pyarrow.
    from preprocess.corpus.shards import INDEX_FILE
    from preprocess.corpus.verify_shards import verify_corpus

    num_problems = num_shards = 0
    try:
        for name, problems in verify_corpus(arguments.shards):
            num_problems += len(problems)
            for problem in problems:
                print(f"problem: {problem}", flush=True)
            if name != INDEX_FILE:
                num_shards += 1
                if num_shards % 100 == 0:
                    print(f"{num_shards:,} shards checked, {num_problems:,} problems", flush=True)
    except KeyboardInterrupt as stop:
        stop.add_note(f"{num_shards:,} shards checked, {num_problems:,} problems so far")
        raise
    print(f"{num_shards:,} shards checked, {num_problems:,} problems in all", flush=True)
    if arguments.audio_tokenizer and not num_problems:
        num_problems = _compare_codes(arguments)
    return 2 if num_problems else 0


def _compare_codes(arguments: argparse.Namespace) -> int:
    """Print how far codes agree and what is wrong; returns the number of problems."""
    # Where codes are compared: verify_codes imports torch.
    from preprocess.corpus.shards import Corpus
    from preprocess.encode.verify_codes import verify_codes

    corpus = Corpus(arguments.shards)
    shares, problems = verify_codes(
        corpus, arguments.audio_tokenizer, arguments.hubert, arguments.clips, arguments.audio_root
    )
    print("equal codes, by codebook: " + ", ".join(f"{share:.4%}" for share in shares))
    for problem in problems:
        print(f"problem: {problem}", flush=True)
    print(
        f"{min(arguments.clips, corpus.info['clips']['written'])} clips tried, {len(problems)} problems",
        flush=True,
    )
    return len(problems)


if __name__ == "__main__":
    stop_on_signals()
    exit_on_input_error(main)
