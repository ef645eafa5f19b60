"""One spec -> one tar, one index fragment, and why some clips are in neither.

`make_shard` is a pure function of the spec and the files it names: any process on any machine with the same
pins and instruction set writes the same bytes. A shard is finished when tar and fragment bear their names; the
fragment comes last.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from preprocess.audio.decode import Audio, flac_16khz, flac_samples
from preprocess.audio.noise import augment
from preprocess.codec.load import encode, load_codec, resample_to_codec
from preprocess.common.errors import Rejected, explain_write_errors
from preprocess.common.files import sha256_file, write_atomically
from preprocess.corpus.base_model import read_base_model
from preprocess.corpus.dialogue import audios_of, read_dialogue
from preprocess.corpus.shards import QUALITY, Clip, write_shard
from preprocess.corpus.text import normalise_text, num_digits
from preprocess.encode.local_pool import worker_number
from preprocess.encode.read_ahead import read_ahead
from preprocess.encode.reuse import EarlierCorpus, Reused, open_earlier, recording_facts
from preprocess.judges.figures import audio_figures, code_entropy_bits, text_figures
from preprocess.judges.speaker import embed_voice, load_encoder
from preprocess.judges.voice_activity import load_detector, speech_share
from preprocess.plan.clips import ClipPlan
from preprocess.plan.screening import Screening, claims_arabic, screen
from preprocess.plan.shard_specs import ShardSpec

FRAGMENTS_FOLDER = "fragments"
# What to do where a shard can't be written.
KEPT_SHARDS = "Free space or name another --out; the same command goes on from the shards that are finished."


@dataclass(frozen=True)
class ShardReport:
    """What became of a shard's clips: index rows (all columns but split, use, reason) or why there is none.

    Rows also hold what is decided by once all shards are made: source_sha256, num_digits and, where the screening
    asks for it, the voice.

    `lost_sec` is the decoded length of screened clips. A shard of which no clip is left has no tar: 0 bytes.
    `num_reused` clips were not encoded; a kept shard no longer knows.
    """

    name: str
    rows: list[dict]
    rejected: dict[str, Rejected]
    lost_sec: dict[str, float]
    num_bytes: int
    sha256: str
    num_reused: int = 0


def make_shard(spec: ShardSpec, progress: Callable[[float], None] = lambda audio_sec: None) -> ShardReport:
    """Encode the spec's clips and write tar and fragment. `progress` hears the seconds of audio of each clip."""
    tokenizer, facts = load_codec(spec.codec, spec.hubert, spec.mode.on_gpu(worker_number()))
    earlier = open_earlier(spec.reuse) if spec.reuse else None
    clips, extra, rejected, lost_sec, num_reused = [], {}, {}, {}, 0
    plans = sorted(spec.clips, key=lambda plan: plan.recording.order)
    reads = read_ahead(partial(_read, spec, earlier, facts.sample_rate_hz), plans, _num_readers(spec, plans))
    for plan, read in zip(plans, reads, strict=True):
        try:
            _begin_clip(spec, plan)
            duration_sec, audio, waveform = read()
            if audio is None:
                screen(spec.screening, {"duration_sec": duration_sec}, str(plan.recording))
            reused = audio if isinstance(audio, Reused) else None
            progress(duration_sec)
            quality = _screened_figures(spec, plan, audio)
            voice = _voice(spec, plan, audio)
            if plan.augmentation and not reused:
                audio = augment(audio, plan.augmentation, spec.noise, spec.room_responses)
                waveform = resample_to_codec(audio.waveform, audio.sample_rate_hz, facts.sample_rate_hz)
            codes = reused.codes if reused else encode(tokenizer, waveform, facts.sample_rate_hz)
            quality["code_entropy_bits"] = code_entropy_bits(codes)
            screen(spec.screening, quality, str(plan.recording))
        except Rejected as error:
            rejected[plan.key] = error
            if error.status == "screened":
                lost_sec[plan.key] = duration_sec
            continue
        assert codes.shape[0] == facts.num_codebooks, codes.shape
        assert codes.max() < facts.codebook_size, codes.max()
        meta = _meta(plan, audio, quality)
        flac = None
        if spec.waveforms == "flac":
            flac = reused.flac if reused else flac_16khz(audio)
        num_reused += reused is not None
        clips.append(Clip(plan.key, meta, codes, flac))
        lengths = {"frames": codes.shape[1], "waveform_samples": flac_samples(flac) if flac else 0}
        extra[plan.key] = {**lengths, **_index_columns(spec, plan, meta), **voice}
    clips.sort(key=lambda clip: clip.key)
    assert len(clips) + len(rejected) == len(spec.clips)
    path = spec.out / f"{spec.name}.tar"
    with explain_write_errors(spec.out, KEPT_SHARDS):
        rows = [{**row, **extra[row["key"]]} for row in write_shard(path, clips)] if clips else []
        num_bytes, sha256 = (path.stat().st_size, sha256_file(path)) if clips else (0, "")
        report = ShardReport(spec.name, rows, rejected, lost_sec, num_bytes, sha256, num_reused)
        _write_fragment(spec, report)
    _clip_path(spec).unlink(missing_ok=True)
    return report


