"""The merged folder besides its weights: the base's other files, and voice_training.json, both sides of it.

voice_training.json
    layout                                  its name, system text and normaliser version: generation applies the same;
                                            keep_system where rows had system texts of their own
    speech                                  what the corpus sounds like: generation warns by it
    step, adapter_sha256                    the checkpoint
    base_, codec_fingerprint                what it was trained on; null for an adapter trained elsewhere
    corpus_fingerprints                     likewise, one a corpus
"""

import json
import os
from pathlib import Path

from engine.checkpoint.checkpoint import ADAPTER_FILE
from engine.model.weights import base_fingerprint
from preprocess.common.errors import InputError
from preprocess.common.files import sha256_file, write_json
from preprocess.corpus.dialogue import DEFAULT_SYSTEM_TEXT
from preprocess.corpus.text import NORMALISER_VERSION

FACTS_FILE = "voice_training.json"
_DEFAULT_LAYOUT = {"system_text": DEFAULT_SYSTEM_TEXT, "normaliser_version": NORMALISER_VERSION}


def write_facts(folder: Path, checkpoint: Path, base: Path, state: dict) -> None:
    """Write voice_training.json; `state` is the checkpoint's state.json, {} for a plain adapter."""
    identity = state.get("identity", {})
    facts = {
        "layout": state.get("layout", _DEFAULT_LAYOUT),
        "speech": state.get("speech", {}),
        "step": state.get("step"),
        "adapter_sha256": sha256_file(checkpoint / ADAPTER_FILE),
        "base_fingerprint": base_fingerprint(base),
        "codec_fingerprint": identity.get("codec_fingerprint"),
        "corpus_fingerprints": identity.get("corpus_fingerprints"),
    }
    write_json(folder / FACTS_FILE, facts, ensure_ascii=False)


def read_facts(folder: Path) -> dict:
    """voice_training.json of a merged folder; of another model's folder the default layout alone.

    Raises InputError where the file is broken.
    """
    path = folder / FACTS_FILE
    if not os.path.exists(path):  # Path.exists raises where the folder may not be read
        return {"layout": _DEFAULT_LAYOUT}
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        facts["layout"]["system_text"], facts["layout"]["normaliser_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            str(path), f"no layout in it ({error!r})", "what launch.merge writes", "Merge the checkpoint again."
        ) from error
    return facts
