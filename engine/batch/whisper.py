"""Whisper conditioning, for bases with an audio tower: reference waveforms -> mel features for Boson's tower.

A waveform is cut into chunks of the tower's input length (30 s for Whisper). As in Boson's collator, each chunk is an
`<|audio_bos|><|AUDIO|><|audio_eos|>` in a user's turn; `<|AUDIO|>` stands for the tower's outputs, 25 per second.
"""

import functools
import io

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import soundfile
from boson_multimodal.model.higgs_audio import HiggsAudioConfig
from transformers import WhisperFeatureExtractor

from engine.plan.corpora import Corpora
from preprocess.common.errors import InputError, first_line
from preprocess.corpus.base_model import has_audio_tower
from preprocess.corpus.shards import Clip, num_flac_samples


def feature_extractor(config: HiggsAudioConfig) -> WhisperFeatureExtractor:
    """Whisper's feature extractor for the tower of `config`. Nothing is downloaded."""
    encoder = config.audio_encoder_config
    return _extractor(encoder.num_mel_bins, encoder.max_source_positions)


@functools.cache
def _extractor(num_mel_bins: int, max_source_positions: int) -> WhisperFeatureExtractor:
    whisper = WhisperFeatureExtractor(feature_size=num_mel_bins)
    num_mel_frames = 2 * max_source_positions  # the tower's second convolution halves them
    chunk_sec = num_mel_frames * whisper.hop_length // whisper.sampling_rate
    return WhisperFeatureExtractor(feature_size=num_mel_bins, chunk_length=chunk_sec)


def check_conditioning(conditioning: str, config: HiggsAudioConfig, corpora: Corpora) -> None:
    """Raise InputError if waveforms are asked for and the base has no audio tower, or a clip has no waveform."""
    if conditioning == "codes":
        return
    if not has_audio_tower(config):
        raise InputError(
            "recipe: conditioning",
            f"{conditioning} with a base that has no audio tower (skip_audio_tower true in its config.json)",
            "codes",
            "Set conditioning=codes; the released 3B base has no audio tower.",
        )
    has_none = pc.equal(corpora.index["waveform_samples"].fill_null(0), 0)
    num_missing = pc.sum(pc.and_(has_none, corpora.index["use"])).as_py()
    if num_missing:
        raise InputError(
            ", ".join(str(folder) for folder in corpora.folders),
            f"{num_missing} clips without a waveform",
            f"a 16 kHz waveform of each, as conditioning={conditioning} requires",
            "Run preprocess.shard with --waveforms flac into a new folder, or set conditioning=codes.",
        )


def waveform_chunks(clip: Clip, config: HiggsAudioConfig) -> list[npt.NDArray[np.float32]]:
    """The clip's 16 kHz waveform in chunks of at most the tower's input length. Raises InputError."""
    extractor = feature_extractor(config)
    if clip.flac is None:
        raise InputError(
            f"clip {clip.key}",
            "no waveform",
            f"a FLAC member of {extractor.sampling_rate} Hz, which the audio tower needs",
            "Run preprocess.shard with --waveforms flac, or train with conditioning=codes.",
        )
    try:
        num_samples = num_flac_samples(clip.flac)
        waveform, sample_rate_hz = soundfile.read(io.BytesIO(clip.flac), dtype="float32")
    except (soundfile.LibsndfileError, ValueError) as error:
        found, action = f"a waveform that can't be decoded ({first_line(error)})", "Run preprocess.shard again."
        raise InputError(f"clip {clip.key}", found, "FLAC", action) from error
    if len(waveform) != num_samples:
        found, action = f"a waveform that ends after {len(waveform)} samples", "Run preprocess.shard again."
        raise InputError(f"clip {clip.key}", found, f"{num_samples} samples, as its header says", action)
    if sample_rate_hz != extractor.sampling_rate or waveform.ndim != 1:
        raise InputError(
            f"clip {clip.key}",
            f"a waveform of {sample_rate_hz} Hz, {waveform.ndim} dimensions",
            f"a mono waveform of {extractor.sampling_rate} Hz, as Whisper needs it",
            "Run preprocess.shard again: it writes such waveforms.",
        )
    return [waveform[begin : begin + extractor.n_samples] for begin in range(0, len(waveform), extractor.n_samples)]
