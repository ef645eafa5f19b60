"""Generate: speak a text in the voice of a reference recording, by Boson's own serve engine.

    python -m launch.generate --model merged/ --audio-tokenizer CODEC --hubert HUBERT \\
        --reference voice.wav --reference-text "..." --text "..." --out out.wav

The prompt is the one of training; the model itself must start and stop the audio, nothing forces it.
"""

import argparse
import io
from pathlib import Path

from preprocess.common.errors import InputError, exit_on_input_error

EXAMPLE = (
    "python -m launch.generate --model merged/ --audio-tokenizer models/codec --hubert models/hubert "
    '--reference voice.wav --reference-text "what voice.wav says" --text "what to say" --out out.wav'
)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; all missing flags are named at once."""
    parser = argparse.ArgumentParser(
        prog="python -m launch.generate",
        description="Speak a text in the voice of a reference recording, by Boson's serve engine.",
        epilog=f"example: {EXAMPLE}",
        allow_abbrev=False,
    )
    needed = parser.add_argument_group("needed")
    needed.add_argument("--model", metavar="FOLDER", type=Path, help="a model of launch.merge, or the base model")
    needed.add_argument("--audio-tokenizer", metavar="FOLDER", type=Path, help="codec: config.json and model.pth")
    needed.add_argument("--hubert", metavar="FOLDER", type=Path, help="the HuBERT model that the codec needs")
    needed.add_argument("--reference", metavar="FILE", type=Path, help="a recording of the voice, 3 to 30 seconds")
    needed.add_argument("--reference-text", metavar="TEXT", help="what the recording says")
    needed.add_argument("--text", metavar="TEXT", help="what to say")
    parser.add_argument(
        "--system-text",
        metavar="TEXT",
        help="what the prompt opens with (default: that of the corpus; another where rows kept their own)",
    )
    needed.add_argument("--out", metavar="WAV", type=Path, help="the WAV file to write")
    parser.add_argument("--max-new-tokens", metavar="N", type=int, help="limit (default: from the text's length)")
    parser.add_argument("--temperature", metavar="N", type=float, default=0.3, help="of sampling (default: 0.3)")
    parser.add_argument("--top-p", metavar="N", type=float, default=0.95, help="of sampling (default: 0.95)")
    parser.add_argument("--top-k", metavar="N", type=int, default=50, help="of sampling (default: 50)")
    parser.add_argument("--seed", metavar="N", type=int, help="of sampling: the same one gives the same speech")
    parser.add_argument("--greedy", action="store_true", help="take the likeliest token each time, no sampling")
    parser.add_argument(
        "--device", metavar="NAME", default="auto", help="auto, cpu or cuda (default: auto, cuda where there is one)"
    )
    arguments = parser.parse_args(argv)
    required = ("model", "audio_tokenizer", "hubert", "reference", "reference_text", "text", "out")
    missing = [f"--{name.replace('_', '-')}" for name in required if getattr(arguments, name) is None]
    if missing:
        raise InputError("command line", f"no {', '.join(missing)}", "all of them", f"For example: {EXAMPLE}")
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Speak once and say what came out."""
    arguments = parse_arguments(argv)
    import soundfile

    from engine.speak.generate import LEARNT_TEXT, choose_layout, clone, load_engine
    from engine.speak.voice_training import read_facts
    from preprocess.audio.decode import decode
    from preprocess.codec.load import load_codec
    from preprocess.common.files import write_output
    from preprocess.judges.pace import length_warning, reference_warnings

    facts = read_facts(arguments.model)
    engine = load_engine(arguments.model, arguments.audio_tokenizer, arguments.hubert, arguments.device)
    layout = choose_layout(engine, facts["layout"], arguments.system_text)
    trained_with = facts.get("codec_fingerprint")
    if trained_with not in (None, load_codec(arguments.audio_tokenizer, arguments.hubert)[1].fingerprint):
        print(f"warning: trained on codes of another codec (fingerprint {trained_with[:12]}): speech may be noise")
    response = clone(
        engine,
        layout,
        [(arguments.reference_text, arguments.reference)],
        arguments.text,
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        top_k=arguments.top_k,
        seed=arguments.seed,
        greedy=arguments.greedy,
    )
    speech, speech_sec = facts.get("speech", {}), len(response.audio) / response.sampling_rate
    warnings = reference_warnings(speech, decode(arguments.reference))
    for warning in [*warnings, length_warning(speech, arguments.text, speech_sec)]:
        if warning:
            print(f"warning: {warning}")
    data = io.BytesIO()
    soundfile.write(data, response.audio, response.sampling_rate, format="WAV")
    write_output(arguments.out, data.getvalue())
    print(f"{arguments.out}: {speech_sec:.2f} s of speech")
    if response.generated_text == LEARNT_TEXT:
        print("the model started and stopped by itself, as it learnt")
    else:
        print(f"warning: the model said {response.generated_text!r} round the audio, not {LEARNT_TEXT!r}")
    return 0


if __name__ == "__main__":
    exit_on_input_error(main)
