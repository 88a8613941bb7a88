"""Processes that share the cells of a run: one that is running, one that has failed, and one whose process was killed.

What a fine-tuning does is replaced here; the processes are real.
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

from experiments import scheduler
from experiments.cells import Cell, plan_cells
from experiments.results import ERROR, MODEL, read_results
from experiments.scheduler import run_cells
from finetune_glue import report
from finetune_glue.configuration import GlueConfig
from finetune_glue.data.task_data import TaskData


FORK = multiprocessing.get_context("fork")
SCORES = {1: 0.375, 2: 0.5, 3: 0.667}  # of the seeds
PATIENCE = 60.0  # seconds after which a test gives up


def config(folder: Path, **changes) -> GlueConfig:
    values = {"output_dir": str(folder), "model": "a", "tasks": "cola,rte", "seeds": 2, "data": "x"}
    return GlueConfig(**(values | changes))


def finish(cell: Cell, log: Path, init_from: Path | None):
    """Write what a fine-tuning leaves, and a line that says who has run it and where it started."""
    (cell.folder / MODEL).mkdir(parents=True)
    cell.finish({"score": SCORES[cell.seed], "seconds": 2.0, "metrics": {"validation": {"accuracy": 0.5}}})
    start = init_from.parent.name if init_from else "-"
    with open(log, "a", encoding="utf-8") as file:
        file.write(f"{os.getpid()} {cell.task.name} {cell.seed} {start}\n")


@pytest.fixture
def replaced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Callable[[Cell], None]], Path]:
    """Has cells finish at once, after a function that may wait, fail or end the process; gives the log."""
    monkeypatch.setattr(scheduler, "load_task", lambda task, source: TaskData(task, {}, source))
    monkeypatch.setattr(scheduler, "WAIT", 0.01)
    monkeypatch.setattr(gc, "collect", lambda: None)  # takes a second where so much is imported

    def replaced(before: Callable[[Cell], None]) -> Path:
        def run_cell(cell: Cell, data: TaskData, init_from: Path | None, **_) -> dict:
            before(cell)
            finish(cell, tmp_path / "log", init_from)
            result = cell.result()
            assert result is not None
            return result

        monkeypatch.setattr(scheduler, "run_cell", run_cell)
        return tmp_path / "log"

    return replaced


def started(work: Callable, *arguments) -> multiprocessing.process.BaseProcess:
    process = FORK.Process(target=work, args=arguments)
    process.start()
    return process


def exit_codes(*processes: multiprocessing.process.BaseProcess) -> list[int | None]:
    for process in processes:
        process.join(PATIENCE)
    return [process.exitcode for process in processes]


def call(config: GlueConfig):
    """What a call does with its cells; the exit code is that of run_glue.py."""
    cells = plan_cells(config)
    run_cells(config, cells)
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


def test_transfer_waits_for_a_cell_of_mnli_that_another_process_runs(replaced, all_at_work, tmp_path: Path):
    log = replaced(all_at_work(2, "mnli"))
    transfer = config(tmp_path, tasks="mnli,rte", transfer=True, seeds=3)
    assert exit_codes(*[started(call, transfer) for _ in range(2)]) == [0, 0]
    assert len(lines_of(log)) == 6 and len({line[0] for line in lines_of(log)}) == 2
    assert {tuple(line[1:]) for line in lines_of(log)} == {
        *(("mnli", str(seed), "-") for seed in (1, 2, 3)),
        *(("rte", str(seed), "seed-3") for seed in (1, 2, 3)),
    }


def test_a_call_waits_for_its_cells_that_others_run(replaced, all_at_work, tmp_path: Path):
    log = replaced(all_at_work(3, "rte"))
    shared = config(tmp_path, seeds=3)
    assert exit_codes(*[started(call, shared) for _ in range(3)]) == [0, 0, 0]
    assert len(lines_of(log)) == 6 and len({line[0] for line in lines_of(log)}) == 3


def test_a_running_cell_has_not_failed_for_a_report_in_the_meantime(replaced, tmp_path: Path, capsys):
    held, reported = FORK.Event(), FORK.Event()

    def before(cell: Cell):
        held.set()
        assert reported.wait(PATIENCE)

    replaced(before)
    running = config(tmp_path, tasks="rte", seeds=1)
    process = started(call, running)
    assert held.wait(PATIENCE)
    (group,) = read_results(tmp_path, planned=[cell.folder for cell in plan_cells(running)]).groups
    assert (len(group.failed), len(group.missing)) == (0, 1)
    report.write_report(config(tmp_path, tasks="cola", seeds=1), [])  # of other cells in the same folder
    assert "failed" not in capsys.readouterr().out
    reported.set()
    assert exit_codes(process) == [0]


def test_the_cell_of_a_killed_process_is_lost_and_taken_over(replaced, tmp_path: Path, capfd):
    held, go = FORK.Event(), FORK.Event()
    killed = FORK.Value("i", 0)

    def before(cell: Cell):
        if cell.task.name == "cola" and cell.seed == 1 and not held.is_set():
            killed.value = os.getpid()
            held.set()
            go.wait(PATIENCE)

    log = replaced(before)
    first = started(call, config(tmp_path))
    assert held.wait(PATIENCE)
    second = started(call, config(tmp_path))
    os.kill(killed.value, signal.SIGKILL)
    assert exit_codes(first, second) == [-signal.SIGKILL, 0]
    assert {tuple(line[1:3]) for line in lines_of(log)} == {(task, seed) for task in ("cola", "rte") for seed in "12"}
    assert f"CoLA · a · seed 1 was lost: process {killed.value} on" in capfd.readouterr().out
    assert not list(tmp_path.rglob("begun.json")) and not list(tmp_path.rglob(ERROR))


def test_a_cell_that_kills_two_processes_of_a_call_has_failed(replaced, tmp_path: Path, capfd):
    def before(cell: Cell):
        if cell.task.name == "cola":
            os.kill(os.getpid(), signal.SIGKILL)

    log = replaced(before)
    one_seed = config(tmp_path, seeds=1)
    cells = plan_cells(one_seed)
    beginning = time.time()
    calls = [started(scheduler.Worker(one_seed, cells, beginning).work) for _ in range(3)]
    assert sorted(exit_codes(*calls)) == [-signal.SIGKILL, -signal.SIGKILL, 0]
    assert [line[1] for line in lines_of(log)] == ["rte"]
    error = json.loads((cells[0].folder / ERROR).read_text(encoding="utf-8"))["error"]
    assert error.startswith("two processes that ran it were killed")
    # The next call tries again.
    replaced(lambda cell: None)
    assert exit_codes(started(call, one_seed)) == [0]


def test_a_cell_that_has_failed_elsewhere_is_not_run_again_by_the_same_call(replaced, tmp_path: Path):
    def before(cell: Cell):
        if cell.task.name == "cola":
            raise RuntimeError("out of memory")

    log = replaced(before)
    shared = config(tmp_path, seeds=1)
    cells = plan_cells(shared)
    beginning = time.time()
    for _ in range(2):
        scheduler.Worker(shared, cells, beginning).work()
    assert [line[1] for line in lines_of(log)] == ["rte"]
    assert cells[0].failed_after(beginning) and exit_codes(started(call, shared)) == [1]
