"""Speech from a model through Boson's own serve engine, and warnings about speech that may be wrong."""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import soundfile
import torch
from boson_multimodal.serve import serve_engine
from boson_multimodal.serve.serve_engine import HiggsAudioResponse, HiggsAudioServeEngine

from engine.base.trainable_base import read_trainable_base
from engine.model.weights import load_base
from preprocess.audio.decode import decode
from preprocess.codec.load import load_codec
from preprocess.codec.precision import EncodeMode
from preprocess.common.errors import InputError, explain_model_errors
from preprocess.common.json_file import JsonObject
from preprocess.common.say import say
from preprocess.corpus.base_model import check_codec_fits, how_to_name_a_base
from preprocess.corpus.codec_facts import CodecFacts
from preprocess.corpus.dialogue import AS_WRITTEN, voice_cloning_dialogue
from preprocess.corpus.text import check_mark_tokens, normalise_text, refuse_special_tokens, special_tokens
from preprocess.judges.pace import length_warning, reference_warnings

# The text tokens that a trained model generates around one audio.
LEARNT_TEXT = "<|audio_out_bos|><|AUDIO_OUT|><|audio_eos|><|eot_id|>"

# The default limit of a generation: the length of very slow speech, and at most one minute.
_SLOWEST_SEC_PER_CHARACTER, _PAUSES_SEC, _LONGEST_SEC = 0.25, 5.0, 60.0


