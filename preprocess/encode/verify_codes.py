"""Compare the codes of some clips of a corpus with Boson's own encode of their source files."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
import torch
from boson_multimodal.audio_processing import higgs_audio_tokenizer as boson

from preprocess.audio.reader import CANT_READ
from preprocess.audio.recording import Recording
from preprocess.codec.load import load_codec_of, open_codec
from preprocess.common.errors import InputError
from preprocess.common.json_file import JsonObject
from preprocess.common.progress import with_progress
from preprocess.corpus.shards import Clip, Corpus
from preprocess.encode.reuse import PLACE_FIELDS
from preprocess.plan.respelled_names import find_on_disk

_RE_ENCODE = "Encode again on this machine, without --reuse, and compare; if codes still differ, report it."
_IN_PARQUET = re.compile(r"(.+\.parquet)#(\d+)\.(.+)", re.DOTALL)


def verify_codes(
    corpus: Corpus, codec: Path, hubert: Path, num_clips: int, audio_root: Path | None
) -> tuple[npt.NDArray[np.float64], list[InputError]]:
    """(share of equal codes per codebook, one problem per clip that differs or whose source is missing or changed).

    Clips are drawn by the corpus's seed, noisy copies left out. Boson's encode gets a whole file by its path; a part
    of a file, a row of Parquet and what only ffmpeg reads as decoded samples. Shares are nan where no clip was
    compared. Raises InputError for another codec than the corpus's, and without `audio_root` where the corpus names
    its sources by relative paths.
    """
    _, facts = load_codec_of(corpus, codec, hubert)
    clips = [corpus.clip(row) for row in choose_rows(corpus, num_clips)]
    sources = [_source(clip, audio_root) for clip in clips]
    torch.set_num_threads(1)  # as in the workers that encoded
    tokenizer = open_codec(codec, hubert)
    equal, num_frames, problems = np.zeros(facts.num_codebooks), 0, []
    for clip, source in with_progress(zip(clips, sources, strict=True), len(clips), "codes", "clips"):
        where = f"{corpus.folder}[{clip.key}]"
        try:
            _check_source(where, source, clip)
            expected = _encode(tokenizer, source)
        except InputError as error:
            problems.append(error)
            continue
        num_frames += clip.codes.shape[1]
        if clip.codes.shape != expected.shape:
            problems.append(InputError(where, f"codes of shape {clip.codes.shape}", f"{expected.shape}", _RE_ENCODE))
            continue
        same = clip.codes == expected
        equal += same.sum(axis=1)
        if not same.all():
            found = f"{same.size - same.sum()} of {same.size} codes that differ"
            problems.append(InputError(where, found, f"those of Boson's encode of {source}", _RE_ENCODE))
    return equal / num_frames if num_frames else np.full(facts.num_codebooks, np.nan), problems


def choose_rows(corpus: Corpus, num_clips: int) -> Sequence[int]:
    """Index rows of `num_clips` recordings drawn by the corpus's seed, or of all where there are fewer."""
    seed = corpus.info["settings"]["seed"]
    columns = (corpus.index.column(name).to_pylist() for name in ("key", "derived_from"))
    recordings = [(key, row) for row, (key, origin) in enumerate(zip(*columns, strict=True)) if origin is None]
    recordings.sort(key=lambda item: hashlib.sha256(f"{seed}:verify:{item[0]}".encode()).digest())
    return sorted(row for _, row in recordings[:num_clips])


def _source(clip: Clip, audio_root: Path | None) -> Recording:
    """The recording that a clip was made of; its file may be missing. Raises InputError without a needed folder."""
    part: JsonObject = {name: clip.meta.get(name) for name in PLACE_FIELDS}
    name = clip.meta["source"].removesuffix(str(Recording("")._replace(**part)))
    parquet = _IN_PARQUET.fullmatch(name)
    if parquet:
        name, part["row"], part["column"] = parquet[1], int(parquet[2]), parquet[3]
    if audio_root is None and not Path(name).is_absolute():
        raise InputError("--audio-root", "nothing", f"the folder that {name} lies under", "Name that folder.")
    path = (audio_root or Path()) / name
    return Recording(str(path if path.is_file() else find_on_disk(path) or path))._replace(**part)


def _check_source(where: str, source: Recording, clip: Clip) -> None:
    """Raise InputError for a file that is missing or has changed."""
    if not Path(source.path).is_file():
        raise InputError(where, f"no source {source.path}", "the file it was made of", "Correct --audio-root.")
    sha256, before = source.sha256(), clip.meta["source_sha256"]
    if sha256 != before:
        expected = f"{before[:12]}, as it was when it was encoded"
        raise InputError(where, f"source {source.path} with sha256 {sha256[:12]}", expected, "Encode it again.")


def _encode(tokenizer: boson.HiggsAudioTokenizer, source: Recording) -> npt.NDArray[Any]:
    """Codes [codebooks, frames]."""
    path = Path(source.path)
    audio = source.decode()
    if source == Recording(source.path) and _num_samples(path) == len(audio.waveform):
        codes = tokenizer.encode(str(path))
    else:  # Boson's reader can't take a part, and stops before the end of some files
        codes = tokenizer.encode(audio.waveform, audio.sample_rate_hz)
    return np.asarray(codes.cpu())


def _num_samples(path: Path) -> int:
    """How many samples Boson's reader gets of a file; 0 where libsndfile can't read it."""
    try:
        return len(soundfile.read(path)[0])
    except CANT_READ:
        return 0
