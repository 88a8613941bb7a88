"""Scheduling: each cell once, whatever fails, is killed or runs beside; what a fine-tuning does is replaced here."""

import errno
import gc
import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cell_folders import edit_result

from common.config.yaml_config import ConfigurationError
from common.errors import UserError
from experiments import scheduler
from experiments.cells import Cell, plan_cells
from experiments.results import ERROR, MODEL, RESULT
from experiments.scheduler import delete_unwanted_models, run_cells
from finetune_glue.configuration import GlueConfig
from finetune_glue.data.task_data import TaskData


SCORES = {1: 0.5, 2: 0.9, 3: 0.7}  # of the seeds


def config(folder: Path, **changes) -> GlueConfig:
    values = {"output_dir": str(folder), "model": ["a", "b"], "tasks": "cola,rte", "seeds": 2, "data": "x"}
    return GlueConfig(**(values | changes))


def finish(cell: Cell, **values):
    """Write what a fine-tuning leaves."""
    (cell.folder / MODEL).mkdir(parents=True)
    score = SCORES[cell.seed] + 0.01 * (cell.setting == "learning_rate=2")
    result = {"score": score, "seconds": 2.0, "metrics": {}} | values
    cell.finish(result)
    return result


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """The cells that were run, and where they started."""
    calls: list[tuple] = []

    def run_cell(cell: Cell, data: TaskData, init_from: Path | None, **_) -> dict:
        calls.append((cell.task.name, cell.model, cell.setting, cell.seed, init_from))
        return finish(cell)

    monkeypatch.setattr(scheduler, "run_cell", run_cell)
    monkeypatch.setattr(scheduler, "load_task", lambda task, source: TaskData(task, {}, source))
    monkeypatch.setattr(scheduler, "WAIT", 0.01)
    monkeypatch.setattr(gc, "collect", lambda: None)  # takes a second where so much is imported
    return calls


def test_cells_are_run_seed_by_seed_and_once(ran: list, tmp_path: Path, capsys):
    cells = plan_cells(config(tmp_path))
    run_cells(config(tmp_path), cells)
    assert [call[:2] + call[3:4] for call in ran] == [
        (task, model, seed) for seed in (1, 2) for task in ("cola", "rte") for model in "ab"
    ]
    assert [str(cell.folder.relative_to(tmp_path)) for cell in cells[:2]] == [
        "cells/a/cola/default/seed-1",
        "cells/b/cola/default/seed-1",
    ]
    out = capsys.readouterr().out
    assert "cell 1 of 8: CoLA · a · seed 1\n    matthews correlation 50.0 in 2 s\n" in out
    assert "cell 8 of 8: RTE · b · seed 2 (about 2 s left)" in out
    ran.clear()
    run_cells(config(tmp_path), plan_cells(config(tmp_path)))
    assert ran == []
    assert capsys.readouterr().out == "8 of 8 cells are finished already\n"
    run_cells(config(tmp_path, seeds=3), plan_cells(config(tmp_path, seeds=3)))
    assert {call[3] for call in ran} == {3}


