"""Speech from a model, by Boson's own serve engine."""

from collections.abc import Sequence
from pathlib import Path

import torch
from boson_multimodal.serve.serve_engine import HiggsAudioResponse, HiggsAudioServeEngine

from engine.base.trainable_base import read_trainable_base
from engine.model.weights import explain_load_errors
from preprocess.audio.decode import decode
from preprocess.codec.load import hubert_from, load_codec
from preprocess.common.errors import InputError
from preprocess.corpus.base_model import check_codec_fits
from preprocess.corpus.dialogue import AS_WRITTEN, voice_cloning_dialogue
from preprocess.corpus.text import normalise_text, refuse_special_tokens, special_tokens

# What a trained model generates as text round one audio.
LEARNT_TEXT = "<|audio_out_bos|><|AUDIO_OUT|><|audio_eos|><|eot_id|>"

# The default limit of a generation: slow speech, and no longer than an utterance.
_SLOWEST_SEC_PER_CHARACTER, _PAUSES_SEC, _LONGEST_SEC = 0.25, 5.0, 60.0


def load_engine(model: Path, audio_tokenizer: Path, hubert: Path, device: str = "auto") -> HiggsAudioServeEngine:
    """Boson's serve engine, offline. Raises InputError for a folder that can't be used, or another model's codec."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    base = read_trainable_base(model)
    _, codec = load_codec(audio_tokenizer, hubert)  # its checks: Boson's loader would leave random weights in silence
    check_codec_fits(base, audio_tokenizer, codec.num_codebooks, codec.codebook_size)
    with hubert_from(hubert), explain_load_errors(model):
        return HiggsAudioServeEngine(str(model), str(audio_tokenizer), device=device)


def clone(
    engine: HiggsAudioServeEngine,
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
) -> HiggsAudioResponse:
    """Boson's response: `audio` float32 [samples], codes [codebooks, columns], the text generated round it.

    layout: system_text and normaliser_version, as voice_training.json has them. references: (transcript, audio
    file) pairs. max_new_tokens counts text tokens and columns. Raises InputError for a text or recording that
    can't be used, and where no whole audio came out.
    """
    texts = [normalise_text(line, layout["normaliser_version"]) for line in (text, *(line for line, _ in references))]
    for line in texts:
        if not line:
            raise InputError("text ''", "nothing to say", "words", "Correct --text or --reference-text.")
        refuse_special_tokens(f"text {line!r}", "text", line, special_tokens(engine.tokenizer))
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


def default_max_new_tokens(engine: HiggsAudioServeEngine, text: str) -> int:
    """Columns of slow speech for `text`, with delay pattern and the tokens round it."""
    longest_sec = min(_PAUSES_SEC + _SLOWEST_SEC_PER_CHARACTER * len(text), _LONGEST_SEC)
    return int(longest_sec * engine.audio_tokenizer_tps) + engine.audio_num_codebooks + 4


def choose_layout(engine: HiggsAudioServeEngine, layout: dict, system_text: str | None) -> dict:
    """The layout of training, with `system_text` in it where that is given. Raises InputError for special tokens."""
    if layout.get("name") == AS_WRITTEN:
        print("warning: the model was trained on conversations as their rows have them, and this prompt is canonical")
    if system_text is None:
        if layout.get("keep_system"):
            print(f"rows of the corpus had system texts of their own; this prompt has {layout['system_text']!r}")
        return layout
    refuse_special_tokens("--system-text", "system text", system_text, special_tokens(engine.tokenizer))
    if system_text != layout["system_text"] and not layout.get("keep_system"):
        print(f"warning: the model was trained with the system text {layout['system_text']!r} alone")
    return {**layout, "system_text": system_text}
