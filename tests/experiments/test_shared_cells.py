"""Processes that share the cells of a run: one that is running, one that has failed, and one whose process was killed.

The trainings take no time; the processes are real.
"""

import gc
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from small_experiments import SUITE, finish, planned

from experiments import worker
from experiments.cell_folder import ERROR
from experiments.cells import Cell, Notes
from experiments.results import read_results
from experiments.scheduler import run_cells
from experiments.worker import Train, Worker


FORK = multiprocessing.get_context("fork")
SCORES = {1: 0.375, 2: 0.5, 3: 0.667}  # of the seeds
PATIENCE = 60.0  # seconds after which a test gives up


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(worker, "WAIT", 0.01)
    monkeypatch.setattr(gc, "collect", lambda: None)  # takes a second where so much is imported


def training(log: Path, before: Callable[[Cell], object] = lambda cell: None) -> Train:
    """A training that takes no time, after a function that may wait, fail or end the process. It writes a line that
    says who has run the cell and where it started."""

    def train(cell: Cell, init_from: Path | None, say: Callable, on_progress: Callable) -> dict:
        before(cell)
        result = finish(cell, SCORES[cell.seed])
        with open(log, "a", encoding="utf-8") as file:
            start = init_from.parent.name if init_from else "-"
            file.write(f"{os.getpid()} {cell.task.name} {cell.seed} {start}\n")
        return result

    return train


def started(work: Callable, *arguments) -> multiprocessing.process.BaseProcess:
    process = FORK.Process(target=work, args=arguments)
    process.start()
    return process


def exit_codes(*processes: multiprocessing.process.BaseProcess) -> list[int | None]:
    for process in processes:
        process.join(PATIENCE)
    return [process.exitcode for process in processes]


def call(cells: list[Cell], train: Train):
    """What a call does with its cells; the exit code is that of run_glue.py."""
    run_cells(cells, train)
    os._exit(int(any(cell.result() is None for cell in cells)))


def lines_of(log: Path) -> list[list[str]]:
    return [line.split() for line in log.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def all_at_work(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, str], Callable[[Cell], None]]:
    """Has all calls begin a first cell before any ends one, and holds the last seed of a task until a call waits."""
    held, waiting = FORK.Event(), FORK.Event()
    monkeypatch.setattr(time, "sleep", lambda seconds: held.is_set() and waiting.set())

    def all_at_work(calls: int, task: str, seed: int = 3) -> Callable[[Cell], None]:
        together, begun = FORK.Barrier(calls), []

        def before(cell: Cell):
            if not begun:  # in this process
                begun.append(cell)
                together.wait(PATIENCE)
            if (cell.task.name, cell.seed) == (task, seed):
                held.set()
                waiting.wait(5.0)

        return before

    return all_at_work


def test_transfer_waits_for_a_cell_of_mnli_that_another_process_runs(all_at_work, tmp_path: Path):
    train = training(tmp_path / "log", all_at_work(2, "mnli"))
    cells = planned(tmp_path, ["mnli", "rte"], ["a"], seeds=3, transfer={"rte": "mnli"})
    assert exit_codes(*[started(call, cells, train) for _ in range(2)]) == [0, 0]
    lines = lines_of(tmp_path / "log")
    assert len(lines) == 6 and len({line[0] for line in lines}) == 2
    assert {tuple(line[1:]) for line in lines} == {
        *(("mnli", str(seed), "-") for seed in (1, 2, 3)),
        *(("rte", str(seed), "seed-3") for seed in (1, 2, 3)),
    }


def test_a_call_waits_for_its_cells_that_others_run(all_at_work, tmp_path: Path):
    train = training(tmp_path / "log", all_at_work(3, "rte"))
    cells = planned(tmp_path, models=["a"], seeds=3)
    assert exit_codes(*[started(call, cells, train) for _ in range(3)]) == [0, 0, 0]
    lines = lines_of(tmp_path / "log")
    assert len(lines) == 6 and len({line[0] for line in lines}) == 3


