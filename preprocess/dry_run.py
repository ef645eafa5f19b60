"""--dry-run: print what the command would do before it takes hours. Nothing is written."""

import time
from collections.abc import Sequence

from boson_multimodal.dataset.chatml_dataset import prepare_chatml_sample
from transformers import PreTrainedTokenizerFast

from preprocess.audio.decode import Header, flac_16khz
from preprocess.codec.load import encode_waveform, load_codec
from preprocess.codec.precision import EncodeMode
from preprocess.common.errors import Rejected
from preprocess.common.json_file import JsonObject
from preprocess.common.say import say, say_lines
from preprocess.corpus.base_model import BaseModel, check_codec_fits
from preprocess.corpus.dialogue import IGNORE_INDEX, dialogue_of, read_dialogue
from preprocess.corpus.shards import Clip
from preprocess.plan.clips import ClipPlan, ClipTable, Use
from preprocess.plan.forecast import disk_line
from preprocess.plan.screening import length_verdict
from preprocess.plan.settings import Settings

_MEASURED_CLIPS = 3
_TAR_BLOCK_BYTES = 512


def show_plan(
    settings: Settings, base: BaseModel, table: ClipTable, headers: dict[str, Header], num_workers: int
) -> None:
    """Print one row as it will be trained; hours, speakers and number of clips; and an estimate of size and time."""
    clips = [table.clips[key] for key in headers]
    fits = [clip for clip in clips if length_verdict(settings.screening, headers[clip.key].duration_sec) == "fits"]
    total_sec = sum(headers[clip.key].duration_sec for clip in fits)
    _show_example(settings, base, table, headers)
    speakers = len({clip.speaker for clip in fits})
    say(f"to encode: {len(fits)} clips, {total_sec / 3600:.3f} h, {speakers} speakers (by the files' headers)")
    if not fits:
        return
    by_length = sorted(fits, key=lambda clip: (headers[clip.key].duration_sec, clip.key))
    last = len(by_length) - 1
    places = sorted({last * number // (_MEASURED_CLIPS + 1) for number in range(1, _MEASURED_CLIPS + 1)})
    _show_cost(settings, base, [by_length[place] for place in places], total_sec, num_workers)


def _show_example(settings: Settings, base: BaseModel, table: ClipTable, headers: dict[str, Header]) -> None:
    use = next((use for use in table.uses if use.key in headers), None)
    if use is None:
        return
    stored, origin = _trained_dialogue(table, use, headers)
    dialogue = read_dialogue(stored, use.key, settings.system_text)
    input_ids, label_ids, audios, _ = prepare_chatml_sample(dialogue, base.tokenizer)
    say(f"one row as it will be trained, {origin}; [[ ]] marks what the loss counts")
    say()
    say_lines(marked_text(base.tokenizer, input_ids, label_ids))
    say()
    say(f"audio: {', '.join(table.clips[audio.audio_url].source for audio in audios)}")


def _trained_dialogue(table: ClipTable, use: Use, headers: dict[str, Header]) -> tuple[JsonObject, str]:
    """(dialogue as stored, where its reference comes from) of a row; a drawn reference is the first possible one."""
    clip = table.clips[use.key]
    same_voice = [other for key, other in table.clips.items() if key in headers and other.speaker == clip.speaker]
    others = [other for other in same_voice if clip.key not in (other.key, other.derived_from)]
    origin = f"with one of {len(others)} references" if others else "without reference: the only clip of its voice"
    references = [(other.key, other.prompt_meta()) for other in others[:1]]
    dialogue = dialogue_of(clip.prompt_meta(), references, use.position)
    return dialogue, origin if use.position is None else "with its own reference"


def marked_text(tokenizer: PreTrainedTokenizerFast, input_ids: Sequence[int], label_ids: Sequence[int]) -> str:
    """Token ids as text, with [[ ]] around what is trained: where `label_ids` is not -100."""
    parts: list[tuple[bool, list[int]]] = []
    for token, label in zip(input_ids, label_ids, strict=True):
        trained = label != IGNORE_INDEX
        if not parts or parts[-1][0] != trained:
            parts.append((trained, []))
        parts[-1][1].append(token)
    texts = [(trained, tokenizer.decode(ids)) for trained, ids in parts]
    return "".join(f"[[{text}]]" if trained else text for trained, text in texts)


def _show_cost(
    settings: Settings, base: BaseModel, clips: list[ClipPlan], total_sec: float, num_workers: int
) -> None:
    """Print size and time, estimated from a few clips: decoded, and encoded where the codec is named."""
    codec = None
    if settings.audio_tokenizer and settings.hubert:
        mode = EncodeMode(settings.device, settings.precision)
        tokenizer, codec = load_codec(settings.audio_tokenizer, settings.hubert, mode)
        check_codec_fits(base, settings.audio_tokenizer, codec.num_codebooks, codec.codebook_size)
    num_bytes, measured_sec, encode_sec, num_measured = 0, 0.0, 0.0, 0
    for clip in clips:
        try:
            audio = clip.recording.decode()
        except Rejected:
            continue
        flac = flac_16khz(audio) if settings.waveforms == "flac" else b""
        sizes = [len(flac)]
        if codec:
            if not num_measured:
                encode_waveform(tokenizer, audio.waveform, audio.sample_rate_hz)  # untimed: the first is slower
            start = time.perf_counter()
            codes = encode_waveform(tokenizer, audio.waveform, audio.sample_rate_hz)
            encode_sec += time.perf_counter() - start
            sizes = [len(data) for _, data in Clip(clip.key, {"text": clip.text}, codes, flac).members()]
        num_bytes += sum(_TAR_BLOCK_BYTES * (2 + (size - 1) // _TAR_BLOCK_BYTES) for size in sizes if size)
        measured_sec += audio.duration_sec
        num_measured += 1
    if not measured_sec:
        say("size and time: unknown, since none of the clips tried can be decoded")
        return
    size = f"{num_bytes / measured_sec * total_sec / 1e6:.1f} MB"
    if not codec:
        say(f"size: {size} of waveforms, and codes; time: unknown (name --audio-tokenizer and --hubert)")
        return
    if settings.out:
        say(disk_line(settings.out, num_bytes / measured_sec * total_sec))
    hours = encode_sec / measured_sec * total_sec / num_workers / 3600
    at_most = "at most (what --reuse finds is not encoded) " if settings.reuse else ""
    say(
        f"size: {size}; time: {at_most}{hours:.3f} h with {num_workers} workers of "
        f"{measured_sec / encode_sec:.1f}x real time (from {num_measured} clips, {measured_sec:.1f} s of audio)"
    )
