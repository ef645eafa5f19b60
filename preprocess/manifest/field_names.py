"""Which column holds which field: our names, those of --columns, and the names that well-known corpora use."""

import functools
from collections.abc import Iterator, Mapping

from preprocess.common.errors import InputError, join_some
from preprocess.common.json_file import JsonObject
from preprocess.manifest.values import is_channel

FIELDS = (
    *("audio", "text", "speaker", "language", "reference_audio", "reference_text"),
    *("id", "start", "end", "duration", "channel"),
)
# Common Voice, Hugging Face, VCTK, NeMo, lhotse, XTTS, DeepSpeech, VoxPopuli... Case and blanks make no difference.
OTHER_NAMES = {
    "audio": (
        *("path", "file_name", "file", "filename", "filepath", "file_path", "audio_filepath", "audio_file_path"),
        *("audio_path", "audio_file", "audio_filename", "audio_file_name", "wav", "wav_path", "wav_file"),
        *("wav_filename", "wav_filepath", "wav_file_path", "target_audio", "target_audio_path"),
    ),
    "text": (
        *("sentence", "transcription", "transcript", "normalized_text", "normalised_text", "text_normalized"),
        *("text_normalised", "normalized_transcript", "normalized_transcription", "target_text"),
    ),
    "speaker": (
        *("client_id", "speaker_id", "speaker_name", "speakerid", "spk", "spk_id", "spkid", "spk_name", "spkr"),
        *("spkr_id", "voice_id"),
    ),
    "language": ("locale", "lang", "language_code", "lang_code"),
    "reference_audio": (
        *("ref_audio", "ref_audio_file", "ref_audio_path", "ref_wav", "reference_audio_path", "reference_audio_file"),
        *("reference_wav", "prompt_audio", "prompt_audio_path", "prompt_wav", "audio_prompt"),
    ),
    "reference_text": (
        *("ref_text", "ref_transcript", "reference_transcript", "reference_transcription", "prompt_text"),
        "prompt_transcript",
    ),
    "id": ("utt_id", "utterance_id", "uttid", "utt", "segment_id", "clip_id", "sample_id"),
    "start": ("offset", "start_time", "start_sec", "start_s", "start_seconds", "begin", "begin_time"),
    "end": ("end_time", "end_sec", "end_s", "end_seconds", "stop", "stop_time"),
    "duration": ("duration_sec", "duration_s", "duration_seconds", "dur"),
}
# The text before somebody normalised it: the field's column only where no other name of the text is there.
_RAW_TEXTS = (
    *("text_original", "original_text", "text_raw", "raw_text", "raw_transcription", "raw_transcript"),
    *("raw_sentence", "text_no_preprocessing"),
)
_TIMES = ("start", "end", "duration")
_OTHER_TIMES = {
    f"{when}_{unit}"
    for when in ("start", "begin", "offset", "end", "stop", "start_time", "end_time")
    for unit in ("ms", "msec", "milliseconds", "sample", "samples", "frame", "frames")
}


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
def map_columns(
    names: tuple[str, ...], chosen: tuple[tuple[str, str], ...], embedded: bool = False
) -> Mapping[str, str]:
    """{field: column} for a record with the columns `names`.

    A field's column is the chosen one, else the one with the field's name, else the one of OTHER_NAMES that is there.
    embedded: the record's audio lies in its file; columns such as begin_time then say where it was cut from. Raises
    InputError where two of OTHER_NAMES are there, and for times in another unit than seconds.
    """
    columns = dict(chosen)
    for field in FIELDS:
        if field not in columns:
            columns[field] = _find_column(field, names, columns, embedded)
    if columns["start"] not in names:
        del columns["duration"]  # it only describes the file
        if columns["end"] not in names and not embedded:
            _refuse_other_times(names)
    return columns


def _refuse_other_times(names: tuple[str, ...]) -> None:
    """Raise InputError for times that are not in seconds: not read, they leave a whole file under a part's text."""
    found = [name for name in names if _folded(name) in _OTHER_TIMES]
    if found:
        raise InputError(
            f"columns {join_some(names)}",
            f"times in another unit: {', '.join(found)}",
            "start and end in seconds",
            "Write them in seconds, as columns start and end.",
        )


def _find_column(field: str, names: tuple[str, ...], columns: Mapping[str, str], embedded: bool) -> str:
    free = [name for name in names if name not in columns.values()]
    same = [name for name in free if _folded(name) == field]
    if field in names or (embedded and field in _TIMES):
        return field
    if field == "reference_text" and columns["reference_audio"] not in names:
        return field  # "prompt_text" alone says how to speak
    known = OTHER_NAMES.get(field, ())
    others = same or sorted((name for name in free if _folded(name) in known), key=lambda n: known.index(_folded(n)))
    if field == "text" and not others:
        others = [name for name in free if _folded(name) in _RAW_TEXTS]
    if len(others) > 1 and field != "id":  # an id only names the row
        raise InputError(
            f"columns {join_some(names)}",
            f"{len(others)} that may be the {field}: {', '.join(others)}",
            f"one that is the {field}",
            f"Choose, for example --columns {field}={others[0]}",
        )
    return others[0] if others else field


def _folded(name: str) -> str:
    return name.strip().lower().replace(" ", "_").replace("-", "_")


def unused_columns(record: JsonObject, columns: Mapping[str, str]) -> Iterator[str]:
    """The columns of a record that hold no field."""
    for name, value in record.items():
        is_words = name == columns["channel"] and isinstance(value, str) and not is_channel(value)
        if is_words or name not in columns.values():
            yield name
