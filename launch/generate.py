"""Generate: speak a text in the voice of a reference recording, by Boson's own serve engine.

    python -m launch.generate --model merged/ --audio-tokenizer CODEC --hubert HUBERT \\
        --reference voice.wav --reference-text "..." --text "..." --out out.wav

The prompt is the one of training; the model itself must start and stop the audio, nothing forces it.
"""

import argparse
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from preprocess.errors import InputError, exit_on_input_error

if TYPE_CHECKING:
    from boson_multimodal.serve.serve_engine import HiggsAudioResponse, HiggsAudioServeEngine

EXAMPLE = (
    "python -m launch.generate --model merged/ --audio-tokenizer higgs-audio-v2-tokenizer --hubert hubert_base "
    '--reference voice.wav --reference-text "what voice.wav says" --text "what to say" --out out.wav'
)
# What a trained model generates as text round one audio.
LEARNT_TEXT = "<|audio_out_bos|><|AUDIO_OUT|><|audio_eos|><|eot_id|>"
# The default limit of a generation: slow speech, and no longer than an utterance.
_SLOWEST_SEC_PER_CHARACTER, _PAUSES_SEC, _LONGEST_SEC = 0.25, 5.0, 60.0


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; all missing flags are named at once."""
    parser = argparse.ArgumentParser(
        prog="python -m launch.generate",
        description="Speak a text in the voice of a reference recording, by Boson's serve engine.",
        epilog=f"example: {EXAMPLE}",
    )
    parser.add_argument("--model", metavar="FOLDER", type=Path, help="a model of launch.merge, or the base model")
    parser.add_argument("--audio-tokenizer", metavar="FOLDER", type=Path, help="codec: config.json and model.pth")
    parser.add_argument("--hubert", metavar="FOLDER", type=Path, help="the HuBERT model that the codec needs")
    parser.add_argument("--reference", metavar="FILE", type=Path, help="a recording of the voice, 3 to 30 seconds")
    parser.add_argument("--reference-text", metavar="TEXT", help="what the recording says")
    parser.add_argument("--text", metavar="TEXT", help="what to say")
    parser.add_argument(
        "--system-text",
        metavar="TEXT",
        help="what the prompt opens with (default: that of the corpus; another where rows kept their own)",
    )
    parser.add_argument("--out", metavar="WAV", type=Path, help="the WAV file to write")
    parser.add_argument("--max-new-tokens", metavar="N", type=int, help="limit (default: from the text's length)")
    parser.add_argument("--temperature", type=float, default=0.3, help="of sampling (default: 0.3)")
    parser.add_argument("--top-p", type=float, default=0.95, help="of sampling (default: 0.95)")
    parser.add_argument("--top-k", type=int, default=50, help="of sampling (default: 50)")
    parser.add_argument("--seed", type=int, help="of sampling: the same one gives the same speech")
    parser.add_argument("--greedy", action="store_true", help="take the likeliest token each time, no sampling")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto, cuda where there is one)")
    arguments = parser.parse_args(argv)
    required = ("model", "audio_tokenizer", "hubert", "reference", "reference_text", "text", "out")
    missing = [f"--{name.replace('_', '-')}" for name in required if getattr(arguments, name) is None]
    if missing:
        raise InputError("command line", f"no {', '.join(missing)}", "all of them", f"For example: {EXAMPLE}")
    return arguments


def load_engine(model: Path, audio_tokenizer: Path, hubert: Path, device: str = "auto") -> "HiggsAudioServeEngine":
    """Boson's serve engine, offline. Raises InputError for a folder that can't be used, or another model's codec."""
    import torch
    from boson_multimodal.serve.serve_engine import HiggsAudioServeEngine

    from engine.model import load_config
    from preprocess.codec import hubert_from, load_codec

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    config = load_config(model)
    _, codec = load_codec(audio_tokenizer, hubert)  # its checks: Boson's loader would leave random weights in silence
    if (codec.num_codebooks, codec.codebook_size) != (config.audio_num_codebooks, config.audio_codebook_size):
        raise InputError(
            str(audio_tokenizer),
            f"a codec of {codec.num_codebooks} codebooks x {codec.codebook_size}",
            f"{config.audio_num_codebooks} x {config.audio_codebook_size}, as {model} has them",
            "Name the codec that the corpus was encoded with.",
        )
    with hubert_from(hubert):
        return HiggsAudioServeEngine(str(model), str(audio_tokenizer), device=device)


