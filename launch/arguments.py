"""What the command lines of several commands have in common."""

import argparse
from collections.abc import Iterable

from preprocess.common.errors import InputError


def require_flags(arguments: argparse.Namespace, names: Iterable[str], example: str) -> None:
    """Raise InputError that names all flags among `names` without a value. argparse would show no example."""
    missing = [f"--{name.replace('_', '-')}" for name in names if not getattr(arguments, name)]
    if missing:
        raise InputError("command line", f"no {', '.join(missing)}", "all of them", f"For example: {example}")
