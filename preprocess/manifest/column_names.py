"""How corpora call the fields of a row, and which column holds which field.

The fields are called `audio`, `text` and so on. --columns names the columns of a corpus that calls them otherwise;
names that well-known corpora and tools use (Common Voice, Hugging Face, VCTK, NeMo, Coqui) need no flag.
"""

import functools
from collections.abc import Mapping

from preprocess.common.errors import InputError, join_some

FIELDS = (
    *("audio", "text", "speaker", "language", "reference_audio", "reference_text", "id"),
    *("start", "end", "duration", "channel"),
)
OTHER_NAMES = {
    "audio": (
        *("path", "file_name", "file", "filename", "filepath", "file_path", "audiopath"),
        *("audio_filepath", "audio_path", "audio_file", "audio_filename", "audio_file_path", "audio_name"),
        *("wav", "wav_path", "wav_file", "wav_filename", "wav_filepath"),
    ),
    "text": (
        *("sentence", "transcription", "transcript", "transcripts", "sentences"),
        *("normalized_text", "normalised_text", "text_normalized", "text_normalised", "normalized_transcript"),
    ),
    "speaker": ("client_id", "speaker_id", "speaker_name", "spk", "spk_id", "spkr", "voice", "speakerid"),
    "language": ("locale", "lang", "language_id", "language_code", "lang_code", "lang_id"),
    "reference_audio": (
        *("ref_audio", "ref_audio_file", "ref_audio_path", "reference_audio_path", "ref_wav", "ref_path"),
        *("prompt_audio", "prompt_audio_path", "prompt_wav", "reference_path", "speaker_wav"),
    ),
    "reference_text": ("ref_text", "ref_transcript", "reference_transcript", "prompt_text", "prompt_transcript"),
    "id": ("utt_id", "utterance_id", "uttid", "utt", "clip_id", "segment_id"),
    "start": ("offset", "start_time", "start_sec", "begin", "begin_time", "onset"),
    "end": ("end_time", "end_sec", "stop", "stop_time"),
    "duration": ("duration_sec", "duration_seconds"),
    "channel": (),
}
_KNOWN = {*FIELDS, *(name for names in OTHER_NAMES.values() for name in names)}
# Times that are not seconds: read as nothing, a whole recording would stand under the text of a part.
_OTHER_TIMES = {
    f"{when}_{unit}"
    for when in ("start", "begin", "offset", "end", "stop", "start_time", "end_time")
    for unit in ("ms", "msec", "milliseconds", "sample", "samples", "frame", "frames")
}


def is_known(name: str) -> bool:
    """Whether a column of this name holds a field."""
    return name in _KNOWN


def parse_columns(text: str) -> dict[str, str]:
    """--columns as {field: column}. Raises InputError for anything but FIELD=COLUMN,FIELD=COLUMN."""
    pairs = [pair.partition("=") for pair in text.split(",") if pair.strip()]
    columns = {field.strip(): column.strip() for field, _, column in pairs}
    if len(columns) < len(pairs) or not all(columns.values()) or not columns.keys() <= set(FIELDS):
        raise InputError(
            "--columns",
            repr(text),
            f"FIELD=COLUMN,... with each FIELD once, of {', '.join(FIELDS)}",
            "For Common Voice: --columns audio=path,text=sentence,speaker=client_id,language=locale",
        )
    return columns


@functools.cache
def map_columns(names: tuple[str, ...], chosen: tuple[tuple[str, str], ...]) -> Mapping[str, str]:
    """{field: column} for a record with the columns `names`.

    A field's column is the chosen one, else the one with the field's name, else the one of OTHER_NAMES that is there.
    Raises InputError where two of OTHER_NAMES are there, and for times in another unit than seconds.
    """
    columns = dict(chosen)
    for field in FIELDS:
        others = [name for name in OTHER_NAMES[field] if name in names and name not in columns.values()]
        if field in columns or field in names or not others:
            columns.setdefault(field, field)
        elif len(others) == 1:
            columns[field] = others[0]
        else:
            raise InputError(
                f"columns {join_some(names)}",
                f"{len(others)} that may be the {field}: {', '.join(others)}",
                f"one that is the {field}",
                f"Choose, for example --columns {field}={others[0]}",
            )
    other_times = sorted(_OTHER_TIMES.intersection(names))
    if other_times and columns["start"] not in names and columns["end"] not in names:
        raise InputError(
            f"columns {join_some(names)}",
            f"times in another unit: {', '.join(other_times)}",
            "start and end in seconds",
            "Write them in seconds, as columns start and end.",
        )
    return columns
