"""Proof of a merge: the merged folder's logits against those of base + adapter, as PEFT runs them."""

import dataclasses
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from boson_multimodal.data_collator.higgs_audio_collator import HiggsAudioBatchInput
from boson_multimodal.model.higgs_audio import HiggsAudioModel
from peft import PeftModel

from engine.base.trainable_base import read_trainable_base
from engine.batch.sample import build_sample, collate
from engine.merge.weights import DTYPES, read_header, weight_files
from engine.model.weights import load_base
from preprocess.corpus.base_model import has_audio_tower
from preprocess.corpus.dialogue import DEFAULT_SYSTEM_TEXT, canonical_dialogue
from preprocess.corpus.shards import Clip

# fp32 logits of one model computed by two orders of additions: measured below 2e-6 of their norm.
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class MergeCheck:
    """How the merged folder's logits compare with base + adapter's, all computed in fp32.

    difference: norm of the difference as a share of the norm of base + adapter's logits.
    kept: share of what the adapter does to the base's logits that the merged folder does too; rounding to bf16
    loses changes below half a unit of a weight's last place. 1.0 where the adapter does nothing.
    """

    difference: float
    kept: float


@torch.no_grad()
def check_merge(base: Path, adapter: Path, merged: Path) -> MergeCheck:
    """Compare on a random voice-cloning prompt; raises RuntimeError if `merged` is not base + adapter, rounded.

    Two models are loaded one after the other, in fp32: 4 bytes a parameter of the base, and four short forwards.
    Rounded weights are compared with PEFT's merge of the whole model rounded in the same way, so that rounding
    widens no tolerance; where nothing was rounded, with base + adapter itself as well.
    """
    prompt = random_prompt(base)
    model = PeftModel.from_pretrained(load_base(base, torch.float32, "--base"), adapter).eval()
    live = _logits(model.get_base_model(), prompt)
    with model.disable_adapter():
        untouched = _logits(model.get_base_model(), prompt)
    dtypes = {
        name: DTYPES.get(entry["dtype"]) for path in weight_files(merged) for name, entry in read_header(path).items()
    }
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
                f"merged logits differ from {name} by {difference:.1e} of their norm ({_TOLERANCE:.0e})"
            )
    effect = live - untouched
    kept = float((found - untouched) @ effect / (effect @ effect)) if effect.any() else 1.0
    return MergeCheck(difference=float((found - live).norm() / live.norm()), kept=kept)


def random_prompt(base: Path, num_frames: int = 8) -> HiggsAudioBatchInput:
    """A sample in the layout of training with random codes: text positions and audio columns of two turns.

    A base with an audio tower hears the reference too, as half a second of noise.
    """
    model = read_trainable_base(base, "--base")
    config = model.config
    rng = np.random.default_rng(0)
    noise = io.BytesIO()
    soundfile.write(noise, 0.1 * rng.standard_normal(8000), 16000, format="FLAC")
    reference, target = (
        Clip(
            key,
            {},
            rng.integers(config.audio_codebook_size, size=(config.audio_num_codebooks, num_frames)),
            noise.getvalue(),
        )
        for key in ("reference", "target")
    )
    sample = build_sample(
        model.tokenizer,
        config,
        DEFAULT_SYSTEM_TEXT,
        canonical_dialogue("three", [(reference.key, "one two")]),
        target,
        [reference],
        conditioning="both" if has_audio_tower(config) else "codes",
    )
    return collate([sample], config)


def _logits(model: HiggsAudioModel, prompt: HiggsAudioBatchInput) -> torch.Tensor:
    """All text and audio logits, flat, in fp64."""
    output = model(**{field.name: getattr(prompt, field.name) for field in dataclasses.fields(prompt)})
    return torch.cat([output.logits.flatten(), output.audio_logits.flatten()]).double()
