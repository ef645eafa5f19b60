"""All audio streams of a file's bytes, one behind the other."""

from preprocess.audio.held import adts, chunked, containers, flac, mpeg, ogg, plain
from preprocess.audio.held.stream import Data, Stream, skip_tags

_WALKS = (chunked.walk, plain.walk, flac.walk, ogg.walk, containers.walk, adts.walk, mpeg.walk)  # two search: last


def find_streams(data: Data) -> list[Stream]:
    """The streams of a file; [] for a format that none of the walks knows.

    Tags and zeros before, between and behind them are skipped. A stream ends where its own format says, or at the
    next one that is joined to it.
    """
    streams: list[Stream] = []
    at = 0
    while at < len(data):
        stream = containers.walk(data, at)  # an MP4 begins with zeros
        if stream is None:
            at = skip_tags(data, at)
            stream = next((found for walk in _WALKS if (found := walk(data, at))), None)
        if stream is None:
            break
        streams.append(stream)
        at = stream.stop
    return streams
