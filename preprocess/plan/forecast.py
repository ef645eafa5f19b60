"""What can be known before the encode of what comes after it: validation, text, lengths and steps, disk space."""

import math
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from preprocess.audio.decode import WAVEFORM_SAMPLE_RATE_HZ, Header
from preprocess.common.errors import explain_write_errors
from preprocess.common.json_file import read_json_object
from preprocess.corpus.base_model import BaseModel
from preprocess.corpus.dialogue import AS_WRITTEN, audios_of, read_dialogue
from preprocess.corpus.text import normalise_text, num_digits
from preprocess.plan.clips import ClipPlan, ClipTable
from preprocess.plan.recipe_choice import LARGE_CORPUS, SMALL_CORPUS, read_batch
from preprocess.plan.sample_lengths import ClipLength, audio_columns, measure_samples
from preprocess.plan.screening import length_verdict
from preprocess.plan.settings import Settings

FEWEST_VOICES = 2  # in the validation split, for a conditioning gain
_MANY_TOKENS_PER_CHARACTER = 1.0
# Of a clip's members in a tar, besides codes and samples: three headers, padding, the json member.
_BYTES_PER_CLIP = 6_000
_SAMPLE_BYTES, _CODE_BYTES = 2, 2  # FLAC of noise is as large as its samples of 16 bits


def forecast(
    settings: Settings, base: BaseModel, table: ClipTable, headers: dict[str, Header], validation: set[str]
) -> Iterator[str]:
    """Lines to print. headers: of the clips that can be opened. validation: keys of those that will be held out."""
    fits = {key: h for key, h in headers.items() if length_verdict(settings.screening, h.duration_sec) == "fits"}
    clips = [table.clips[key] for key in sorted(fits)]
    if not clips:
        return
    yield from validation_lines(settings, [clip for clip in clips if clip.key in validation])
    texts = {clip.key: normalise_text(clip.text) for clip in clips if clip.text}
    tokens = {key: base.num_tokens(text) for key, text in texts.items()}
    yield from text_lines(texts, tokens)
    frame_rate_hz = read_frame_rate(settings.audio_tokenizer) if settings.audio_tokenizer else None
    if frame_rate_hz is None:
        yield "lengths, steps and disk space: unknown without the codec's frame rate (name --audio-tokenizer)"
        return
    training = [clip for clip in clips if clip.key not in validation]
    frames = {key: header.duration_sec * frame_rate_hz for key, header in fits.items()}
    yield from length_lines(settings, base, training, frames, tokens)
    if settings.out:
        seconds = sum(header.duration_sec for header in fits.values())
        codes = sum(frames.values()) * base.config.audio_num_codebooks * _CODE_BYTES
        waveforms = seconds * WAVEFORM_SAMPLE_RATE_HZ * _SAMPLE_BYTES if settings.waveforms == "flac" else 0
        yield disk_line(settings.out, codes + waveforms + len(fits) * _BYTES_PER_CLIP, "at most ")


def validation_lines(settings: Settings, clips: list[ClipPlan]) -> Iterator[str]:
    """A warning where the validation split is empty, or has too few voices for a conditioning gain."""
    counts = Counter(clip.speaker for clip in clips)
    if not counts:
        yield "warning: no voice will be held out for validation: training can't be judged, nor its best checkpoint"
    elif len(counts) >= FEWEST_VOICES or settings.layout == AS_WRITTEN:
        return
    else:
        yield (
            "warning: one voice will be held out for validation: no conditioning gain can be measured, because it "
            "compares references of two voices"
        )
    yield "  add voices, or give --val-speakers 2 (of voices with two clips or more) or --val-manifest"


