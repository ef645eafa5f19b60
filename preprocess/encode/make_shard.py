"""Encode the clips of one shard: its tar, its fragment of the index, and the reason for each clip left out.

`make_shard` is a pure function of the spec and the files it names: any process on any machine with the same package
versions and instruction set writes the same bytes. A shard is finished when tar and fragment have their final names;
the fragment is written last.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from boson_multimodal.audio_processing.higgs_audio_tokenizer import HiggsAudioTokenizer

from preprocess.audio.decode import Audio, flac_16khz
from preprocess.audio.noise import augment
from preprocess.codec.load import encode_waveform, load_codec, resample_to_codec
from preprocess.common.errors import InputError, Rejected, costs_its_item, explain_write_errors
from preprocess.common.files import sha256_file
from preprocess.common.json_file import JsonObject
from preprocess.common.record import Form, read_record, write_record
from preprocess.common.say import say
from preprocess.corpus.base_model import read_base_model
from preprocess.corpus.codec_facts import CodecFacts
from preprocess.corpus.shards import QUALITY, Clip, num_flac_samples, write_shard
from preprocess.corpus.text import num_digits
from preprocess.corpus.token_counts import token_counts
from preprocess.encode.judge_clip import judge_clip, refuse_length
from preprocess.encode.local_pool import worker_number
from preprocess.encode.read_ahead import read_ahead
from preprocess.encode.reuse import EarlierCorpus, Reused, open_earlier, recording_facts
from preprocess.judges.figures import code_entropy_bits
from preprocess.plan.clips import ClipPlan
from preprocess.plan.screening import screen_figures
from preprocess.plan.shard_specs import ShardSpec

FRAGMENTS_FOLDER = "fragments"
# What to do where a shard can't be written.
KEPT_SHARDS = "Free space or name another --out; the same command goes on from the shards that are finished."


class _FragmentForm(Form):
    """A fragment of the index: what became of one shard's clips."""

    identity: str
    rows: list[dict[str, Any]]
    rejected: dict[str, dict[str, str]]
    lost_sec: dict[str, float]
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class ShardReport:
    """What became of a shard's clips: index rows, or the reason for each clip that is not in the shard.

    rows: all columns but split, use and reason, which are decided once all shards are made; and what these decisions
        need: source_sha256, num_digits and, where the screening asks for it, the voice.
    lost_sec: seconds of audio of each screened clip.
    num_bytes, sha256: of the tar; 0 and "" where no clip is left, since there is no tar then.
    num_reused: clips that were not encoded; 0 for a shard that an earlier run made.
    """

    name: str
    rows: list[JsonObject]
    rejected: dict[str, Rejected]
    lost_sec: dict[str, float]
    num_bytes: int
    sha256: str
    num_reused: int = 0


class Decoded(NamedTuple):
    """Audio that is to be encoded: at the file's own rate, and as float32 [samples] at the codec's."""

    duration_sec: float
    sha256: str
    audio: Audio
    codec_waveform: npt.NDArray[np.float32]


class TooLong(NamedTuple):
    """Audio that was not decoded, because its header says that it is far too long for the screening."""

    duration_sec: float


ClipAudio = Decoded | Reused | TooLong