def test_cells_share_what_is_tokenised(ran: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    working, given = scheduler.run_cell, []
    monkeypatch.setattr(
        scheduler, "run_cell", lambda *all, **key: given.append(key["encoded"]) or working(*all, **key)
    )
    run_cells(config(tmp_path), plan_cells(config(tmp_path)))
    assert len(given) == 8 and all(encoded is given[0] for encoded in given)


@pytest.mark.parametrize("error", [UserError("there is no such file"), RuntimeError("out of memory")])
def test_failed_cell_does_not_end_the_others_and_is_run_again(
    ran: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, error: Exception
):
    working = scheduler.run_cell

    def run_cell(cell: Cell, *arguments, **options) -> dict:
        if cell.task.name == "cola" and cell.model == "a":
            raise error
        return working(cell, *arguments, **options)

    monkeypatch.setattr(scheduler, "run_cell", run_cell)
    cells = plan_cells(config(tmp_path))
    run_cells(config(tmp_path), cells)
    assert len(ran) == 6
    record = json.loads((cells[0].folder / ERROR).read_text(encoding="utf-8"))
    assert record["error"] == str(error) and type(error).__name__ in record["traceback"]
    assert f"failed: {error}\n    {cells[0].folder / ERROR} has the details" in capsys.readouterr().out
    monkeypatch.setattr(scheduler, "run_cell", working)
    run_cells(config(tmp_path), plan_cells(config(tmp_path)))
    assert len(ran) == 8
    assert not list(tmp_path.rglob(ERROR))


def test_a_full_disk_ends_the_run(ran: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def run_cell(cell: Cell, *_, **__):
        ran.append(cell)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(scheduler, "run_cell", run_cell)
    cells = plan_cells(config(tmp_path))
    with pytest.raises(OSError, match="No space left"):
        run_cells(config(tmp_path), cells)
    assert len(ran) == 1 and (cells[0].folder / ERROR).exists()
    with pytest.raises(SystemExit, match="2"), monkeypatch.context() as patch:
        patch.setattr(scheduler, "_end_with_parent", lambda: None)
        patch.setattr(signal, "signal", lambda *_: None)
        scheduler._work(config(tmp_path), cells, time.time())


def test_data_that_cannot_be_read_fail_their_cells_alone(ran: list, tmp_path: Path, monkeypatch, capsys):
    def load(task, source):
        if task.name == "cola":
            raise UserError("CoLA/train.tsv, line 3: 2 columns")
        return TaskData(task, {}, source, ("rte: 3 rows were left out",))

    monkeypatch.setattr(scheduler, "load_task", load)
    run_cells(config(tmp_path), plan_cells(config(tmp_path)))
    assert len(ran) == 4
    out = capsys.readouterr().out
    assert out.count("failed: CoLA/train.tsv, line 3: 2 columns") == 4
    assert out.count("rte: 3 rows were left out") == 1


@pytest.mark.parametrize("content", ['{"score": 0.5, "met', "[]", ""])
def test_damaged_result_is_said_once_and_its_cell_run_again(ran: list, tmp_path: Path, content: str, capsys):
    cells = plan_cells(config(tmp_path))
    run_cells(config(tmp_path), cells)
    (cells[3].folder / RESULT).write_text(content, encoding="utf-8")
    ran.clear()
    capsys.readouterr()
    run_cells(config(tmp_path), cells)
    assert [call[:2] for call in ran] == [("rte", "b")]
    assert str(cells[3].folder / RESULT) in capsys.readouterr().out


def test_a_score_that_is_no_number_is_a_failure(ran: list, tmp_path: Path):
    cells = plan_cells(config(tmp_path, seeds=3))
    run_cells(config(tmp_path, seeds=3), cells)
    edit_result(cells[0].folder, score=float("nan"))
    assert cells[0].result() is None
    delete_unwanted_models(config(tmp_path, seeds=3), cells)
    ran.clear()
    run_cells(config(tmp_path, seeds=3), cells)
    assert [call[:2] for call in ran] == [("cola", "a")]


def test_results_without_their_seconds(ran: list, tmp_path: Path):
    cells = plan_cells(config(tmp_path))
    run_cells(config(tmp_path), cells)
    edit_result(cells[0].folder, seconds=...)
    shutil.rmtree(cells[1].folder)
    run_cells(config(tmp_path), cells)
    assert len(ran) == 9


def test_result_of_a_hyper_parameter_that_is_none_today(ran: list, tmp_path: Path):
    cells = plan_cells(config(tmp_path))
    run_cells(config(tmp_path), cells)
    edit_result(cells[0].folder, hyperparameters=cells[0].identity()["hyperparameters"] | {"layer_decay": 0.9})
    with pytest.raises(ConfigurationError, match="made with layer_decay 0.9, not None: name another"):
        cells[0].result()


def test_result_of_other_hyper_parameters_is_not_taken_for_this_one(ran: list, tmp_path: Path):
    run_cells(config(tmp_path), plan_cells(config(tmp_path)))
    other = config(tmp_path, hyperparameters={"learning_rate": 1e-3})
    with pytest.raises(ConfigurationError, match="made with learning_rate 2e-05, not 0.001: name another output_"):
        run_cells(other, plan_cells(other))


def test_calls_side_by_side_share_the_cells(ran: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    log = tmp_path / "log"
    monkeypatch.setattr(scheduler, "run_cell", lambda cell, *_, **__: _logged(cell, log))
    cells = plan_cells(config(tmp_path))
    processes = [_fork(run_cells, config(tmp_path), cells) for _ in range(3)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    lines = log.read_text(encoding="utf-8").split()
    assert sorted(line.partition(":")[2] for line in lines) == sorted(str(cell.folder) for cell in cells)
    assert len({line.partition(":")[0] for line in lines}) > 1


def test_killed_call_loses_one_cell(ran: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cells = plan_cells(config(tmp_path))
    working = scheduler.run_cell

    def run_cell(cell: Cell, *arguments, **options) -> dict:
        if cell.folder == cells[2].folder:
            os.kill(os.getpid(), signal.SIGKILL)
        return working(cell, *arguments, **options)

    monkeypatch.setattr(scheduler, "run_cell", run_cell)
    process = _fork(run_cells, config(tmp_path), cells)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert [cell.result() is not None for cell in cells] == [True, True] + 6 * [False]
    ran.clear()
    monkeypatch.setattr(scheduler, "run_cell", working)
    run_cells(config(tmp_path), cells)
    assert len(ran) == 6 and all(cell.result() is not None for cell in cells)


def test_workers_end_with_the_call_that_is_killed(ran: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr(multiprocessing, "get_context", lambda kind: fork)  # spawned ones would not know `run_cell`
    monkeypatch.setattr(scheduler, "run_cell", lambda cell, *_, **__: (os.write(writable, b"."), time.sleep(3)))
    readable, writable = os.pipe()
    cells = plan_cells(config(tmp_path))
    process = _fork(run_cells, config(tmp_path, side_by_side=2), cells)
    os.close(writable)
    with open(readable, "rb") as started:
        assert started.read(2) == b".."  # both are at work
        process.kill()
        process.join()
        assert started.read() == b""  # none of them holds the pipe any more


def _fork(work: Callable, *arguments) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    process.start()
    return process


def _logged(cell: Cell, log: Path) -> dict:
    with open(log, "a", encoding="utf-8") as file:
        file.write(f"{os.getpid()}:{cell.folder}\n")
    time.sleep(0.05)
    return finish(cell)


def test_of_each_setting_one_model_stays_and_in_the_end_of_each_task(ran: list, tmp_path: Path):
    grid = config(tmp_path, model="a", tasks="rte", seeds=3, grid={"learning_rate": [1.0, 2.0]})
    cells = plan_cells(grid)
    run_cells(grid, cells)
    kept = [str(path.parent.relative_to(tmp_path / "cells/a/rte")) for path in sorted(tmp_path.rglob(MODEL))]
    assert kept == ["learning_rate=1/seed-2", "learning_rate=2/seed-2"]
    delete_unwanted_models(grid, cells)
    assert [path.parent.parent.name for path in tmp_path.rglob(MODEL)] == ["learning_rate=2"]


@pytest.mark.parametrize(("save_models", "count"), [("all", 2), ("none", 0)])
def test_all_models_stay_or_none(ran: list, tmp_path: Path, save_models: str, count: int):
    kept = config(tmp_path, model="a", tasks="rte", save_models=save_models)
    run_cells(kept, plan_cells(kept))
    delete_unwanted_models(kept, plan_cells(kept))
    assert len(list(tmp_path.rglob(MODEL))) == count


def test_transfer_starts_from_the_best_model_of_mnli(ran: list, tmp_path: Path):
    transfer = config(tmp_path, tasks="mnli,rte,cola", transfer=True, seeds=3)
    run_cells(transfer, plan_cells(transfer))
    assert [call[0] for call in ran[:6]] == ["mnli"] * 6
    started = {(call[0], call[1]): call[4] for call in ran}
    assert started["rte", "b"] == tmp_path / "cells/b/mnli/default/seed-2" / MODEL
    assert started["cola", "b"] is None and started["mnli", "a"] is None


def test_transfer_without_a_model_of_mnli(ran: list, tmp_path: Path, monkeypatch, capsys):
    def run_cell(cell: Cell, *_, **__) -> dict:
        raise RuntimeError("no")

    monkeypatch.setattr(scheduler, "run_cell", run_cell)
    transfer = config(tmp_path, model="a", tasks="mnli,rte", transfer=True, seeds=1)
    run_cells(transfer, plan_cells(transfer))
    assert "failed: there is no mnli model of a to start from: its cells have failed." in capsys.readouterr().out