def _num_readers(spec: ShardSpec, plans: list[ClipPlan]) -> int:
    """Threads that read ahead; none where a worker has died over this shard, so that the clip in work is to blame."""
    if spec.num_readers == 0 or _clip_path(spec).is_file():
        return 0
    _begin_clip(spec, plans[0])  # a thread may end this worker before any clip is in work: the next one must know
    return spec.num_readers


def _read(
    spec: ShardSpec, earlier: EarlierCorpus | None, codec_rate_hz: int, plan: ClipPlan
) -> tuple[float, Audio | Reused | None, np.ndarray | None]:
    """(seconds, samples, samples at the codec's rate); no samples of what is far too long: hours are not decoded."""
    if plan.key in spec.culprits:
        raise spec.culprits[plan.key]
    duration_sec = plan.recording.longer_than(spec.screening.longest_sec)
    if duration_sec:
        return duration_sec, None, None
    reused = earlier.find(plan) if earlier else None
    if reused:
        return reused.duration_sec, reused, None
    audio = plan.recording.decode()
    return audio.duration_sec, audio, resample_to_codec(audio.waveform, audio.sample_rate_hz, codec_rate_hz)


def _clip_path(spec: ShardSpec) -> Path:
    return spec.out / FRAGMENTS_FOLDER / f".{spec.name}.clip"


def _begin_clip(spec: ShardSpec, plan: ClipPlan) -> None:
    """Leave word of the clip in work, for whoever finds the worker dead."""
    with explain_write_errors(spec.out, KEPT_SHARDS):
        _clip_path(spec).parent.mkdir(exist_ok=True)
        _clip_path(spec).write_text(plan.key)


def clip_in_work(spec: ShardSpec) -> ClipPlan | None:
    """The clip a worker that died had in work; None where it had come to none."""
    path = _clip_path(spec)
    key = path.read_text() if path.is_file() else None
    return next((plan for plan in spec.clips if plan.key == key), None)


def load_screening_networks(screening: Screening) -> None:
    """Load what the screening listens with, for workers that are forked from here to share."""
    if screening.min_speech_share is not None:
        load_detector()
    if screening.min_speaker_similarity is not None:
        load_encoder()


def _screened_figures(spec: ShardSpec, plan: ClipPlan, audio: Audio | Reused) -> dict[str, float]:
    """What is known of a clip before it is encoded, and made noisy; raises Rejected where the screening drops it."""
    where = str(plan.recording)
    screen(spec.screening, {"duration_sec": audio.duration_sec}, where)  # before hours of audio are measured
    figures = dict(audio.figures) if isinstance(audio, Reused) else audio_figures(audio)
    known_speech_share = figures.pop("speech_share", None)
    if plan.text:
        silence_sec = figures["leading_silence_sec"] + figures["trailing_silence_sec"]
        figures |= text_figures(normalise_text(plan.text), audio.duration_sec - silence_sec)
    if not claims_arabic(spec.screening, plan.language):
        figures.pop("arabic_share", None)
    screen(spec.screening, figures, where)
    if spec.screening.min_speech_share is not None:  # last: the others cost next to nothing
        figures["speech_share"] = known_speech_share
        if known_speech_share is None:
            figures["speech_share"] = speech_share(plan.recording.decode() if isinstance(audio, Reused) else audio)
        screen(spec.screening, figures, where)
    return figures


