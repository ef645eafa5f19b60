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
import shutil
from pathlib import Path

from engine.checkpoint import ADAPTER_FILE
from engine.merging import read_header, weight_files
from engine.model import base_fingerprint
from preprocess.errors import InputError
from preprocess.layout import DEFAULT_SYSTEM_TEXT, NORMALISER_VERSION
from preprocess.shards import sha256_file

FACTS_FILE = "voice_training.json"
_DEFAULT_LAYOUT = {"system_text": DEFAULT_SYSTEM_TEXT, "normaliser_version": NORMALISER_VERSION}
_WEIGHT_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".gguf"}


def copy_other_files(base: Path, target: Path) -> None:
    """Config, tokenizer, index, licence: all of the base folder that is neither weights nor hidden."""
    for path in sorted(base.rglob("*")):
        relative = path.relative_to(base)
        hidden = any(part.startswith(".") for part in relative.parts)
        if path.is_file() and path.suffix not in _WEIGHT_SUFFIXES and not hidden:
            (target / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / relative)


def record_dtype(folder: Path, dtype: str) -> None:
    """Say in config.json and the shards' index what the weights are now; Boson's engine loads them so."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "torch_dtype": dtype}, indent=2) + "\n")
    index_path = folder / "model.safetensors.index.json"
    if index_path.is_file():
        index = json.loads(index_path.read_text())
        index["metadata"]["total_size"] = sum(
            entry["data_offsets"][1] - entry["data_offsets"][0]
            for path in weight_files(folder)
            for entry in read_header(path).values()
        )
        index_path.write_text(json.dumps(index, indent=2) + "\n")


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
    (folder / FACTS_FILE).write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_facts(folder: Path) -> dict:
    """voice_training.json of a merged folder; of another model's folder the default layout alone.

    Raises InputError where the file is broken.
    """
    path = folder / FACTS_FILE
    if not path.exists():
        return {"layout": _DEFAULT_LAYOUT}
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        facts["layout"]["system_text"], facts["layout"]["normaliser_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            str(path), f"no layout in it ({error!r})", "what launch.merge writes", "Merge the checkpoint again."
        ) from error
    return facts
