"""A printed command is one line, which a shell reads as the words that were meant."""

import shlex
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from preprocess.common.shell import shell_line


@given(st.lists(st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=8), max_size=5))
def test_a_shell_reads_the_words_that_were_given(words):
    line = shell_line("command", *words)
    assert shlex.split(line) == ["command", *words]
    assert len(line.splitlines()) == 1


def test_paths_and_numbers_are_words():
    assert shell_line("run", "--out", Path("it's here"), 3) == """run --out 'it'"'"'s here' 3"""
    assert shell_line("run", "--out", Path("runs/first")) == "run --out runs/first"
