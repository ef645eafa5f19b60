"""Where a model folder comes from on the Hugging Face hub, by what `hf download` leaves: a name for others to use."""

import re
from pathlib import Path

from preprocess.common.json_file import JsonObject
from preprocess.corpus.base_model import BASE_ID, BASE_REVISION

_REVISION = re.compile(r"[0-9a-f]{40}")
_SNAPSHOT = re.compile(r"models--([\w.-]+?)--([\w.-]+)")


def hub_origin(folder: Path, given: str | None = None) -> JsonObject:
    """{"id": "bosonai/...", "revision": a commit}, each None where it is unknown.

    given: "ORG/NAME" or "ORG/NAME@REVISION", which counts more than what is found. `hf download --local-dir` keeps
    the revision beside the files, without the name; in the hub's cache, the path names both.
    """
    found: JsonObject = {"id": None, "revision": None}
    path = folder.resolve()
    snapshot = _SNAPSHOT.fullmatch(path.parent.parent.name) if path.parent.name == "snapshots" else None
    if snapshot:
        found = {"id": f"{snapshot[1]}/{snapshot[2]}", "revision": path.name}
    metadata = path / ".cache" / "huggingface" / "download" / "config.json.metadata"
    if metadata.is_file():
        first = metadata.read_text(errors="replace")[:100].split("\n")[0]
        found["revision"] = first if _REVISION.fullmatch(first) else None
    if found["revision"] == BASE_REVISION:
        found["id"] = BASE_ID
    if given:
        name, _, revision = given.partition("@")
        found = {"id": name, "revision": revision or (found["revision"] if found["id"] in (None, name) else None)}
    return found