def _voice(spec: ShardSpec, plan: ClipPlan, audio: Audio | Reused) -> dict[str, str | None]:
    """What tells whose voice a clip is in, where the screening asks for it; a noisy copy is judged by its clip."""
    if spec.screening.min_speaker_similarity is None or plan.augmentation:
        return {}
    return {"voice": embed_voice(plan.recording.decode() if isinstance(audio, Reused) else audio)}


def _meta(plan: ClipPlan, audio: Audio | Reused, quality: dict[str, float]) -> dict:
    return {
        "text": plan.text,
        "speaker": plan.speaker,
        "language": plan.language,
        "id": plan.id,
        "duration_sec": audio.duration_sec,
        "source": plan.source,
        "source_sha256": audio.sha256,
        "quality": quality,
        **plan.prompt_meta(),
        **recording_facts(plan),
    }


def _index_columns(spec: ShardSpec, plan: ClipPlan, meta: dict) -> dict:
    num_tokens = read_base_model(spec.model).num_tokens
    return {
        "text_tokens": num_tokens(meta["text_normalised"]),
        "system_tokens": num_tokens(plan.system_text) if plan.system_text else None,
        "duration_sec": meta["duration_sec"],
        "speaker": plan.speaker,
        "language": plan.language,
        "draws_reference": plan.draws_reference,
        "derived_from": plan.derived_from,
        "dialogues": [_planned(spec, plan.key, *numbered) for numbered in enumerate(plan.dialogues)],
        **{name: meta["quality"].get(name) for name in QUALITY},
        "source_sha256": meta["source_sha256"],
        "num_digits": num_digits(meta["text_normalised"]),
    }


def _planned(spec: ShardSpec, key: str, position: int, stored: dict) -> dict:
    """What the index says of a dialogue of the clip `key`."""
    dialogue = read_dialogue(stored, key, spec.system_text)
    stream_tokens, text_labels = read_base_model(spec.model).dialogue_tokens(dialogue)
    audios = [audio._asdict() for audio in audios_of(dialogue)]
    return {"position": position, "stream_tokens": stream_tokens, "text_labels": text_labels, "audios": audios}


def _fragment_path(spec: ShardSpec) -> Path:
    return spec.out / FRAGMENTS_FOLDER / f"{spec.name}.json"


def _write_fragment(spec: ShardSpec, report: ShardReport) -> None:
    fragment = {
        "identity": spec.identity,
        "rows": report.rows,
        "rejected": {key: error.record() for key, error in report.rejected.items()},
        "lost_sec": report.lost_sec,
        "num_bytes": report.num_bytes,
        "sha256": report.sha256,
    }
    _fragment_path(spec).parent.mkdir(exist_ok=True)
    write_atomically(_fragment_path(spec), json.dumps(fragment, ensure_ascii=False, sort_keys=True).encode())


def read_finished(spec: ShardSpec) -> ShardReport | None:
    """The report of this very spec if it was finished, perhaps by an earlier run, else None."""
    path, tar = _fragment_path(spec), spec.out / f"{spec.name}.tar"
    if not path.is_file():
        return None
    fragment = json.loads(path.read_text(encoding="utf-8"))
    num_bytes = tar.stat().st_size if tar.is_file() else 0
    if fragment["identity"] != spec.identity or fragment["num_bytes"] != num_bytes:
        return None
    rejected = {key: Rejected(**record) for key, record in fragment["rejected"].items()}
    return ShardReport(spec.name, fragment["rows"], rejected, fragment["lost_sec"], num_bytes, fragment["sha256"])


def discard_fragment(spec: ShardSpec) -> None:
    """Make a finished shard unfinished."""
    _fragment_path(spec).unlink()


def remove_unfinished(specs: Sequence[ShardSpec]) -> None:
    """Remove what workers that were stopped had begun to write, and their word of the clip in work."""
    names = {spec.name for spec in specs}
    for folder in {folder for spec in specs for folder in (spec.out, _fragment_path(spec).parent)}:
        for path in folder.glob(".shard-*"):
            if path.name.split(".")[1] in names:
                path.unlink(missing_ok=True)
