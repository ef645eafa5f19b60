"""The flags of preprocess.shard, parsed and checked. Every stage of the command reads them, none changes them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from preprocess.plan.screening import Screening
from preprocess.plan.slices import Slice


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One field per flag, with the flag's name. Paths are absolute.

    audio_tokenizer, hubert and out may be None only where nothing is written (validate_only, dry_run).
    """

    manifest: Path  # the list of recordings
    model: Path  # folder of the base model
    audio_tokenizer: Path | None  # folder of the codec
    hubert: Path | None  # folder of the codec's HuBERT
    out: Path | None  # folder to write

    audio_root: Path | None  # what audio paths are relative to; None: the folder of the manifest that names them
    allow_outside: bool  # whether recordings may lie outside these folders
    columns: Mapping[str, str]  # {field: column of the manifest}, where their names differ
    speaker: str | None  # the voice of the rows that name none
    val_speakers: str  # voices held out for validation: a number ("3") or a share with a point ("0.02")
    val_manifest: Path | None  # a manifest of the validation split
    reuse: Path | None  # a finished corpus, whose codes are reused for recordings that did not change

    system_text: str  # the system turn of every prompt
    keep_system: bool  # whether a row's own system text replaces it
    allow_marks: bool  # whether transcripts may have Boson's marks for sounds
    layout: str  # how dialogues are laid out: CANONICAL or AS_WRITTEN of preprocess.corpus.dialogue

    screening: Screening  # thresholds of the filters on clips
    max_failure_share: float  # of rows or clips, 0 to 1; the command stops if more fail
    noisy_references: float  # share of the clips that get a noisy copy, 0 to 1
    noise: Path | None  # folder of noise for these copies
    room_responses: Path | None  # folder of impulse responses for these copies
    waveforms: str  # "flac" or "none": how the 16 kHz waveforms are stored
    hours_per_shard: float  # hours of audio per shard
    seed: int  # decides the order of speakers, the split, and which clips have noisy copies

    workers: int  # processes, 0: one per core or GPU
    executor: str  # "local" or "ray": where shards are made
    slice: Slice | None  # which of the shards this run makes; None: all
    finalize: bool  # make no shards, only index and corpus.json
    device: str  # "cpu" or "cuda": where codes are computed
    precision: str  # "fp32", "tf32" or "bf16": of the encoder

    validate_only: bool  # check manifest and headers, and write nothing
    dry_run: bool  # report what a run would do, and write nothing

    @property
    def val_audio_root(self) -> Path | None:
        """The folder that audio paths of --val-manifest are relative to; None without one."""
        return self.audio_root_of(self.val_manifest) if self.val_manifest else None

    @property
    def audio_roots(self) -> list[Path]:
        """The folders under which recordings lie."""
        return [self.audio_root_of(manifest) for manifest in (self.manifest, self.val_manifest) if manifest]

    def audio_root_of(self, manifest: Path) -> Path:
        """The folder that audio paths of a manifest are relative to."""
        return self.audio_root or (manifest if manifest.is_dir() else manifest.parent)
