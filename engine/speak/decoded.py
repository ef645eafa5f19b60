"""The codes of a corpus as sound: Boson's codec decodes what the model is trained on, for the ear to judge."""

import io
from pathlib import Path

import numpy as np
import soundfile
import torch
from boson_multimodal.audio_processing.higgs_audio_tokenizer import HiggsAudioTokenizer

from preprocess.codec.load import load_codec_of
from preprocess.common.files import write_output
from preprocess.corpus.shards import Clip, Corpus


def decode_codes(tokenizer: HiggsAudioTokenizer, codes: np.ndarray) -> np.ndarray:
    """float32 [samples] at the codec's rate, of codes [codebooks, frames], as Boson's serve engine decodes them."""
    with torch.inference_mode():
        return tokenizer.decode(torch.from_numpy(codes.astype(np.int64))[None])[0, 0]


def write_decoded(
    corpus: Corpus, target: Clip, references: list[Clip], codec: Path, hubert: Path, out: Path
) -> list[Path]:
    """Write the codes of a training sample as WAV files, 16 bits at the codec's rate; returns their paths.

    The target's is `out`; a reference's lies beside it and has "_reference" in its name (_reference_1, _2 where there
    are several). Raises InputError for another codec than the corpus was made with.
    """
    tokenizer, facts = load_codec_of(corpus, codec, hubert)
    numbers = [""] if len(references) == 1 else [f"_{number}" for number in range(1, len(references) + 1)]
    beside = [out.with_name(f"{out.stem}_reference{number}{out.suffix}") for number in numbers]
    written = list(zip([out, *beside], [target, *references], strict=True))
    for path, clip in written:
        data = io.BytesIO()
        soundfile.write(data, decode_codes(tokenizer, clip.codes), facts.sample_rate_hz, format="WAV")
        write_output(path, data.getvalue(), "--audio")
    return [path for path, _ in written]
