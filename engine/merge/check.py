"""Proof of a merge: compares the merged folder's logits with those of base + adapter as PEFT runs them."""

import dataclasses
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from boson_multimodal.data_collator.higgs_audio_collator import HiggsAudioBatchInput
from boson_multimodal.dataset.chatml_dataset import ChatMLDatasetSample
from boson_multimodal.model.higgs_audio import HiggsAudioModel
from peft import PeftModel

from engine.base.trainable_base import read_trainable_base
from engine.batch.sample import build_sample, make_padded_batch
from engine.model.weight_files import DTYPES, stored_tensors
from engine.model.weights import load_base
from preprocess.corpus.base_model import has_audio_tower
from preprocess.corpus.dialogue import DEFAULT_SYSTEM_TEXT, canonical_dialogue
from preprocess.corpus.shards import Clip

# Share of the norm. Two orders of additions give one model fp32 logits that differ by less than 2e-6 (measured).
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class MergeCheck:
    """How the merged folder's logits compare with base + adapter's, all computed in fp32.

    difference: norm of the difference as a share of the norm of base + adapter's logits.
    kept: how much of the adapter's effect on the base's logits the merged folder still has, as a share. Rounding to
    bf16 loses changes below half a unit in the last place of a weight. 1.0 if the adapter has no effect.
    """

    difference: float
    kept: float


@torch.no_grad()
def check_merge(base: Path, adapter: Path, merged: Path) -> MergeCheck:
    """Compares on a random voice-cloning prompt. Raises RuntimeError if `merged` is not base + adapter, rounded.

    Loads two models in fp32, one after the other: 4 bytes per parameter of the base. Rounded weights are compared
    with PEFT's own merge of the whole model, rounded in the same way, so that the tolerance need not cover rounding.
    If nothing was rounded, they are compared with base + adapter itself as well.
    """
    prompt = random_prompt(base)
    model = PeftModel.from_pretrained(load_base(base, torch.float32, "--base"), adapter).eval()
    live = _logits(model.get_base_model(), prompt)
    with model.disable_adapter():
        untouched = _logits(model.get_base_model(), prompt)
    tensors = stored_tensors(read_trainable_base(merged))
    dtypes = {name: DTYPES[tensor.dtype] for name, tensor in tensors.items()}
    model = model.merge_and_unload()
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(dtypes[name]).float()
    expected = {"PEFT's own merge, rounded": _logits(model, prompt)}
    if set(dtypes.values()) <= {torch.float32, torch.float64}:
        expected["base + adapter"] = live
    del model

    found = _logits(load_base(merged, torch.float32).eval(), prompt)
    for name, logits in expected.items():
        difference = float((found - logits).norm() / logits.norm())
        if not difference <= _TOLERANCE:
            raise RuntimeError(
                f"merged logits differ from {name} by {difference:.1e} of their norm (at most {_TOLERANCE:.0e})"
            )
    effect = live - untouched
    kept = float((found - untouched) @ effect / (effect @ effect)) if effect.any() else 1.0
    return MergeCheck(difference=float((found - live).norm() / live.norm()), kept=kept)


def random_prompt(base: Path) -> HiggsAudioBatchInput:
    """A batch of one random sample."""
    return make_padded_batch([random_sample(base)], read_trainable_base(base, "--base").config)


def random_sample(base: Path, num_frames: int = 8) -> ChatMLDatasetSample:
    """A sample in the layout of training, with `num_frames` random codes for reference and target.

    A base with an audio tower also receives a waveform for the reference: half a second of noise.
    """
    model = read_trainable_base(base, "--base")
    config = model.config
    rng = np.random.default_rng(0)
    noise = io.BytesIO()
    soundfile.write(noise, 0.1 * rng.standard_normal(8000), 16000, format="FLAC")
    shape = (config.audio_num_codebooks, num_frames)
    reference, target = (
        Clip(key, {}, rng.integers(config.audio_codebook_size, size=shape).astype(np.uint16), noise.getvalue())
        for key in ("reference", "target")
    )
    return build_sample(
        model.tokenizer,
        config,
        DEFAULT_SYSTEM_TEXT,
        canonical_dialogue("three", [(reference.key, "one two")]),
        target,
        [reference],
        conditioning="both" if has_audio_tower(config) else "codes",
    )


def _logits(model: HiggsAudioModel, prompt: HiggsAudioBatchInput) -> torch.Tensor:
    """fp64 [values]: all text and audio logits in a row."""
    output = model(**{field.name: getattr(prompt, field.name) for field in dataclasses.fields(prompt)})
    return torch.cat([output.logits.flatten(), output.audio_logits.flatten()]).double()
