"""voice_training.json, a record in a merged folder: what the model was trained on.

layout                    name, system text and normaliser version: generation uses the same ones;
                          keep_system if rows had system texts of their own,
                          allow_marks if their texts could have marks for sounds
speech                    what the corpus sounds like: generation warns about what differs from it
training                  how the checkpoint came to be: base on the hub, step, last validation, data, hardware;
                          what is not known is left out
adapter_sha256            the checkpoint
earlier_adapters          sha256 of those that the base had merged into it before, the first one first
base_fingerprint          the base model
codec_fingerprint         the codec of the corpora; null for an adapter that was trained elsewhere
corpus_fingerprints       one per corpus; null likewise
"""

import os
from pathlib import Path

from engine.checkpoint.checkpoint import ADAPTER_FILE
from engine.checkpoint.state_form import DataForm, OriginForm, ValidationForm
from engine.model.fingerprint import base_fingerprint
from preprocess.common.files import sha256_file
from preprocess.common.json_file import JsonObject, read_file
from preprocess.common.record import Form, read_record, write_record
from preprocess.corpus.corpus_record import Count, LayoutForm, Sha256, SpeechForm
from preprocess.corpus.dialogue import DEFAULT_SYSTEM_TEXT
from preprocess.corpus.text import NORMALISER_VERSION

FACTS_FILE = "voice_training.json"
_DEFAULT_LAYOUT = {"system_text": DEFAULT_SYSTEM_TEXT, "normaliser_version": NORMALISER_VERSION}


class TrainingForm(Form):
    """How a checkpoint came to be, as far as its state.json says."""

    base: OriginForm
    step: Count | None = None
    total_steps: Count = 0
    validation: ValidationForm | None = None
    data: DataForm | None = None
    hardware: str | None = None


class FactsForm(Form):
    """The values of voice_training.json and their types."""

    layout: LayoutForm
    speech: SpeechForm
    training: TrainingForm
    adapter_sha256: Sha256
    earlier_adapters: list[Sha256]
    base_fingerprint: str
    codec_fingerprint: str | None
    corpus_fingerprints: list[str] | None


def write_facts(folder: Path, checkpoint: Path, base: Path, state: JsonObject, origin: JsonObject) -> JsonObject:
    """Write voice_training.json, and return it.

    state: the checkpoint's state.json, {} for a plain adapter. origin: of the base, see engine.base.hub_origin.
    """
    identity = state.get("identity", {})
    known = {key: state[key] for key in ("step", "total_steps", "validation", "data", "hardware") if key in state}
    facts: JsonObject = {
        "layout": state.get("layout", _DEFAULT_LAYOUT),
        "speech": state.get("speech", {}),
        "training": {"base": origin, **known},
        "adapter_sha256": sha256_file(checkpoint / ADAPTER_FILE),
        "earlier_adapters": merged_adapters(base),
        "base_fingerprint": base_fingerprint(base),
        "codec_fingerprint": identity.get("codec_fingerprint"),
        "corpus_fingerprints": identity.get("corpus_fingerprints"),
    }
    write_record(folder / FACTS_FILE, facts)
    return facts


def merged_adapters(folder: Path) -> list[str]:
    """sha256 of each adapter that was merged into a model folder, in order; [] for a base as it was released."""
    facts = read_facts(folder)
    return [*facts["earlier_adapters"], facts["adapter_sha256"]] if "adapter_sha256" in facts else []


def read_facts(folder: Path) -> JsonObject:
    """voice_training.json of a merged folder; for any other model folder only the default layout.

    Raises InputError if the file is broken.
    """
    path, expected, action = folder / FACTS_FILE, "what launch.merge writes", "Merge the checkpoint again."
    if not os.path.exists(path):  # Path.exists raises an error if the folder may not be read
        return {"layout": _DEFAULT_LAYOUT}
    return read_record(str(path), read_file(path, expected, action), FactsForm, action)
