"""What makes a run itself: the facts a resume must share, told apart from those it may change."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from preprocess.common.errors import InputError

# What no run can go on without: other weights to add to, other codes, other shapes. All else that a checkpoint's
# `identity` names decides the order of the samples, and --allow-change lets it differ.
_NEVER_CHANGES = ("base", "codec", "lora")


def refuse_unknown_changes(names: Sequence[str], identity: dict) -> None:
    """Raise InputError for a name of --allow-change that is none, or that of a fact which can't change."""
    known = sorted(fact_name(key) for key in flatten(identity) if not _is_fixed(key))
    unknown = [given for given in names if given not in known]
    if unknown:
        raise InputError(
            "--allow-change",
            ", ".join(unknown),
            f"some of {', '.join(known)}",
            "Correct it; base, codec and LoRA can't change: --init-adapter begins a new run from the weights alone.",
        )


def refuse_other_run(
    newest: Path, found: dict, identity: dict, allow_change: Sequence[str]
) -> list[tuple[str, Any, Any]]:
    """The changes of `identity` that are allowed, as (name, was, now). Raises InputError naming all others."""
    changes = list(differences(flatten(found), flatten(identity)))
    refused = [change for change in changes if fact_name(change[0]) not in allow_change]
    if refused:
        if any(_is_fixed(key) for key, _, _ in refused):
            way = "begin a new run with its weights (--init-adapter) or without"
        else:
            names = ",".join(fact_name(key) for key, _, _ in refused)
            way = (
                f"allow the change with --allow-change {names} (another order of samples from here on), or begin anew"
            )
        raise InputError(
            f"{newest}: {', '.join(fact_name(key) for key, _, _ in refused)}",
            "; ".join(f"{fact_name(key)} {shorten(was)} in the checkpoint" for key, was, _ in refused),
            "; ".join(f"{fact_name(key)} {shorten(now)}, as this command says" for key, _, now in refused),
            f"Resume with the base, corpus and recipe of the run; or {way} in another --out.",
        )
    return [(fact_name(key), was, now) for key, was, now in changes]


def other_changes(state: dict, facts: dict) -> Iterator[tuple[str, Any, Any]]:
    """What a run may change without asking: all of the recipe that is not part of the identity, and the ranks."""
    identity = {key.rpartition(".")[2] for key in flatten(facts["identity"])}
    for key, was, now in differences(flatten(state["recipe"]), flatten(facts["recipe"])):
        if key.rpartition(".")[2] not in identity:
            yield key, was, now
    yield from differences({"world_size": state["world_size"]}, {"world_size": facts["world_size"]})


def flatten(nested: dict, prefix: str = "") -> dict[str, Any]:
    """{"lora.rank": 32, ...} of {"lora": {"rank": 32, ...}}."""
    pairs: dict[str, Any] = {}
    for key, value in nested.items():
        pairs |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return pairs


def differences(before: dict, now: dict) -> Iterator[tuple[str, Any, Any]]:
    """(key, before, now) of each key whose values differ."""
    keys = list(dict.fromkeys([*now, *before]))
    return ((key, before.get(key), now.get(key)) for key in keys if before.get(key) != now.get(key))


def _is_fixed(key: str) -> bool:
    return fact_name(key).partition(".")[0] in _NEVER_CHANGES


def fact_name(key: str) -> str:
    """What the command line calls a fact: base, codec, corpus, lora.rank, max_tokens, data.repeat, ..."""
    return re.sub("_fingerprints?$", "", key)


def shorten(value: Any) -> str:
    """A value for a message; of fingerprints their first letters."""
    if isinstance(value, list):
        return f"[{', '.join(shorten(item) for item in value)}]"
    return value[:12] if isinstance(value, str) else str(value)
