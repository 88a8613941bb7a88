"""Long work says how far it is: in lines where no terminal shows a bar."""

import sys
import time

import pytest

from common.signs_of_life import with_progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Stands still but for what a test adds to its only item."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def work(clock: list[float], seconds: float, **options) -> None:
    for item in with_progress(range(100), "model: text", "batches", **options):
        assert item < 100
        clock[0] += seconds


def test_a_line_each_half_minute_where_there_is_no_terminal(clock, capsys):
    work(clock, seconds=1.0, total=100)
    assert capsys.readouterr() == (
        "",
        "model: text: 30 of 100 batches, 1 min 10 s left\n"
        "model: text: 60 of 100 batches, 40 s left\n"
        "model: text: 90 of 100 batches, 10 s left\n",
    )


def test_work_of_unknown_length(clock, capsys):
    lines: list[str] = []
    work(clock, seconds=1.2, size=lambda item: 2.5, say=lines.append)
    assert lines[0] == "model: text: 65 batches in 31 s"
    assert len(lines) == 3 and capsys.readouterr() == ("", "")


def test_short_work_says_nothing(clock, capsys):
    work(clock, seconds=0.2, total=100)
    assert capsys.readouterr() == ("", "")


def test_a_bar_on_a_terminal(clock, capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    work(clock, seconds=1.0, total=100)
    output, errors = capsys.readouterr()
    assert output == "" and "model: text:   0%" in errors and "left" not in errors
