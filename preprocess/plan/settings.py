"""What the flags of preprocess.shard say, read and checked. Every stage of the command takes it; none changes it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from preprocess.plan.screening import Screening
from preprocess.plan.slices import Slice


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One field per flag, with the flag's name. Paths are absolute.

    audio_tokenizer, hubert and out are there unless nothing is written (validate_only, dry_run).
    """

    manifest: Path  # the list of recordings
    model: Path  # folder of the base model
    audio_tokenizer: Path | None  # folder of the codec
    hubert: Path | None  # folder of the codec's HuBERT
    out: Path | None  # folder to write

    audio_root: Path | None  # what audio paths are relative to; None: the folder of the manifest that names them
    columns: Mapping[str, str]  # {field: column of the manifest}, where names do not say so
    val_speakers: str  # voices held out for validation: a number ("3") or a share with a point ("0.02")
    val_manifest: Path | None  # a manifest of the validation split
    reuse: Path | None  # a finished corpus, whose codes are taken where a recording did not change

    system_text: str  # the system turn of every prompt
    keep_system: bool  # a row's own system text counts instead
    layout: str  # how dialogues are laid out: CANONICAL or AS_WRITTEN of preprocess.corpus.dialogue

    screening: Screening  # thresholds of the filters
    max_failure_share: float  # of rows or clips; the command stops where more fail
    noisy_references: float  # share of the clips of which a noisy copy is made, 0 to 1
    noise: Path | None  # folder of noise for these copies
    room_responses: Path | None  # folder of impulse responses for these copies
    waveforms: str  # "flac" or "none": what is stored of the 16 kHz waveforms
    hours_per_shard: float  # hours of audio per shard
    seed: int  # decides the order of speakers, the split, and which clips have noisy copies

    workers: int  # processes, 0: one per core or GPU
    executor: str  # "local" or "ray": where shards are made
    slice: Slice | None  # the share of the shards that this run makes; None: all
    finalize: bool  # make no shard: only index and corpus.json
    device: str  # "cpu" or "cuda": where codes are computed
    precision: str  # "fp32", "tf32" or "bf16": of the encoder

    validate_only: bool  # check manifest and headers, and write nothing
    dry_run: bool  # report what a run would do, and write nothing

    @property
    def val_audio_root(self) -> Path | None:
        """What the audio paths of --val-manifest are relative to."""
        return self.audio_root_of(self.val_manifest) if self.val_manifest else None

    def audio_root_of(self, manifest: Path) -> Path:
        """What the audio paths of a manifest are relative to."""
        return self.audio_root or (manifest if manifest.is_dir() else manifest.parent)
