"""The form of corpus.json: its values and their types. Names and hashes are checked before they become paths."""

from typing import Annotated, Any

from pydantic import Field

from preprocess.common.record import Form

# A file of a corpus: no folder, no hidden file.
FileName = Annotated[str, Field(pattern=r"\A[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}\z")]
Sha256 = Annotated[str, Field(pattern=r"\A[0-9a-f]{64}\z")]
Count = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class File(Form):
    """A file with its size and hash."""

    name: FileName
    bytes: Count
    sha256: Sha256


class CodecForm(Form):
    """preprocess.corpus.codec_facts.CodecFacts."""

    num_codebooks: Annotated[int, Field(ge=1)]
    codebook_size: Annotated[int, Field(ge=1, le=1 << 16)]
    frame_rate_hz: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    sample_rate_hz: Annotated[int, Field(ge=1)]
    fingerprint: str


class TokenizerForm(Form):
    """The tokenizer whose tokens the index counts."""

    fingerprint: str


class LayoutForm(Form):
    """How dialogues are laid out."""

    system_text: str
    normaliser_version: int
    name: str | None = None
    keep_system: bool | None = None
    allow_marks: bool | None = None


Finite = Annotated[float, Field(allow_inf_nan=False)]
Range = Annotated[list[Finite], Field(min_length=2, max_length=2, default_factory=list)]


class SpeechForm(Form):
    """preprocess.judges.pace.speech_facts: each fact may be missing."""

    reference_sec: Range
    rms_dbfs: Range
    leading_silence_sec: Range
    trailing_silence_sec: Range
    sec_per_letter: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0


class CorpusForm(Form):
    """corpus.json. What only reports show may be missing."""

    format_version: int
    index: File
    shards: list[File]
    codec: CodecForm
    text_tokenizer: TokenizerForm
    layout: LayoutForm
    waveforms: dict[str, Any] | None = None
    settings: dict[str, Any] | None = None
    speech: Annotated[SpeechForm, Field(default_factory=SpeechForm)]
    hours: Amount | None = None
    lost_hours: dict[str, Amount] | None = None
    rows: dict[str, Count] | None = None
    clips: dict[str, Count] | None = None
    derived_clips: dict[str, Count] | None = None
    samples: dict[str, Count] | None = None
    speakers: dict[str, Count] | None = None
    digits: dict[str, Count] | None = None
    text_noise: dict[str, dict[str, Any]] | None = None
