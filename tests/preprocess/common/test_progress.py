"""Progress: a bar where a person watches, plain lines in a log file."""

import sys

import pytest

from preprocess.common import progress
from preprocess.common.progress import show_progress, with_progress


@pytest.fixture
def clock(monkeypatch):
    """Seconds that the tests add to: {"sec": 0.0}."""
    now = {"sec": 0.0}
    monkeypatch.setattr(progress.time, "monotonic", lambda: now["sec"])
    return now


def test_a_log_file_gets_a_plain_line_per_minute_and_one_at_the_end(clock, capsys):
    with show_progress("encoding", 10, "h", decimals=2) as advance:
        for _ in range(9):
            clock["sec"] += 25
            advance(1, "3.0x real time")
        advance(-0.5, "2.9x real time")
    assert capsys.readouterr().err.splitlines() == [
        "encoding: 30%, 3.00 of 10.00 h in 1 min, 3.0x real time",
        "encoding: 60%, 6.00 of 10.00 h in 2 min, 3.0x real time",
        "encoding: 90%, 9.00 of 10.00 h in 4 min, 3.0x real time",
        "encoding: 85%, 8.50 of 10.00 h in 4 min, 2.9x real time",
    ]


def test_a_log_file_gets_nothing_of_what_takes_less_than_a_minute(clock, capsys):
    assert list(with_progress(range(1000), 1000, "headers", "files")) == list(range(1000))
    clock["sec"] += 59
    assert capsys.readouterr() == ("", "")


def test_more_than_was_expected_is_no_more_than_all(clock, capsys):
    with show_progress("encoding", 2, "h") as advance:
        clock["sec"] += 60
        advance(3)
    assert capsys.readouterr().err == "encoding: 100%, 3 of 2 h in 1 min\n" * 2


def test_work_that_stops_in_the_middle_says_no_end(clock, capsys):
    def stopped(item):
        clock["sec"] += 60
        if item:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        [stopped(item) for item in with_progress([0, 1], 2, "encoding", "h")]
    assert capsys.readouterr().err == "encoding: 50%, 1 of 2 h in 1 min\n"


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert list(with_progress("abc", 3, "headers", "files")) == list("abc")
    drawn = capsys.readouterr().err
    assert "headers: " in drawn
    assert "/3 files [" in drawn
    assert "\r" in drawn
