"""--dry-run: what the command would do, told before it takes hours. Nothing is written."""

import time
from collections.abc import Mapping, Sequence

from boson_multimodal.dataset.chatml_dataset import prepare_chatml_sample
from transformers import PreTrainedTokenizerFast

from preprocess.audio.decode import Header, flac_16khz
from preprocess.codec.load import encode, load_codec
from preprocess.codec.precision import EncodeMode
from preprocess.common.errors import Rejected
from preprocess.corpus.base_model import BaseModel, check_codec_fits
from preprocess.corpus.dialogue import IGNORE_INDEX, dialogue_of, read_dialogue
from preprocess.encode.make_shard import Clip
from preprocess.plan.clips import ClipPlan, ClipTable, Use
from preprocess.plan.screening import screen
from preprocess.plan.settings import Settings

_MEASURED_CLIPS = 3
_TAR_BLOCK_BYTES = 512


def show_plan(
    settings: Settings, base: BaseModel, table: ClipTable, headers: dict[str, Header], num_workers: int
) -> None:
    """Print one row as it will be trained, and hours, speakers, clips, size and time."""
    clips = [table.clips[key] for key in headers]
    fits = [clip for clip in clips if _fits(settings, headers[clip.key])]
    total_sec = sum(headers[clip.key].duration_sec for clip in fits)
    _show_example(settings, base, table, headers)
    speakers = len({clip.speaker for clip in fits})
    print(f"to encode: {len(fits)} clips, {total_sec / 3600:.3f} h, {speakers} speakers (by their headers)")
    if not fits:
        return
    by_length = sorted(fits, key=lambda clip: (headers[clip.key].duration_sec, clip.key))
    last = len(by_length) - 1
    places = sorted({last * number // (_MEASURED_CLIPS + 1) for number in range(1, _MEASURED_CLIPS + 1)})
    _show_cost(settings, base, [by_length[place] for place in places], total_sec, num_workers)


def _fits(settings: Settings, header: Header) -> bool:
    try:
        screen(settings.screening, {"duration_sec": header.duration_sec}, "")
    except Rejected:
        return False
    return True


def _show_example(settings: Settings, base: BaseModel, table: ClipTable, headers: dict[str, Header]) -> None:
    use = next((use for use in table.uses if use.key in headers), None)
    if use is None:
        return
    clip = table.clips[use.key]
    stored, how = _as_trained(table, use, clip, headers)
    dialogue = read_dialogue(stored, clip.key, settings.system_text)
    input_ids, label_ids, audios, _ = prepare_chatml_sample(dialogue, base.tokenizer)
    print(f"one row as it will be, {how}; trained: what stands in [[ ]]\n")
    print(marked_text(base.tokenizer, input_ids, label_ids))
    print(f"\naudio: {', '.join(table.clips[audio.audio_url].source for audio in audios)}")


def _as_trained(table: ClipTable, use: Use, clip: ClipPlan, headers: dict[str, Header]) -> tuple[Mapping, str]:
    """(dialogue as stored, where its references come from) of a row; of those that are drawn, the first possible."""
    same_voice = [other for key, other in table.clips.items() if key in headers and other.speaker == clip.speaker]
    others = [other for other in same_voice if clip.key not in (other.key, other.derived_from)]
    how = f"its reference one of {len(others)}" if others else "without reference: the only clip of its voice"
    references = [(other.key, other.prompt_meta()) for other in others[:1]]
    return dialogue_of(clip.prompt_meta(), references, use.position), how if use.position is None else "named"


def marked_text(tokenizer: PreTrainedTokenizerFast, input_ids: Sequence[int], label_ids: Sequence[int]) -> str:
    """Token ids as text, what is trained in [[ ]]. `label_ids` is -100 where nothing is."""
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
    """Size and time, from a few clips: decoded, and encoded where the codec is named."""
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
                encode(tokenizer, audio.waveform, audio.sample_rate_hz)  # the first run sets things up
            start = time.perf_counter()
            codes = encode(tokenizer, audio.waveform, audio.sample_rate_hz)
            encode_sec += time.perf_counter() - start
            sizes = [len(data) for _, data in Clip(clip.key, {"text": clip.text}, codes, flac).members()]
        num_bytes += sum(_TAR_BLOCK_BYTES * (2 + (size - 1) // _TAR_BLOCK_BYTES) for size in sizes if size)
        measured_sec += audio.duration_sec
        num_measured += 1
    if not measured_sec:
        print("size and time: unknown, the clips tried can't be decoded")
        return
    size = f"{num_bytes / measured_sec * total_sec / 1e6:.1f} MB"
    if not codec:
        print(f"size: {size} of waveforms, and codes; time: unknown (name --audio-tokenizer and --hubert)")
        return
    hours = encode_sec / measured_sec * total_sec / num_workers / 3600
    at_most = "at most (what --reuse finds is not encoded) " if settings.reuse else ""
    print(
        f"size: {size}; time: {at_most}{hours:.3f} h with {num_workers} workers of "
        f"{measured_sec / encode_sec:.1f}x real time (from {num_measured} clips, {measured_sec:.1f} s of audio)"
    )
