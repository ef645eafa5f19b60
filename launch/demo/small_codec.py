"""A tiny real codec: Boson's HiggsAudioTokenizer and a HuBERT, random and small, saved as folders.

What the released codec's folder holds (config.json, model.pth) and what `--hubert` names. The codebooks are
spread as the features of real speech are, so that codes on speech are varied.
"""

import json
import tempfile
from pathlib import Path

import soundfile
import torch
from boson_multimodal.audio_processing.higgs_audio_tokenizer import HiggsAudioTokenizer
from transformers import HubertConfig, HubertModel

from launch.demo.arabic_speech import SENTENCES, VOICES, speak
from preprocess.codec.load import hubert_from

# What `build_codec` takes for the released codec's dimensions.
RELEASED_SIZE = {"ratios": (8, 5, 4, 2, 3), "dimension": 256}


def build_hubert(folder: Path, seed: int = 0, config: HubertConfig | None = None) -> Path:
    """Save a HuBERT of 2 layers; 768 wide and 320 samples a frame, because Boson's codec demands both.

    With HubertConfig() instead: one of the released size.
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
    seed: int = 0,
) -> Path:
    """Save a codec into `folder`, and its HuBERT into `hubert_folder` unless one is there."""
    if not (hubert_folder / "config.json").is_file():
        build_hubert(hubert_folder, seed)
    config = {
        "D": dimension,
        "ratios": list(ratios),
        "sample_rate": sample_rate_hz,
        "n_q": num_codebooks,
        "bins": codebook_size,
        "target_bandwidths": [0.5, 1, 1.5, 2],
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
    """[frames, dimension]: what the quantizer sees for a second of each voice."""
    for layer in codec.quantizer.vq.layers:
        layer._codebook.inited.fill_(1)  # else the first encode runs k-means from random picks
    features = []
    hook = codec.quantizer.register_forward_pre_hook(lambda module, inputs: features.append(inputs[0][0].T))
    with tempfile.TemporaryDirectory() as folder:
        paths = [f"{folder}/{speaker}.wav" for speaker, *_ in VOICES]
        speak([(path, SENTENCES[i], *voice[1:]) for i, (path, voice) in enumerate(zip(paths, VOICES, strict=True))])
        for path in paths:
            samples, rate = soundfile.read(path, dtype="float32", start=2000, frames=24000)
            codec.encode(samples, rate)
    hook.remove()
    return torch.cat(features)


def _spread_codebooks(codec: HiggsAudioTokenizer, features: torch.Tensor) -> None:
    """Draw each codebook from a normal distribution with the mean and covariance of what reaches it."""
    residual = features
    for layer in codec.quantizer.vq.layers:
        book = layer._codebook
        centred = residual - residual.mean(0)
        weights = torch.randn(book.codebook_size, len(residual)) / len(residual) ** 0.5
        book.embed.copy_(residual.mean(0) + 0.5 * weights @ centred)
        book.embed_avg.copy_(book.embed)
        residual = residual - book.decode(book.encode(residual))