def make_shard(spec: ShardSpec, progress: Callable[[float], None] = lambda audio_sec: None) -> ShardReport:
    """Encode the spec's clips and write tar and fragment. `progress` is called with each clip's seconds of audio."""
    tokenizer, facts = load_codec(spec.codec, spec.hubert, spec.mode.on_gpu(worker_number()))
    earlier = open_earlier(spec.reuse) if spec.reuse else None
    made, rejected, lost_sec, num_reused = [], {}, {}, 0
    plans = sorted(spec.clips, key=lambda plan: plan.recording.order)
    reads = read_ahead(partial(_read, spec, earlier, facts.sample_rate_hz), plans, _num_readers(spec, plans))
    for plan, read in zip(plans, reads, strict=True):
        _begin_clip(spec, plan)
        try:
            with costs_its_item(str(plan.recording)):
                audio = read()
            if not isinstance(audio, TooLong):  # hours that are not decoded take no time
                progress(audio.duration_sec)
            with costs_its_item(str(plan.recording)):
                made.append(_make_clip(spec, plan, audio, tokenizer, facts))
            num_reused += isinstance(audio, Reused)
        except Rejected as error:
            rejected[plan.key] = error
            if error.status == "screened":  # after its audio was read: what can't be read has failed
                lost_sec[plan.key] = audio.duration_sec
    made.sort(key=lambda item: item[0].key)
    assert len(made) + len(rejected) == len(spec.clips)
    path = spec.out / f"{spec.name}.tar"
    rows, num_bytes, sha256 = [], 0, ""
    with explain_write_errors(spec.out, KEPT_SHARDS):
        if made:
            places = write_shard(path, [clip for clip, _ in made])
            rows = [{**place, **columns} for place, (_, columns) in zip(places, made, strict=True)]
            num_bytes, sha256 = path.stat().st_size, sha256_file(path)
        report = ShardReport(spec.name, rows, rejected, lost_sec, num_bytes, sha256, num_reused)
        _write_fragment(spec, report)
    _clip_path(spec).unlink(missing_ok=True)
    return report


def _make_clip(
    spec: ShardSpec, plan: ClipPlan, audio: ClipAudio, tokenizer: HiggsAudioTokenizer, facts: CodecFacts
) -> tuple[Clip, JsonObject]:
    """(clip, its columns of the index besides those of its place in the tar). Raises Rejected if it is screened."""
    refuse_length(spec.screening, plan, audio.duration_sec)
    assert not isinstance(audio, TooLong), "audio of a length that the screening allows was not decoded"
    quality, voice = judge_clip(spec.screening, plan, audio if isinstance(audio, Reused) else audio.audio)
    if isinstance(audio, Reused):
        codes, flac = audio.codes, audio.flac
    else:
        codes, flac = _encode(spec, plan, audio, tokenizer, facts)
    quality["code_entropy_bits"] = code_entropy_bits(codes)
    screen_figures(spec.screening, quality, str(plan.recording))
    assert codes.shape[0] == facts.num_codebooks, codes.shape
    assert codes.max() < facts.codebook_size, codes.max()
    meta = _meta(plan, audio, quality)
    clip = Clip(plan.key, meta, codes, flac)
    lengths = {"frames": codes.shape[1], "waveform_samples": num_flac_samples(flac) if flac else 0}
    return clip, {**lengths, **_index_columns(spec, plan, meta), **voice}


def _encode(
    spec: ShardSpec, plan: ClipPlan, decoded: Decoded, tokenizer: HiggsAudioTokenizer, facts: CodecFacts
) -> tuple[npt.NDArray[np.uint16], bytes | None]:
    """(codes [codebooks, frames], FLAC file where the shards keep waveforms), with noise where it is planned."""
    audio, waveform = decoded.audio, decoded.codec_waveform
    if plan.augmentation:
        audio = augment(audio, plan.augmentation, spec.noise, spec.room_responses)
        waveform = resample_to_codec(audio.waveform, audio.sample_rate_hz, facts.sample_rate_hz)
    codes = encode_waveform(tokenizer, waveform, facts.sample_rate_hz)
    return codes, flac_16khz(audio) if spec.waveforms == "flac" else None


def _num_readers(spec: ShardSpec, plans: list[ClipPlan]) -> int:
    """How many threads read ahead; 0 where a worker died over this shard: the clip in progress is then the cause."""
    if spec.num_readers == 0 or _clip_path(spec).is_file():
        return 0
    _begin_clip(spec, plans[0])  # a thread may end this worker before it begins a clip: the next worker must know
    return spec.num_readers


