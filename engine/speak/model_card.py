"""The README.md of a checkpoint or a merged folder: what it is, how it was trained, how to load it.

It begins with the fields that the Hugging Face hub reads. Nothing in it names a place on the training machine.
"""

import json
from typing import Any, Literal

from preprocess.common.json_file import JsonObject, flatten

Kind = Literal["adapter", "boson", "transformers"]

_WHAT = {
    "adapter": "A LoRA adapter for Higgs Audio v2, in PEFT's form under the module names of `boson_multimodal`.",
    "boson": "Higgs Audio v2 with a LoRA adapter merged into it, in the layout of `boson_multimodal`.",
    "transformers": "Higgs Audio v2 with a LoRA adapter merged into it, in the layout of transformers 5.",
}
_LOAD = {
    "adapter": """\
```python
from boson_multimodal.model.higgs_audio import HiggsAudioModel
from peft import PeftModel

model = PeftModel.from_pretrained(HiggsAudioModel.from_pretrained(BASE), ADAPTER)
```""",
    "boson": """\
```python
from boson_multimodal.serve.serve_engine import HiggsAudioServeEngine

engine = HiggsAudioServeEngine(FOLDER, CODEC, device="cuda")
```

Clone a voice with a conversation of four turns: the system text, the transcript of the reference (user), its audio
(assistant), the text to speak (user).""",
    "transformers": """\
```python
from transformers import AutoProcessor, HiggsAudioV2ForConditionalGeneration

processor = AutoProcessor.from_pretrained(FOLDER)
processor.audio_tokenizer.pad = 320  # as in training: its own 480 gives half of all recordings other codes
model = HiggsAudioV2ForConditionalGeneration.from_pretrained(FOLDER)
```

The chat template writes the prompt of training: a system message, then turns of user (text) and assistant (audio).
For training on, load with `use_text_head=True`; transformers drops the text head otherwise.""",
}
_LICENCE = """\
## Licence and consent

The licence of the base model holds for this one too. Clone only voices whose owners have agreed to it, and say of
synthetic speech that it is synthetic."""


def model_card(kind: Kind, training: JsonObject, recipe: JsonObject, system_text: str) -> str:
    """Markdown with the hub's YAML head. training: as in voice_training.json; what it lacks is left out."""
    base = training.get("base") or {}
    head: dict[str, Any] = {
        "license": "other",
        "pipeline_tag": "text-to-speech",
        "tags": ["voice-cloning", "higgs-audio-v2", *(["lora"] if kind == "adapter" else [])],
    }
    library = {"adapter": "peft", "transformers": "transformers"}.get(kind)
    head |= {"library_name": library} if library else {}
    if base.get("id"):
        head |= {"base_model": base["id"], "base_model_relation": "adapter" if kind == "adapter" else "finetune"}
    lines = ["---", *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in head.items()), "---", ""]
    lines += ["# Higgs Audio v2, trained to clone voices", "", _WHAT[kind], ""]
    lines += _table(("training", ""), describe_training(training) | {"system text": system_text})
    lines += ["## Load", "", _LOAD[kind], ""]
    if recipe:
        lines += ["## Recipe", "", *_table(("key", "value"), flatten(recipe))]
    return "\n".join([*lines, _LICENCE, ""])


def describe_training(training: JsonObject) -> dict[str, str]:
    """{what: words} of what is known about how a checkpoint came to be."""
    base, data = training.get("base") or {}, training.get("data") or {}
    words = {
        "base": " at revision ".join(part for part in (base.get("id"), base.get("revision")) if part) or "unknown"
    }
    if training.get("step") is not None:
        words["step"] = f"{training['step']:,} of {training.get('total_steps', 0):,}"
    if validation := training.get("validation"):
        losses = ", ".join(
            f"{name} {value:.4f}" for name, value in validation.items() if name != "step" and value is not None
        )
        words["validation"] = f"{losses} (after step {validation['step']:,}; losses in nats)"
    if data.get("hours") is not None:
        words["data"] = f"{data['hours']:,.1f} hours of speech"
    if data.get("speakers"):
        words["speakers"] = ", ".join(f"{count:,} {split}" for split, count in data["speakers"].items())
    if training.get("hardware"):
        words["hardware"] = training["hardware"]
    return words


def _table(head: tuple[str, str], rows: JsonObject) -> list[str]:
    cells = [head, ("---", "---"), *((key, _cell(value)) for key, value in rows.items())]
    return [*(f"| {left} | {right} |" for left, right in cells), ""]


def _cell(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.replace("|", "\\|").replace("\n", " ")
