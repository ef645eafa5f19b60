"""Show: a corpus as a table of its clips, and one clip as the model is trained on it.

python -m launch.show shards/                                     a table of the clips
python -m launch.show shards/ KEY --model BASE --image key.png    one clip and its training samples
python -m launch.show shards/ KEY --audio key.wav --audio-tokenizer CODEC --hubert HUBERT    its codes as sound
"""

import argparse
from pathlib import Path

from preprocess.common.errors import InputError, exit_on_input_error

EXAMPLE = "python -m launch.show shards/ salma_000-4ff6fc31ff38 --model models/base"
EXAMPLE_AUDIO = "python -m launch.show shards/ KEY --audio key.wav --audio-tokenizer CODEC --hubert HUBERT"


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line. Raises InputError for flags that need one another."""
    parser = argparse.ArgumentParser(
        prog="python -m launch.show",
        description="Show the clips of a corpus; with KEY, one clip and its training samples, token by token.",
        epilog=f"example: {EXAMPLE}",
        allow_abbrev=False,
    )
    parser.add_argument("shards", metavar="SHARDS", type=Path, help="a folder that preprocess.shard wrote")
    parser.add_argument("key", metavar="KEY", nargs="?", help="a clip's key, or the beginning of one")
    parser.add_argument("--model", metavar="FOLDER", type=Path, help="base model: its tokenizer and config are read")
    parser.add_argument(
        "--recipe",
        metavar="YAML",
        type=Path,
        help="recipe of the run whose samples are shown (default: every key's default)",
    )
    parser.add_argument("--epoch", metavar="N", type=int, default=0, help="epoch of the run, from 0 (default: 0)")
    parser.add_argument("--image", metavar="PNG", type=Path, help="write the codes of the first sample as a picture")
    parser.add_argument(
        "--audio",
        metavar="FILE",
        type=Path,
        help="write the clip's 16 kHz waveform as a FLAC file; with --audio-tokenizer and --hubert instead what the "
        "model is trained on, as WAV files: the clip's codes, decoded, and beside them those of its reference "
        "(FILE_reference.wav)",
    )
    parser.add_argument("--audio-tokenizer", metavar="FOLDER", type=Path, help="the codec of the corpus, for --audio")
    parser.add_argument("--hubert", metavar="FOLDER", type=Path, help="the HuBERT that the codec is built on")
    parser.add_argument("--lines", metavar="N", type=int, default=50, help="clips in the table (50; 0 for all)")
    arguments = parser.parse_args(argv)
    _check(arguments)
    return arguments


def _check(arguments: argparse.Namespace) -> None:
    """Raise InputError for flags that need one another, and for values that can't be used."""
    flags = {f"--{name.replace('_', '-')}": value for name, value in vars(arguments).items()}
    needs = [flag for flag in ("--model", "--image", "--audio") if flags[flag] and not arguments.key]
    if needs or (arguments.key and not (arguments.model or arguments.audio)):
        found = f"{needs[0]} without KEY" if needs else "KEY without --model"
        expected = "a clip, and the model that is trained on it"
        raise InputError("command line", found, expected, f"For example: {EXAMPLE}")
    if arguments.image and not arguments.model:
        raise InputError("command line", "--image without --model", "both", f"For example: {EXAMPLE}")
    if arguments.epoch < 0:
        raise InputError("--epoch", str(arguments.epoch), "0 or more", "Leave it out for the first epoch.")
    missing = [flag for flag in ("--audio", "--audio-tokenizer", "--hubert") if flags[flag] is None]
    if missing and (arguments.audio_tokenizer or arguments.hubert):
        expected = "all of --audio, --audio-tokenizer and --hubert, to decode codes"
        raise InputError("command line", f"no {' and '.join(missing)}", expected, f"For example:\n{EXAMPLE_AUDIO}")
    kind, suffix = ("decoded codes", ".wav") if arguments.audio_tokenizer else ("the stored waveform", ".flac")
    if arguments.audio and arguments.audio.suffix.lower() != suffix:
        expected = f"a name that ends in {suffix}, for {kind}"
        raise InputError("command line", f"--audio {arguments.audio}", expected, "Rename it.")


def main(argv: list[str] | None = None) -> int:
    """Print the table or the clip, and write the files that were asked for."""
    arguments = parse_arguments(argv)
    from engine.speak.corpus_table import find_row, show_corpus
    from preprocess.corpus.shards import Corpus

    corpus = Corpus(arguments.shards)
    if not arguments.key:
        show_corpus(corpus, arguments.lines)
        return 0
    row = find_row(corpus, arguments.key)
    from engine.base.recipe import Recipe, load_recipe
    from engine.speak.show import save_decoded, save_waveform, show_clip, show_samples

    recipe = load_recipe(arguments.recipe) if arguments.recipe else Recipe()
    show_clip(corpus, row)
    if arguments.model:
        show_samples(corpus, row, arguments.model, recipe, arguments.epoch, arguments.image)
    if arguments.audio_tokenizer:
        codec, hubert = arguments.audio_tokenizer, arguments.hubert
        save_decoded(corpus, row, recipe, arguments.epoch, codec, hubert, arguments.audio)
    elif arguments.audio:
        save_waveform(corpus, row, arguments.audio)
    return 0


if __name__ == "__main__":
    exit_on_input_error(main)
