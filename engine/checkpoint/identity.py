"""A run's identity: the facts that must stay the same when it resumes, as opposed to those that may change."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from preprocess.common.errors import InputError
from preprocess.common.json_file import JsonObject, flatten

# No run can go on with other weights, codes or shapes. The other facts of the identity determine the order of the
# samples; --allow-change lets them differ.
_NEVER_CHANGES = ("base", "codec", "lora")


class Change(NamedTuple):
    """A fact whose value differs between a checkpoint and this command."""

    name: str
    was: Any
    now: Any


def find_changes(before: JsonObject, now: JsonObject) -> list[Change]:
    """The facts that differ, nested ones under their dotted names; a missing fact is None."""
    old, new = flatten(before), flatten(now)
    keys = dict.fromkeys([*new, *old])
    return [Change(fact_name(key), old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)]


def refuse_unknown_changes(names: Sequence[str], identity: JsonObject) -> None:
    """Raise InputError if --allow-change has a name that is unknown, or of a fact that can't change."""
    known = sorted(name for name in map(fact_name, flatten(identity)) if not _is_fixed(name))
    unknown = [given for given in names if given not in known]
    if unknown:
        raise InputError(
            "--allow-change",
            ", ".join(unknown),
            f"some of {', '.join(known)}",
            "Correct it; base, codec and LoRA can't change: --init-adapter begins a new run from the weights alone.",
        )


def refuse_other_run(
    newest: Path, found: JsonObject, identity: JsonObject, allow_change: Sequence[str]
) -> list[Change]:
    """The changes from the identity `found` in checkpoint `newest` to `identity`, if `allow_change` names them all.

    Raises InputError about those that it does not name.
    """
    changes = find_changes(found, identity)
    refused = [change for change in changes if change.name not in allow_change]
    if refused:
        names = [change.name for change in refused]
        allow = f"allow the change with --allow-change {','.join(names)} (another order of samples from here on), or "
        raise InputError(
            f"{newest}: {', '.join(names)}",
            "; ".join(f"{name} {shorten_value(was)} in the checkpoint" for name, was, _ in refused),
            "; ".join(f"{name} {shorten_value(now)}, as this command says" for name, _, now in refused),
            f"Resume with the base, corpus and recipe of the run, or {'' if any(map(_is_fixed, names)) else allow}"
            "begin a new run in another --out, with this one's weights (--init-adapter) or without.",
        )
    return changes


def find_free_changes(state: JsonObject, facts: JsonObject) -> list[Change]:
    """What differs among the facts that may change without asking: the recipe outside the identity, and the ranks."""
    identity = {key.rpartition(".")[2] for key in flatten(facts["identity"])}
    return [
        *(c for c in find_changes(state["recipe"], facts["recipe"]) if c.name.rpartition(".")[2] not in identity),
        *find_changes({"world_size": state["world_size"]}, {"world_size": facts["world_size"]}),
    ]


def _is_fixed(name: str) -> bool:
    return name.partition(".")[0] in _NEVER_CHANGES


def fact_name(key: str) -> str:
    """The command line's name of a fact: base, codec, corpus, lora.rank, max_tokens, data.repeat, ..."""
    return re.sub("_fingerprints?$", "", key)


def shorten_value(value: Any) -> str:
    """A value for a message: a text, such as a fingerprint, cut to 12 letters."""
    if isinstance(value, list):
        return f"[{', '.join(shorten_value(item) for item in value)}]"
    return value[:12] if isinstance(value, str) else str(value)
