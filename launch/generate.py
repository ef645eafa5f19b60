"""Generate: speak a text in the voice of a reference recording, through Boson's own serve engine.

    python -m launch.generate --model merged/ --audio-tokenizer CODEC --hubert HUBERT \\
        --reference voice.wav --reference-text "..." --text "..." --out out.wav

The prompt is the one of training. The model itself must start and stop the audio: nothing forces it.
"""

import argparse
from pathlib import Path

from launch.arguments import require_flags
from preprocess.common.errors import exit_on_input_error
from preprocess.common.say import say

EXAMPLE = (
    "python -m launch.generate --model merged/ --audio-tokenizer models/codec --hubert models/hubert "
    '--reference voice.wav --reference-text "what voice.wav says" --text "what to say" --out out.wav'
)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line. Raises InputError that names all missing flags."""
    parser = argparse.ArgumentParser(
        prog="python -m launch.generate",
        description="Speak a text in the voice of a reference recording, through Boson's serve engine.",
        epilog=f"example: {EXAMPLE}",
        allow_abbrev=False,
    )
    needed = parser.add_argument_group("needed")
    needed.add_argument(
        "--model", metavar="FOLDER", type=Path, help="a model that launch.merge wrote, or the base model"
    )
    needed.add_argument("--audio-tokenizer", metavar="FOLDER", type=Path, help="the codec, in either layout")
    needed.add_argument("--hubert", metavar="FOLDER", type=Path, help="the HuBERT model that the codec needs")
    needed.add_argument("--reference", metavar="FILE", type=Path, help="a recording of the voice, 3 to 30 seconds")
    needed.add_argument("--reference-text", metavar="TEXT", help="what the recording says")
    needed.add_argument("--text", metavar="TEXT", help="what to say")
    parser.add_argument(
        "--system-text",
        metavar="TEXT",
        help="system message of the prompt (default: that of the corpus; another one if rows of it had their own)",
    )
    parser.add_argument(
        "--allow-marks",
        action="store_true",
        help="texts may have Boson's marks for sounds, such as <SE>[Laughter]</SE>, although the model was not "
        "trained with any (default: where its corpus was made with --allow-marks)",
    )
    needed.add_argument("--out", metavar="WAV", type=Path, help="the WAV file to write")
    parser.add_argument(
        "--max-new-tokens",
        metavar="N",
        type=int,
        help="limit of text tokens and audio columns together (default: from the text's length)",
    )
    parser.add_argument("--temperature", metavar="N", type=float, default=0.3, help="of sampling (default: 0.3)")
    parser.add_argument("--top-p", metavar="N", type=float, default=0.95, help="of sampling (default: 0.95)")
    parser.add_argument("--top-k", metavar="N", type=int, default=50, help="of sampling (default: 50)")
    parser.add_argument("--seed", metavar="N", type=int, help="of sampling: the same seed gives the same speech")
    parser.add_argument("--greedy", action="store_true", help="take the likeliest token each time, no sampling")
    parser.add_argument(
        "--device", metavar="NAME", default="auto", help="auto, cpu or cuda (default: auto, cuda if there is one)"
    )
    arguments = parser.parse_args(argv)
    required = ("model", "audio_tokenizer", "hubert", "reference", "reference_text", "text", "out")
    require_flags(arguments, required, EXAMPLE)
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Generate once, and print what was generated and what about it may be wrong."""
    arguments = parse_arguments(argv)
    from engine.speak.decoded import write_wav
    from engine.speak.generate import (
        LEARNT_TEXT,
        choose_layout,
        clone_voice,
        codec_warnings,
        load_engine,
        speech_warnings,
    )
    from engine.speak.model_card import describe_training
    from engine.speak.voice_training import read_facts

    facts = read_facts(arguments.model)
    engine, codec = load_engine(arguments.model, arguments.audio_tokenizer, arguments.hubert, arguments.device)
    layout = choose_layout(engine, facts["layout"], arguments.system_text, arguments.allow_marks)
    if "training" in facts:
        say(", ".join(f"{what} {words}" for what, words in describe_training(facts["training"]).items()))
    _print_warnings(codec_warnings(facts, codec))
    references = [(arguments.reference_text, arguments.reference)]
    names = ("max_new_tokens", "temperature", "top_p", "top_k", "seed", "greedy")
    settings = {name: getattr(arguments, name) for name in names}
    response = clone_voice(engine, layout, references, arguments.text, **settings)
    speech_sec = len(response.audio) / response.sampling_rate
    _print_warnings(speech_warnings(facts, arguments.reference, arguments.text, speech_sec))
    write_wav(arguments.out, response.audio, response.sampling_rate)
    say(f"{arguments.out}: {speech_sec:.2f} s of speech")
    if response.generated_text == LEARNT_TEXT:
        say("the model started and stopped by itself, as it learnt")
    else:
        say(f"warning: the model generated {response.generated_text!r} around the audio, not {LEARNT_TEXT!r}")
    return 0


def _print_warnings(warnings: list[str]) -> None:
    for warning in warnings:
        say(f"warning: {warning}")


if __name__ == "__main__":
    exit_on_input_error(main)