def text_lines(texts: dict[str, str], tokens: dict[str, int]) -> Iterator[str]:
    """The share of transcripts with digits, and the tokens per character of all."""
    num_characters = sum(map(len, texts.values()))
    if not num_characters:
        return
    with_digits = sum(num_digits(text) > 0 for text in texts.values())
    hint = ": a digit can be read aloud in several ways; written as words it can't" if with_digits else ""
    yield f"digits: in {with_digits} of {len(texts)} transcripts ({with_digits / len(texts):.1%}){hint}"
    ratio = sum(tokens.values()) / num_characters
    yield f"text: {ratio:.2f} tokens per character of the transcripts, by the base's tokenizer"
    if ratio > _MANY_TOKENS_PER_CHARACTER:
        yield "  warning: more than one: this tokenizer hardly knows their script, and samples become long"


def read_frame_rate(codec: Path) -> float | None:
    """Frames per second by a codec's config.json; None where it does not say."""
    config = read_json_object(
        codec / "config.json", "config.json of a codec folder", "Name it with --audio-tokenizer."
    )
    rate_hz, ratios = config.get("sample_rate"), config.get("ratios")
    if not isinstance(rate_hz, int) or not isinstance(ratios, list) or not all(isinstance(r, int) for r in ratios):
        return None
    samples_per_frame = math.prod(ratios)
    return rate_hz / samples_per_frame if samples_per_frame > 0 else None


def length_lines(
    settings: Settings, base: BaseModel, clips: list[ClipPlan], frames: dict[str, float], tokens: dict[str, int]
) -> Iterator[str]:
    """The longest sample, and the tokens and steps of an epoch over the samples whose targets are `clips`."""
    parts = [
        ClipLength(clip.key, clip.speaker, tokens.get(clip.key, 0), frames[clip.key], clip.draws_reference)
        for clip in clips
    ]
    lengths = measure_samples(base, settings.system_text, parts, _named_samples(settings, base, clips, frames))
    if not lengths.num_samples:
        yield "training: no samples"
        return
    longest = next(clip for clip in clips if clip.key == lengths.longest_key)
    yield f"longest sample: about {lengths.longest_tokens:,.0f} tokens with its reference ({longest.source})"
    yield f"an epoch: {lengths.num_samples:,} samples, about {lengths.total_tokens:,.0f} tokens:"
    for name in (SMALL_CORPUS, LARGE_CORPUS):
        batch = read_batch(name)
        steps = max(math.ceil(lengths.total_tokens / batch.max_tokens / batch.packs_per_step), 1)
        size = f"{batch.packs_per_step} x {batch.max_tokens:,} tokens"
        yield f"  about {steps:,} steps of {size}, {lengths.num_samples / steps:,.0f} samples each ({name})"


def _named_samples(
    settings: Settings, base: BaseModel, clips: list[ClipPlan], frames: dict[str, float]
) -> Iterator[tuple[str, float]]:
    """(target, tokens) of each dialogue whose clips can all be opened."""
    for clip in clips:
        for stored in clip.dialogues:
            dialogue = read_dialogue(stored, clip.key, settings.system_text)
            audios = audios_of(dialogue)
            if all(audio.key in frames for audio in audios):
                columns = sum(audio_columns(base, frames[audio.key]) for audio in audios if audio.has_codes)
                yield clip.key, base.dialogue_tokens(dialogue)[0] + columns


def disk_line(out: Path, num_bytes: float, how: str = "") -> str:
    """What the shards will take on the file system of `out`, what is free there, and a warning if that is less.

    Shards that an earlier run left there count as done. Raises InputError for a name that can't be a folder.
    """
    with explain_write_errors(out, "Name another --out."):
        folder = next(parent for parent in (out, *out.parents) if parent.is_dir())
        needed = max(num_bytes - sum(shard.stat().st_size for shard in out.glob("shard-*.tar")), 0)
        free = shutil.disk_usage(folder).free
    line = f"disk: {how}{needed / 1e9:,.3f} GB for the shards, {free / 1e9:,.3f} GB free in {folder}"
    return line if needed <= free else f"warning: {line}: free space, or name another --out"