def clone(
    engine: "HiggsAudioServeEngine",
    layout: dict,
    references: Sequence[tuple[str, Path | str]],
    text: str,
    *,
    max_new_tokens: int | None = None,
    temperature: float = 0.3,
    top_p: float = 0.95,
    top_k: int | None = 50,
    seed: int | None = None,
    greedy: bool = False,
) -> "HiggsAudioResponse":
    """Boson's response: `audio` float32 [samples], codes [codebooks, columns], the text generated round it.

    layout: system_text and normaliser_version, as voice_training.json has them. references: (transcript, audio
    file) pairs. max_new_tokens counts text tokens and columns. Raises InputError for a text or recording that
    can't be used, and where no whole audio came out.
    """
    import torch

    from preprocess.audio import decode
    from preprocess.layout import normalise_text, voice_cloning_dialogue

    texts = [normalise_text(line, layout["normaliser_version"]) for line in (text, *(line for line, _ in references))]
    for line in texts:
        _refuse_text(engine, line)
    for _, path in references:
        decode(Path(path))
    pairs = [(line, str(path)) for line, (_, path) in zip(texts[1:], references, strict=True)]
    dialogue = voice_cloning_dialogue(layout["system_text"], pairs, texts[0])
    sampling = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "seed": seed}
    if greedy:
        # Boson's repetition-aware window samples at random even where nothing else does.
        sampling = {"temperature": 0.0, "ras_win_len": 0}
    limit = max_new_tokens or default_max_new_tokens(engine, texts[0])
    try:
        return engine.generate(dialogue, max_new_tokens=limit, force_audio_gen=False, **sampling)
    except (IndexError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError) or "CUDA" in str(error):
            raise
        # No audio at all is an empty list in Boson's engine; one of fewer columns than the delay pattern has
        # breaks its decoding.
        silent = isinstance(error, IndexError)
        raise InputError(
            f"generation of {texts[0]!r}",
            "no audio" if silent else f"an audio that is cut short after {limit} tokens ({error})",
            LEARNT_TEXT,
            "The model has not learnt to start: train longer, and look at its text loss."
            if silent
            else "The model has not learnt to stop: train longer; or allow more with --max-new-tokens.",
        ) from error


def default_max_new_tokens(engine: "HiggsAudioServeEngine", text: str) -> int:
    """Columns of slow speech for `text`, with delay pattern and the tokens round it."""
    longest_sec = min(_PAUSES_SEC + _SLOWEST_SEC_PER_CHARACTER * len(text), _LONGEST_SEC)
    return int(longest_sec * engine.audio_tokenizer_tps) + engine.audio_num_codebooks + 4


def _refuse_text(engine: "HiggsAudioServeEngine", text: str) -> None:
    from preprocess.layout import special_tokens

    special = next((token for token in special_tokens(engine.tokenizer) if token in text), None)
    if special or not text:
        raise InputError(
            f"text {text!r}",
            f"the special token {special}" if special else "nothing to say",
            "plain text",
            "Correct --text or --reference-text.",
        )


def choose_layout(engine: "HiggsAudioServeEngine", layout: dict, system_text: str | None) -> dict:
    """The layout of training, with `system_text` in it where that is given. Raises InputError for special tokens."""
    from preprocess.layout import AS_WRITTEN, foreign_token, special_tokens

    if layout.get("name") == AS_WRITTEN:
        print("warning: the model was trained on conversations as their rows have them, and this prompt is canonical")
    if system_text is None:
        if layout.get("keep_system"):
            print(f"rows of the corpus had system texts of their own; this prompt has {layout['system_text']!r}")
        return layout
    special = foreign_token(system_text, special_tokens(engine.tokenizer))
    if special:
        raise InputError("--system-text", f"the special token {special}", "words alone", "Remove it from the text.")
    if system_text != layout["system_text"] and not layout.get("keep_system"):
        print(f"warning: the model was trained with the system text {layout['system_text']!r} alone")
    return {**layout, "system_text": system_text}


def main(argv: list[str] | None = None) -> int:
    """Speak once and say what came out."""
    arguments = parse_arguments(argv)
    import soundfile

    from engine.merged import read_facts
    from preprocess.audio import decode
    from preprocess.codec import load_codec
    from preprocess.shards import write_atomically
    from preprocess.speech_facts import length_warning, reference_warnings

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
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(arguments.out, data.getvalue())
    print(f"{arguments.out}: {speech_sec:.2f} s of speech")
    if response.generated_text == LEARNT_TEXT:
        print("the model started and stopped by itself, as it learnt")
    else:
        print(f"warning: the model said {response.generated_text!r} round the audio, not {LEARNT_TEXT!r}")
    return 0


if __name__ == "__main__":
    exit_on_input_error(main)
