"""Show: what a corpus holds, and one clip as the model is trained on it.

python -m launch.show shards/                                     a table of the clips
python -m launch.show shards/ KEY --model BASE --image key.png    one clip, and a training sample of it
python -m launch.show shards/ KEY --audio key.wav --audio-tokenizer CODEC --hubert HUBERT    its codes, to hear
"""

import argparse
from pathlib import Path

from engine.speak.show import EXAMPLE_AUDIO, find_row, save_audio, show_corpus, show_sample, use_of
from preprocess.common.errors import InputError, exit_on_input_error

EXAMPLE = "python -m launch.show shards/ salma_000-4ff6fc31ff38 --model higgs-audio-v2-generation-3B-base"


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line. Raises InputError for flags that need one another."""
    parser = argparse.ArgumentParser(
        prog="python -m launch.show",
        description="Show what a corpus holds; with KEY, one clip and a training sample of it as the model sees it.",
        epilog=f"example: {EXAMPLE}",
    )
    parser.add_argument("shards", metavar="SHARDS", type=Path, help="a folder that preprocess.shard wrote")
    parser.add_argument("key", metavar="KEY", nargs="?", help="a clip's key, or the beginning of one")
    parser.add_argument("--model", metavar="FOLDER", type=Path, help="base model: its tokenizer and config are read")
    parser.add_argument("--image", metavar="PNG", type=Path, help="the sample's codes as a picture")
    parser.add_argument(
        "--audio",
        metavar="FILE",
        type=Path,
        help="the clip's 16 kHz waveform as a FLAC file; with --audio-tokenizer and --hubert its codes, decoded to a "
        "WAV file, and those of its reference beside it (FILE_reference.wav): what the model is trained on",
    )
    parser.add_argument("--audio-tokenizer", metavar="FOLDER", type=Path, help="the codec of the corpus, for --audio")
    parser.add_argument("--hubert", metavar="FOLDER", type=Path, help="the HuBERT that the codec is built on")
    parser.add_argument("--lines", metavar="N", type=int, default=50, help="clips in the table (50; 0 for all)")
    arguments = parser.parse_args(argv)
    needs = [name for name in ("model", "image", "audio") if getattr(arguments, name) and not arguments.key]
    if needs or (arguments.key and not (arguments.model or arguments.audio)):
        found = f"--{needs[0]} without KEY" if needs else "KEY without --model"
        raise InputError("command line", found, "a clip, and the model that sees it", f"For example: {EXAMPLE}")
    if arguments.image and not arguments.model:
        raise InputError("command line", "--image without --model", "the model that sees it", f"Example: {EXAMPLE}")
    decodes = {name: getattr(arguments, name) for name in ("audio", "audio_tokenizer", "hubert")}
    if (arguments.audio_tokenizer or arguments.hubert) and None in decodes.values():
        missing = " and ".join(f"--{name.replace('_', '-')}" for name, value in decodes.items() if value is None)
        expected = "all of --audio, --audio-tokenizer and --hubert, to decode codes"
        raise InputError("command line", f"no {missing}", expected, f"Add it to hear the codes:\n{EXAMPLE_AUDIO}")
    suffix = ".wav" if arguments.audio_tokenizer else ".flac"
    if arguments.audio and arguments.audio.suffix.lower() != suffix:
        what = "decoded codes are WAV" if arguments.audio_tokenizer else "a stored waveform is FLAC"
        raise InputError("command line", f"--audio {arguments.audio}", f"a name in {suffix}: {what}", "Rename it.")
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Show; write the files that were asked for."""
    arguments = parse_arguments(argv)
    from preprocess.corpus.shards import Corpus

    corpus = Corpus(arguments.shards)
    if not arguments.key:
        show_corpus(corpus, arguments.lines)
        return 0
    row = find_row(corpus, arguments.key)
    clip = corpus.clip(row, waveform=bool(arguments.audio))
    entry = corpus.index.slice(row, 1).to_pylist()[0]
    about = [f"{entry['duration_sec']:.2f} s of {entry['speaker']}", entry["split"], entry["shard"], use_of(entry)]
    print(f"{clip.key}: {', '.join(about)}")
    for name, value in sorted(clip.meta.items()):
        if value not in (None, []):
            print(f"  {name}: {value}")
    if arguments.model:
        show_sample(corpus, row, arguments.model, arguments.image)
    if arguments.audio:
        save_audio(corpus, row, clip, arguments)
    return 0


if __name__ == "__main__":
    exit_on_input_error(main)
