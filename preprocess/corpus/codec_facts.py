"""What a corpus records about the codec that made its codes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class CodecFacts:
    """Facts of a codec. `codebook_size` counts codes; `fingerprint` hashes both configs and both weights."""

    num_codebooks: int
    codebook_size: int
    frame_rate_hz: float
    sample_rate_hz: int
    fingerprint: str
