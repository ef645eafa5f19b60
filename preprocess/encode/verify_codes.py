"""Whether the codes in a corpus are those of Boson's own encode, on some of its clips, from their source files."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from boson_multimodal.audio_processing import higgs_audio_tokenizer as boson
from tqdm import tqdm

from preprocess.audio.decode import probe
from preprocess.audio.recording import Recording
from preprocess.codec.load import hubert_from, load_codec_of
from preprocess.common.errors import InputError
from preprocess.corpus.shards import Clip, Corpus
from preprocess.plan.respelled_names import find_on_disk

_AGAIN = "Encode again on this machine, without --reuse, and compare; if they differ still, report it."
_IN_PARQUET = re.compile(r"(.+\.parquet)#(\d+)\.(.+)", re.DOTALL)


def verify_codes(
    corpus: Corpus, codec: Path, hubert: Path, num_clips: int, audio_root: Path | None
) -> tuple[np.ndarray, list[InputError]]:
    """(share of equal codes of each codebook, a problem for each clip that differs or has no source any more).

    Clips are chosen by the corpus's seed, copies made noisy left out. A whole file is given to Boson's encode by its
    path; a part of a file, a row of Parquet and what only ffmpeg reads, as the samples that it decodes to. Shares
    are nan where no clip was compared. Raises InputError for another codec, and without `audio_root` where the
    corpus names its sources by relative paths.
    """
    _, facts = load_codec_of(corpus, codec, hubert)
    clips = [corpus.clip(row) for row in choose(corpus, num_clips)]
    sources = [_source(clip, audio_root) for clip in clips]
    torch.set_num_threads(1)  # as the workers that encoded
    with hubert_from(hubert):
        tokenizer = boson.load_higgs_audio_tokenizer(str(codec), device="cpu")
    equal, total, problems = np.zeros(facts.num_codebooks), 0, []
    for clip, source in tqdm(list(zip(clips, sources, strict=True)), desc="codes", unit="clip", leave=False):
        where = f"{corpus.folder}[{clip.key}]"
        try:
            _check_source(where, source, clip)
            expected = _encode(tokenizer, source)
        except InputError as error:
            problems.append(error)
            continue
        total += clip.codes.shape[1]
        if clip.codes.shape != expected.shape:
            problems.append(InputError(where, f"codes of shape {clip.codes.shape}", f"{expected.shape}", _AGAIN))
            continue
        same = clip.codes == expected
        equal += same.sum(axis=1)
        if not same.all():
            found = f"{same.size - same.sum()} of {same.size} codes that differ"
            problems.append(InputError(where, found, f"those of Boson's encode of {source}", _AGAIN))
    return equal / total if total else np.full(facts.num_codebooks, np.nan), problems


def choose(corpus: Corpus, num_clips: int) -> Sequence[int]:
    """Index rows of `num_clips` recordings, or of all if there are fewer."""
    seed = corpus.info["settings"]["seed"]
    columns = (corpus.index.column(name).to_pylist() for name in ("key", "derived_from"))
    recordings = [(key, row) for row, (key, origin) in enumerate(zip(*columns, strict=True)) if origin is None]
    recordings.sort(key=lambda item: hashlib.sha256(f"{seed}:verify:{item[0]}".encode()).digest())
    return sorted(row for _, row in recordings[:num_clips])


def _source(clip: Clip, audio_root: Path | None) -> Recording:
    """Where a clip's audio lies, be it there or not. Raises InputError where that is not known."""
    part = clip.meta.get("start_sec"), clip.meta.get("end_sec")
    name = clip.meta["source"].removesuffix(str(Recording("", *part)))
    parquet = _IN_PARQUET.fullmatch(name)
    name, embedded = (parquet[1], (int(parquet[2]), parquet[3])) if parquet else (name, ())
    if audio_root is None and not Path(name).is_absolute():
        raise InputError("--audio-root", "nothing", f"the folder that {name} lies under", "Name that folder.")
    path = (audio_root or Path()) / name
    return Recording(str(path if path.is_file() else find_on_disk(path) or path), *part, *embedded)


def _check_source(where: str, source: Recording, clip: Clip) -> None:
    """Raise InputError for a file that is gone, or is another one now."""
    if not Path(source.path).is_file():
        raise InputError(where, f"no source {source.path}", "the file it was made of", "Correct --audio-root.")
    sha256, before = source.sha256(), clip.meta["source_sha256"]
    if sha256 != before:
        expected = f"{before[:12]}, as it was when it was encoded"
        raise InputError(where, f"source {source.path} with sha256 {sha256[:12]}", expected, "Encode it again.")


def _encode(tokenizer: boson.HiggsAudioTokenizer, source: Recording) -> np.ndarray:
    path = Path(source.path)
    if source == Recording(source.path) and not probe(path).by_ffmpeg:
        return tokenizer.encode(str(path)).cpu().numpy()
    audio = source.decode()
    return tokenizer.encode(audio.waveform, audio.sample_rate_hz).cpu().numpy()