def test_a_running_cell_has_not_failed_for_a_report_in_the_meantime(tmp_path: Path):
    held, reported = FORK.Event(), FORK.Event()

    def before(cell: Cell):
        held.set()
        assert reported.wait(PATIENCE)

    cells = planned(tmp_path, ["rte"], ["a"], seeds=1)
    process = started(call, cells, training(tmp_path / "log", before))
    assert held.wait(PATIENCE)
    (group,) = read_results(tmp_path, SUITE, planned=[cell.folder for cell in cells]).groups
    assert (len(group.failed), len(group.missing)) == (0, 1)
    assert read_results(tmp_path, SUITE).groups == ()  # of a call with other cells
    reported.set()
    assert exit_codes(process) == [0]


def test_the_cell_of_a_killed_process_is_lost_and_taken_over(tmp_path: Path, capfd: pytest.CaptureFixture):
    held, go = FORK.Event(), FORK.Event()
    killed = FORK.Value("i", 0)

    def before(cell: Cell):
        if cell.task.name == "cola" and cell.seed == 1 and not held.is_set():
            killed.value = os.getpid()
            held.set()
            go.wait(PATIENCE)

    cells, train = planned(tmp_path, models=["a"]), training(tmp_path / "log", before)
    first = started(call, cells, train)
    assert held.wait(PATIENCE)
    second = started(call, cells, train)
    os.kill(killed.value, signal.SIGKILL)
    assert exit_codes(first, second) == [-signal.SIGKILL, 0]
    assert {tuple(line[1:3]) for line in lines_of(tmp_path / "log")} == {
        (task, seed) for task in ("cola", "rte") for seed in "12"
    }
    assert f"CoLA · a · seed 1 was lost: process {killed.value} on" in capfd.readouterr().out
    assert not list(tmp_path.rglob("begun.json")) and not list(tmp_path.rglob(ERROR))


def test_a_cell_that_kills_two_processes_of_a_call_has_failed(tmp_path: Path):
    def before(cell: Cell):
        if cell.task.name == "cola":
            os.kill(os.getpid(), signal.SIGKILL)

    cells = planned(tmp_path, models=["a"], seeds=1)
    beginning = Notes(cells)
    train = training(tmp_path / "log", before)
    calls = [started(Worker(cells, train, beginning).work) for _ in range(3)]
    assert sorted(exit_codes(*calls)) == [-signal.SIGKILL, -signal.SIGKILL, 0]
    assert [line[1] for line in lines_of(tmp_path / "log")] == ["rte"]
    error = json.loads((cells[0].folder / ERROR).read_text(encoding="utf-8"))["error"]
    assert error.startswith("two processes that ran it were killed")
    # The next call tries again.
    assert exit_codes(started(call, cells, training(tmp_path / "log"))) == [0]


def test_a_cell_that_has_failed_elsewhere_is_not_run_again_by_the_same_call(tmp_path: Path):
    def before(cell: Cell):
        if cell.task.name == "cola":
            raise RuntimeError("out of memory")

    cells = planned(tmp_path, models=["a"], seeds=1)
    beginning = Notes(cells)
    for _ in range(2):
        Worker(cells, training(tmp_path / "log", before), beginning).work()
    assert [line[1] for line in lines_of(tmp_path / "log")] == ["rte"]


@pytest.mark.parametrize("ahead", [-3600.0, 3600.0, 2.2e9])
def test_the_clock_of_the_file_server_does_not_decide_what_is_run(tmp_path: Path, ahead: float):
    """A failure of before is run again and one of this call is not, whatever time their notes have."""
    (cell,) = cells = planned(tmp_path, ["rte"], ["a"], seeds=1)

    def fail(cell: Cell):
        raise RuntimeError("out of memory")

    run_cells(cells, training(tmp_path / "log", fail))
    os.utime(cell.folder / ERROR, (time.time() + ahead,) * 2)
    before = Notes(cells)
    cell.fail("out of memory")  # by another process that shares the cells
    os.utime(cell.folder / ERROR, (time.time() + ahead + 1,) * 2)
    Worker(cells, training(tmp_path / "log"), before).work()
    assert cell.result() is None
    run_cells(cells, training(tmp_path / "log"))
    assert cell.result() is not None