def _read(spec: ShardSpec, earlier: EarlierCorpus | None, codec_rate_hz: int, plan: ClipPlan) -> ClipAudio:
    """The clip's audio. Raises Rejected for what can't be read, and where workers died over the clip."""
    if plan.key in spec.culprits:
        raise spec.culprits[plan.key]
    if duration_sec := plan.recording.duration_if_longer(spec.screening.longest_sec):
        return TooLong(duration_sec)
    if earlier and (reused := earlier.find(plan, waveform=spec.waveforms == "flac")):
        return reused
    audio = plan.recording.decode()
    waveform = resample_to_codec(audio.waveform, audio.sample_rate_hz, codec_rate_hz)
    return Decoded(audio.duration_sec, audio.sha256, audio, waveform)


def _clip_path(spec: ShardSpec) -> Path:
    return spec.out / FRAGMENTS_FOLDER / f".{spec.name}.clip"


def _begin_clip(spec: ShardSpec, plan: ClipPlan) -> None:
    """Write down which clip is in progress, for `clip_in_progress`."""
    with explain_write_errors(spec.out, KEPT_SHARDS):
        _clip_path(spec).parent.mkdir(exist_ok=True)
        _clip_path(spec).write_text(plan.key)


def clip_in_progress(spec: ShardSpec) -> ClipPlan | None:
    """The clip that a worker was at when it died; None where it had begun none."""
    path = _clip_path(spec)
    key = path.read_text() if path.is_file() else None
    return next((plan for plan in spec.clips if plan.key == key), None)


def _meta(plan: ClipPlan, audio: Decoded | Reused, quality: dict[str, float]) -> JsonObject:
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


def _index_columns(spec: ShardSpec, plan: ClipPlan, meta: JsonObject) -> JsonObject:
    return {
        **token_counts(read_base_model(spec.model), plan.key, meta, spec.system_text),
        "duration_sec": meta["duration_sec"],
        "speaker": plan.speaker,
        "language": plan.language,
        "draws_reference": plan.draws_reference,
        "derived_from": plan.derived_from,
        **{name: meta["quality"].get(name) for name in QUALITY},
        "source_sha256": meta["source_sha256"],
        "num_digits": num_digits(meta["text_normalised"]),
    }


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
    write_record(_fragment_path(spec), fragment)


def read_finished(spec: ShardSpec) -> ShardReport | None:
    """The report of a finished shard, perhaps of an earlier run.

    None where its fragment is missing, damaged or of another spec, and where the tar is not the one of the fragment.
    """
    path, tar = _fragment_path(spec), spec.out / f"{spec.name}.tar"
    if not path.is_file():
        return None
    try:
        fragment = read_record(str(path), path.read_bytes(), _FragmentForm, "Nothing to do: the shard is made again.")
    except InputError as damaged:
        say(f"{spec.name} is made again: {damaged}")
        return None
    num_bytes = tar.stat().st_size if tar.is_file() else 0
    if fragment["identity"] != spec.identity or fragment["num_bytes"] != num_bytes:
        return None
    if num_bytes and sha256_file(tar) != fragment["sha256"]:
        say(f"{spec.name} is made again: {tar} does not have the sha256 that its fragment says")
        return None
    rejected = {key: Rejected(**record) for key, record in fragment["rejected"].items()}
    return ShardReport(spec.name, fragment["rows"], rejected, fragment["lost_sec"], num_bytes, fragment["sha256"])


def discard_fragment(spec: ShardSpec) -> None:
    """Make a finished shard count as unfinished."""
    _fragment_path(spec).unlink()


def remove_unfinished(specs: Sequence[ShardSpec]) -> None:
    """Remove the partial files of workers that were stopped, and their notes of the clip in progress."""
    names = {spec.name for spec in specs}
    for folder in {folder for spec in specs for folder in (spec.out, _fragment_path(spec).parent)}:
        for path in folder.glob(".shard-*"):
            if path.name.split(".")[1] in names:
                path.unlink(missing_ok=True)