def load_engine(
    model: Path, audio_tokenizer: Path, hubert: Path, device: str = "auto"
) -> tuple[HiggsAudioServeEngine, CodecFacts]:
    """Boson's serve engine, loaded offline from folders of either layout, and the facts of its codec.

    device: auto is cuda if there is one, otherwise cpu. The engine would open the folders itself: it gets the model,
    the text tokenizer and the codec that are checked and loaded here. Raises InputError for a folder that can't be
    used, and for a codec that does not fit the model.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    base = read_trainable_base(model)
    codec, facts = load_codec(audio_tokenizer, hubert, EncodeMode(device))
    check_codec_fits(base, audio_tokenizer, facts.num_codebooks, facts.codebook_size)
    loaded = {
        "HiggsAudioModel": SimpleNamespace(from_pretrained=lambda *_, **__: load_base(model, None).eval()),
        "AutoTokenizer": SimpleNamespace(from_pretrained=lambda *_, **__: base.tokenizer),
        "load_higgs_audio_tokenizer": lambda *_, **__: codec,
    }
    with _replaced(loaded), explain_model_errors(model, how_to_name_a_base("--model")):
        return HiggsAudioServeEngine(str(model), str(audio_tokenizer), device=device), facts


@contextlib.contextmanager
def _replaced(names: dict[str, object]) -> Iterator[None]:
    """Inside, these names of Boson's serve_engine module are other objects."""
    before = {name: getattr(serve_engine, name) for name in names}
    try:
        for name, value in names.items():
            setattr(serve_engine, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(serve_engine, name, value)


def clone_voice(
    engine: HiggsAudioServeEngine,
    layout: JsonObject,
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
    """Boson's response: `audio` float32 [samples], codes [codebooks, columns], and the text generated around them.

    layout: system_text, normaliser_version and allow_marks, as in voice_training.json. references: (transcript, audio
    file) pairs. max_new_tokens: limit of text tokens and audio columns together. Raises InputError for a text or
    recording that can't be used, and if no complete audio was generated.
    """
    texts = [normalise_text(line, layout["normaliser_version"]) for line in (text, *(line for line, _ in references))]
    specials, allow_marks = special_tokens(engine.tokenizer), bool(layout.get("allow_marks"))
    for line in texts:
        if not line:
            raise InputError("text ''", "nothing to say", "words", "Correct --text or --reference-text.")
        refuse_special_tokens(f"text {line!r}", "text", line, specials, allow_marks)
    sampling = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "seed": seed}
    if greedy:
        # Boson's repetition-aware window samples at random even at temperature 0.
        sampling = {"temperature": 0.0, "ras_win_len": 0}
    limit = max_new_tokens or default_max_new_tokens(engine, texts[0])
    try:
        with _whole_references([path for _, path in references]) as paths:
            pairs = list(zip(texts[1:], paths, strict=True))
            dialogue = voice_cloning_dialogue(layout["system_text"], pairs, texts[0])
            return engine.generate(dialogue, max_new_tokens=limit, force_audio_gen=False, **sampling)
    except (IndexError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError) or "CUDA" in str(error):
            raise
        if isinstance(error, IndexError):  # Boson takes the first of an empty list of audios
            found = "no audio"
            action = "The model has not learnt to start: train longer, and check its text loss."
        else:  # Boson can't decode fewer columns than the delay pattern has
            found = f"an audio that is cut short after {limit} tokens ({error})"
            action = "The model has not learnt to stop: train longer; or allow more with --max-new-tokens."
        raise InputError(f"generation of {texts[0]!r}", found, LEARNT_TEXT, action) from error


@contextlib.contextmanager
def _whole_references(references: Sequence[Path | str]) -> Iterator[list[str]]:
    """Files that Boson's reader reads to the end, with the samples of `references`, as long as the block lasts.

    Of some files it reads the beginning alone: preprocess.audio.reader says of which.
    """
    with tempfile.TemporaryDirectory() as folder:
        paths = [f"{folder}/{number}.wav" for number in range(len(references))]
        for path, reference in zip(paths, references, strict=True):
            audio = decode(Path(reference))
            soundfile.write(path, audio.waveform, audio.sample_rate_hz, subtype="FLOAT")
        yield paths


def default_max_new_tokens(engine: HiggsAudioServeEngine, text: str) -> int:
    """Audio columns of slow speech for `text`, plus those of the delay pattern and the text tokens around them."""
    longest_sec = min(_PAUSES_SEC + _SLOWEST_SEC_PER_CHARACTER * len(text), _LONGEST_SEC)
    num_codebooks: int = engine.audio_num_codebooks
    return int(longest_sec * engine.audio_tokenizer_tps) + num_codebooks + 4


def choose_layout(
    engine: HiggsAudioServeEngine, layout: JsonObject, system_text: str | None, allow_marks: bool = False
) -> JsonObject:
    """The layout of training, with `system_text` instead of its own if one is given; prints how the prompt differs.

    allow_marks: allow marks for sounds although the model was not trained with any. Raises InputError for a system
    text with special tokens, and for marks that the tokenizer has no tokens for.
    """
    if allow_marks:
        check_mark_tokens("a model", special_tokens(engine.tokenizer))
    if allow_marks and not layout.get("allow_marks"):
        say("warning: marks for sounds are allowed, and no corpus with any is known to be behind this model")
        layout = {**layout, "allow_marks": True}
    if layout.get("name") == AS_WRITTEN:
        say("warning: the model was trained on conversations as written in the corpus; this prompt is canonical")
    if system_text is None:
        if layout.get("keep_system"):
            say(f"rows of the corpus had system texts of their own; this prompt has {layout['system_text']!r}")
        return layout
    refuse_special_tokens("--system-text", "system text", system_text, special_tokens(engine.tokenizer))
    if system_text != layout["system_text"] and not layout.get("keep_system"):
        say(f"warning: the model was trained with the system text {layout['system_text']!r} alone")
    return {**layout, "system_text": system_text}


def codec_warnings(facts: JsonObject, codec: CodecFacts) -> list[str]:
    """A warning if `facts`, from voice_training.json, say that the model was trained on codes of another codec."""
    fingerprint = facts.get("codec_fingerprint")
    if fingerprint in (None, codec.fingerprint):
        return []
    return [f"the model was trained on codes of another codec (fingerprint {fingerprint[:12]}): speech may be noise"]


def speech_warnings(facts: JsonObject, reference: Path, text: str, speech_sec: float) -> list[str]:
    """Warnings if the reference or the pace of the speech is unlike the corpus that `facts` describe."""
    speech = facts.get("speech", {})
    of_length = length_warning(speech, text, speech_sec)
    return [*reference_warnings(speech, decode(reference)), *([of_length] if of_length else [])]
