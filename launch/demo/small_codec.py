"""A small codec with random weights: Boson's HiggsAudioTokenizer and its HuBERT, saved as folders.

The folders have the files of the released ones: config.json and model.pth, and what `--hubert` names. The codebooks
are drawn with the mean and covariance of features of real speech, so that speech gives varied codes.
"""

import json
import tempfile
from pathlib import Path

import soundfile
import torch
from boson_multimodal.audio_processing.higgs_audio_tokenizer import HiggsAudioTokenizer
from transformers import HubertConfig, HubertModel

from launch.demo.arabic_speech import SENTENCES, VOICES, save_speech
from preprocess.codec.load import hubert_from

# Arguments of `build_codec` for the dimensions of the released codec.
RELEASED_SIZE = {"ratios": (8, 5, 4, 2, 3), "dimension": 256}


def build_hubert(folder: Path, seed: int = 0, config: HubertConfig | None = None) -> Path:
    """Save a HuBERT of 2 layers, or of `config` (HubertConfig() has the released size), and return its folder.

    It is 768 wide with 320 samples per frame, because Boson's codec requires both.
    """
    config = config or HubertConfig(
        hidden_size=768,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        conv_dim=(32,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=16,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        HubertModel(config).save_pretrained(folder)
    return folder


def build_codec(
    folder: Path,
    hubert_folder: Path,
    *,
    num_codebooks: int = 8,
    codebook_size: int = 1024,
    ratios: tuple[int, ...] = (8, 5, 6, 4),
    sample_rate_hz: int = 24000,
    dimension: int = 64,
    codebook_dim: int | None = None,
    seed: int = 0,
) -> Path:
    """Save a codec on the HuBERT in `hubert_folder` into `folder`, and return `folder`."""
    config = {
        "D": dimension,
        "ratios": list(ratios),
        "sample_rate": sample_rate_hz,
        "n_q": num_codebooks,
        "bins": codebook_size,
        "target_bandwidths": [0.5, 1, 1.5, 2],
        **({"codebook_dim": codebook_dim} if codebook_dim else {}),
    }
    with torch.random.fork_rng(devices=[]), hubert_from(hubert_folder):
        torch.manual_seed(seed)
        codec = HiggsAudioTokenizer(**config, device="cpu").eval()
        _spread_codebooks(codec, _features(codec))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    torch.save(codec.state_dict(), folder / "model.pth")
    return folder


def _features(codec: HiggsAudioTokenizer) -> torch.Tensor:
    """Input of the quantizer [frames, dimension] for one second of each voice."""
    for layer in codec.quantizer.vq.layers:
        layer._codebook.inited.fill_(1)  # otherwise the first encode runs k-means from random picks
    features = []
    hook = codec.quantizer.register_forward_pre_hook(lambda module, inputs: features.append(inputs[0][0].T))
    with tempfile.TemporaryDirectory() as folder:
        paths = [f"{folder}/{speaker}.wav" for speaker, *_ in VOICES]
        utterances = zip(paths, SENTENCES, VOICES, strict=False)
        save_speech([(path, text, *voice[1:]) for path, text, voice in utterances])
        for path in paths:
            samples, rate = soundfile.read(path, dtype="float32", start=2000, frames=24000)
            codec.encode(samples, rate)
    hook.remove()
    return torch.cat(features)


def _spread_codebooks(codec: HiggsAudioTokenizer, features: torch.Tensor) -> None:
    """Draw each codebook from a normal distribution around the mean of the residuals that it quantizes.

    A random mixture of centred residuals has their covariance; half of it keeps the entries inside their cloud.
    """
    residual = features
    for layer in codec.quantizer.vq.layers:
        book = layer._codebook
        projected = layer.project_in(residual)
        weights = torch.randn(book.codebook_size, len(residual)) / len(residual) ** 0.5
        book.embed.copy_(projected.mean(0) + 0.5 * weights @ (projected - projected.mean(0)))
        book.embed_avg.copy_(book.embed)
        residual = residual - layer.project_out(book.decode(book.encode(projected)))
