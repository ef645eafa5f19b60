"""What a corpus records of the codec that made its codes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class CodecFacts:
    """What a codec is. `codebook_size` is the number of codes; `fingerprint` names config and both weights."""

    num_codebooks: int
    codebook_size: int
    frame_rate_hz: float
    sample_rate_hz: int
    fingerprint: str
