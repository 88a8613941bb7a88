"""Long work shows what it is at: a bar on a terminal, a line each half minute elsewhere."""

import gc
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from small_experiments import finish, planned

from common import signs_of_life
from experiments import worker
from experiments.cells import Cell
from experiments.progress import Progress
from experiments.scheduler import run_cells


class Lines(list):
    """What was said; `wait_for` holds until a text was."""

    def __init__(self):
        self.said = threading.Condition()

    def __call__(self, line: str):
        with self.said:
            self.append(line)
            self.said.notify_all()

    def wait_for(self, text: str):
        with self.said:
            assert self.said.wait_for(lambda: any(text in line for line in self), timeout=30)


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines come at once instead of each half minute."""
    assert signs_of_life.SECONDS_BETWEEN_LINES == 30
    monkeypatch.setattr(signs_of_life, "SECONDS_BETWEEN_LINES", 0.001)


def test_lines_tell_what_is_done_and_how_long_the_rest_takes(often, monkeypatch: pytest.MonkeyPatch):
    lines, now = Lines(), [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Progress(lines) as progress:
        progress.at("RTE · luna · seed 1: reading the data")
        now[0] += 65
        lines.wait_for("    RTE · luna · seed 1: reading the data (1 min 05 s)")
        progress.at("training", 40, 1000)  # as after an evaluation
        now[0] += 20
        progress.at("training", 60, 1000)
        lines.wait_for("    training: 60 of 1,000, 15 min 40 s left")
        progress.at("evaluation", 9, 10)
        now[0] += 10
        progress.at("evaluation", 1, 10)  # the next one
        now[0] += 10
        progress.at("evaluation", 2, 10)
        lines.wait_for("    evaluation: 2 of 10, 1 min 20 s left")
        assert not any("9 of 10" in line for line in lines)


def test_short_work_says_nothing():
    lines = Lines()
    with Progress(lines) as progress:
        progress.at("training", 1, 2)
    assert lines == []


def test_a_bar_on_a_terminal(capsys: pytest.CaptureFixture):
    with Progress(None) as progress:
        progress.at("training", 1, 4)
        progress.at("training", 4, 4)
        progress.at("reading")
    out = capsys.readouterr()
    assert out.out == "" and "training:  25%" in out.err


def test_cells_that_take_long_say_so(often, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lines = Lines()
    monkeypatch.setattr(worker.Worker, "say", lambda self, line: lines(line))
    monkeypatch.setattr(worker, "WAIT", 0.001)
    monkeypatch.setattr(gc, "collect", lambda: None)

    def train(cell: Cell, init_from: Path | None, say: Callable, on_progress: Callable) -> dict:
        on_progress("evaluation", 1, 3)
        on_progress("evaluation", 2, 3)
        lines.wait_for(f"{cell}: evaluation: 2 of 3, ")
        return finish(cell, 0.5)

    cells = planned(tmp_path, ["cola"], ["a"])
    elsewhere = cells[1].take()
    assert elsewhere is not None
    thread = threading.Thread(target=run_cells, args=(cells, train))
    thread.start()
    lines.wait_for("    waiting for other processes, which are to end CoLA · a · seed 2 first (")
    elsewhere.release()
    thread.join(30)
    assert all(cell.result() is not None for cell in cells)
