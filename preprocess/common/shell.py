"""Commands to print, as a person copies them into a shell."""

import shlex


def shell_line(*words: object) -> str:
    """The words of a command as one line: a path with a space or an apostrophe is quoted."""
    return shlex.join(str(word) for word in words)
