"""Sound from codes: Boson's codec decodes what the model is trained on, so that one can listen to it."""

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import torch
from boson_multimodal.audio_processing.higgs_audio_tokenizer import HiggsAudioTokenizer

from preprocess.codec.load import load_codec_of
from preprocess.common.files import write_output
from preprocess.corpus.shards import Clip, Corpus


def decode_codes(tokenizer: HiggsAudioTokenizer, codes: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """float32 [samples] at the codec's rate from codes [codebooks, frames], as Boson's serve engine decodes them."""
    with torch.inference_mode():
        waveform: npt.NDArray[np.float32] = tokenizer.decode(torch.from_numpy(codes.astype(np.int64))[None])[0, 0]
    return waveform


def write_decoded(
    corpus: Corpus, target: Clip, references: list[Clip], codec: Path, hubert: Path, out: Path
) -> list[Path]:
    """Write the codes of a training sample as 16-bit WAV files at the codec's rate; returns their paths.

    The target's file is `out`. A reference's file is beside it, with "_reference" in its name, or "_reference_1",
    "_reference_2" and so on if there are several. Raises InputError if the corpus was made with another codec.
    """
    tokenizer, facts = load_codec_of(corpus, codec, hubert)
    numbers = [""] if len(references) == 1 else [f"_{number}" for number in range(1, len(references) + 1)]
    paths = [out, *(out.with_name(f"{out.stem}_reference{number}{out.suffix}") for number in numbers)]
    for path, clip in zip(paths, [target, *references], strict=True):
        write_wav(path, decode_codes(tokenizer, clip.codes), facts.sample_rate_hz, "--audio")
    return paths


def write_wav(path: Path, waveform: npt.NDArray[np.float32], sample_rate_hz: int, flag: str = "--out") -> None:
    """Write `waveform` [samples] as a 16-bit WAV file, which `flag` named. Raises InputError if that fails."""
    data = io.BytesIO()
    soundfile.write(data, waveform, sample_rate_hz, format="WAV")
    write_output(path, data.getvalue(), flag)
