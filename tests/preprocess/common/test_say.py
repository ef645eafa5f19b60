"""What is printed: no text of a stranger moves the cursor, hides a word or adds a line, and Arabic stays readable."""

import os
import subprocess
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess.common.errors import InputError, Rejected, exit_on_input_error
from preprocess.common.say import say, say_lines, visible
from tests.fixtures.steps import ROOT

ARABIC = "السلام\u200cعليكم \u200f(١٢٣)\u200e \u061cنعم"
HOSTILE = [
    "\x1b[2J",
    "\x1b]52;c;cm0=\x07",
    "a\rb",
    "a\nerror: all is well",
    "\u202egnp.exe",
    "\u2066x\u2069",
    "\x9b31m",
]
HOSTILE += ["\udcff.wav", "\u2028", "\x00", "\x7f", "\x08\x08"]


def shows_all(text):
    """Whether each character of a text is one that a terminal shows or that Arabic needs."""
    kinds = {
        unicodedata.category(character) for character in text if character not in "\u200c\u200d\u200e\u200f\u061c"
    }
    return not kinds & {"Cc", "Cs", "Zl", "Zp"} and not set(text) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067")


@given(st.text() | st.text(st.sampled_from("".join(HOSTILE) + "اب")))
def test_any_text_becomes_one_line_that_hides_nothing(text):
    assert shows_all(visible(text))
    assert visible(visible(text)) == visible(text)


def test_arabic_with_its_marks_is_left_as_it_is(capsys):
    say(ARABIC)
    assert capsys.readouterr().out == f"{ARABIC}\n"


@pytest.mark.parametrize("text", HOSTILE)
def test_a_name_that_is_printed_is_shown_and_nothing_more(text, capsys):
    say(f"speaker {text}")
    say(f"speaker {text}", error=True)
    say_lines(f"two\nlines {text}".replace("a\ne", "a"))
    out, err = capsys.readouterr()
    assert out.count("\n") == 3
    assert err.count("\n") == 1
    assert shows_all(out.replace("\n", ""))
    assert shows_all(err.replace("\n", ""))


@pytest.mark.parametrize("text", HOSTILE)
def test_an_error_about_a_stranger_s_name_is_one_line(text, capsys):
    def main():
        raise InputError(f"m.csv[{text}]", f"speaker {text}", "a name", "Correct it.")

    with pytest.raises(SystemExit):
        exit_on_input_error(main)
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert shows_all(err.replace("\n", ""))
    record = Rejected("failed", "no_speaker", text, text, "a name", "Correct it.").record()
    assert all(map(shows_all, record.values()))


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize("how", ["the disk is full", "who reads has gone"])
def test_a_line_that_can_not_be_written_ends_no_work(how, stream, tmp_path):
    """As a rank runs, `python -u`: its log on a full disk, or piped into a program that ends."""
    code = f"from preprocess.common.say import say\nfor n in range(3): say(n, error={stream == 'stderr'})\n"
    code += "open('done', 'w').close()"
    if how == "the disk is full":
        output = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, output = os.pipe()
        os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-u", "-c", code],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=False,
            **{stream: output},
        )
    finally:
        os.close(output)
    assert done.returncode == 0
    assert (tmp_path / "done").exists()
