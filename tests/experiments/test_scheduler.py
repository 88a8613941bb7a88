"""Scheduling: each cell once, whatever fails, is killed or runs beside; the trainings take no time."""

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
from small_experiments import Values, finish, planned

from common.checksums import digests
from common.config.yaml_config import ConfigurationError
from common.errors import UserError
from experiments import worker
from experiments.cell_folder import ERROR, MODEL, RESULT
from experiments.cells import BEGUN, Cell
from experiments.kept_models import delete_unwanted_models
from experiments.planning import check_cell_places, describe_plan
from experiments.scheduler import run_cells


SCORES = {1: 0.5, 2: 0.9, 3: 0.7}  # of the seeds
GRID = {"learning_rate=1": Values(1.0), "learning_rate=2": Values(2.0)}


class Training:
    """Finishes cells at once, and remembers which were run and where they started."""

    def __init__(self):
        self.calls: list[tuple] = []

    def __call__(self, cell: Cell, init_from: Path | None, say: Callable, on_progress: Callable) -> dict:
        self.calls.append((cell.task.name, cell.model, cell.setting, cell.seed, init_from))
        return finish(cell, SCORES[cell.seed] + 0.01 * (cell.setting == "learning_rate=2"))


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> Training:
    monkeypatch.setattr(worker, "WAIT", 0.01)
    monkeypatch.setattr(gc, "collect", lambda: None)  # takes a second where so much is imported
    return Training()


def test_cells_are_run_seed_by_seed_and_once(train: Training, tmp_path: Path, capsys):
    cells = planned(tmp_path)
    run_cells(cells, train)
    assert [call[:2] + call[3:4] for call in train.calls] == [
        (task, model, seed) for seed in (1, 2) for task in ("cola", "rte") for model in "ab"
    ]
    assert [str(cell.folder.relative_to(tmp_path)) for cell in cells[:2]] == [
        "cells/a/cola/default/seed-1",
        "cells/b/cola/default/seed-1",
    ]
    out = capsys.readouterr().out
    assert "cell 1 of 8: CoLA · a · seed 1\n    matthews correlation 50.0 in 2 s\n" in out
    assert "cell 8 of 8: RTE · b · seed 2 (about 2 s left)" in out
    train.calls.clear()
    run_cells(planned(tmp_path), train)
    assert train.calls == []
    assert capsys.readouterr().out == "8 of 8 cells are finished already\n"
    run_cells(planned(tmp_path, seeds=3), train)
    assert {call[3] for call in train.calls} == {3}


@pytest.mark.parametrize("error", [UserError("there is no such file"), RuntimeError("out of memory")])
def test_failed_cell_does_not_end_the_others_and_is_run_again(
    train: Training, tmp_path: Path, capsys, error: Exception
):
    def failing(cell: Cell, *arguments) -> dict:
        if cell.task.name == "cola" and cell.model == "a":
            raise error
        return train(cell, *arguments)

    cells = planned(tmp_path)
    run_cells(cells, failing)
    assert len(train.calls) == 6
    record = json.loads((cells[0].folder / ERROR).read_text(encoding="utf-8"))
    assert record["error"] == str(error) and type(error).__name__ in record["traceback"]
    assert f"failed: {error}\n    {cells[0].folder / ERROR} has the details" in capsys.readouterr().out
    run_cells(planned(tmp_path), train)
    assert len(train.calls) == 8
    assert not list(tmp_path.rglob(ERROR))


def full_disk(cell: Cell, *_) -> dict:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_ends_the_run(train: Training, tmp_path: Path):
    cells = planned(tmp_path)
    with pytest.raises(OSError, match="No space left"):
        run_cells(cells, full_disk)
    assert [(cell.folder / ERROR).exists() for cell in cells] == [True] + 7 * [False]


@pytest.mark.slow
def test_a_full_disk_ends_processes_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture):
    run_cells(planned(tmp_path), full_disk, side_by_side=2)
    assert "2 of 2 processes ended early, with the exit codes [2, 2]" in capsys.readouterr().out


@pytest.mark.parametrize("content", ['{"score": 0.5, "met', "[]", ""])
def test_damaged_result_is_said_once_and_its_cell_run_again(train: Training, tmp_path: Path, content: str, capsys):
    cells = planned(tmp_path)
    run_cells(cells, train)
    (cells[3].folder / RESULT).write_text(content, encoding="utf-8")
    train.calls.clear()
    capsys.readouterr()
    run_cells(cells, train)
    assert [call[:2] for call in train.calls] == [("rte", "b")]
    assert str(cells[3].folder / RESULT) in capsys.readouterr().out


@pytest.mark.parametrize(
    "content", ["", "{}", '{"process": 1, "host": "a", "time": 1e30, "losses": 0}', "[" * 200_000]
)
def test_damaged_note_of_a_process_that_was_killed(train: Training, tmp_path: Path, capsys, content: str):
    (cell,) = planned(tmp_path, ["rte"], ["a"], seeds=1)
    cell.folder.mkdir(parents=True)
    (cell.folder / BEGUN).write_text(content, encoding="utf-8")
    run_cells([cell], train)
    assert "RTE · a · seed 1 was lost: the process that ran it was killed" in capsys.readouterr().out
    assert cell.result() is not None and not (cell.folder / BEGUN).exists()


def test_a_score_that_is_no_number_is_a_failure(train: Training, tmp_path: Path):
    cells = planned(tmp_path, seeds=3)
    run_cells(cells, train)
    edit_result(cells[0].folder, score=float("nan"))
    assert cells[0].result() is None
    delete_unwanted_models(cells, "best")
    train.calls.clear()
    run_cells(cells, train)
    assert [call[:2] for call in train.calls] == [("cola", "a")]


def test_results_without_their_seconds(train: Training, tmp_path: Path):
    cells = planned(tmp_path)
    run_cells(cells, train)
    edit_result(cells[0].folder, seconds=...)
    shutil.rmtree(cells[1].folder)
    run_cells(cells, train)
    assert len(train.calls) == 9


def test_result_of_a_hyper_parameter_that_is_none_today(train: Training, tmp_path: Path):
    cells = planned(tmp_path)
    run_cells(cells, train)
    edit_result(cells[0].folder, hyperparameters=cells[0].identity()["hyperparameters"] | {"layer_decay": 0.9})
    with pytest.raises(ConfigurationError, match="made with layer_decay 0.9, not None: name another"):
        cells[0].result()


def test_result_of_other_hyper_parameters_is_not_taken_for_this_one(train: Training, tmp_path: Path):
    run_cells(planned(tmp_path), train)
    with pytest.raises(ConfigurationError, match="made with learning_rate 2e-05, not 0.001: name another output_"):
        run_cells(planned(tmp_path, settings={"default": Values(1e-3)}), train)


def test_calls_side_by_side_share_the_cells(train: Training, tmp_path: Path):
    log = tmp_path / "log"
    cells = planned(tmp_path)
    processes = [_fork(run_cells, cells, lambda cell, *_: _logged(cell, log)) for _ in range(3)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    lines = log.read_text(encoding="utf-8").split()
    assert sorted(line.partition(":")[2] for line in lines) == sorted(str(cell.folder) for cell in cells)
    assert len({line.partition(":")[0] for line in lines}) > 1


def test_killed_call_loses_one_cell(train: Training, tmp_path: Path):
    cells = planned(tmp_path)

    def killed(cell: Cell, *arguments) -> dict:
        if cell.folder == cells[2].folder:
            os.kill(os.getpid(), signal.SIGKILL)
        return train(cell, *arguments)

    process = _fork(run_cells, cells, killed)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert [cell.result() is not None for cell in cells] == [True, True] + 6 * [False]
    run_cells(cells, train)
    assert len(train.calls) == 6 and all(cell.result() is not None for cell in cells)


def test_workers_end_with_the_call_that_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr(multiprocessing, "get_context", lambda kind: fork)  # spawned ones would not have the pipe
    readable, writable = os.pipe()
    cells = planned(tmp_path)
    process = _fork(run_cells, cells, lambda cell, *_: (os.write(writable, b"."), time.sleep(3)), 2)
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
    return finish(cell, 0.5)


def test_of_each_setting_one_model_stays_and_in_the_end_of_each_task(train: Training, tmp_path: Path):
    cells = planned(tmp_path, tasks=["rte"], models=["a"], seeds=3, settings=GRID)
    run_cells(cells, train)
    kept = [str(path.parent.relative_to(tmp_path / "cells/a/rte")) for path in sorted(tmp_path.rglob(MODEL))]
    assert kept == ["learning_rate=1/seed-2", "learning_rate=2/seed-2"]
    delete_unwanted_models(cells, "best")
    assert [path.parent.parent.name for path in tmp_path.rglob(MODEL)] == ["learning_rate=2"]


@pytest.mark.parametrize(("save_models", "count"), [("all", 2), ("none", 0)])
def test_all_models_stay_or_none(train: Training, tmp_path: Path, save_models: str, count: int):
    cells = planned(tmp_path, tasks=["rte"], models=["a"])
    run_cells(cells, train, save_models=save_models)
    delete_unwanted_models(cells, save_models)
    assert len(list(tmp_path.rglob(MODEL))) == count


def test_transfer_starts_from_the_best_model_of_mnli(train: Training, tmp_path: Path):
    run_cells(planned(tmp_path, tasks=["mnli", "rte", "cola"], seeds=3, transfer={"rte": "mnli"}), train)
    assert [call[0] for call in train.calls[:6]] == ["mnli"] * 6
    started = {(call[0], call[1]): call[4] for call in train.calls}
    assert started["rte", "b"] == tmp_path / "cells/b/mnli/default/seed-2" / MODEL
    assert started["cola", "b"] is None and started["mnli", "a"] is None


def test_transfer_does_not_start_from_other_weights_than_were_trained(train: Training, tmp_path: Path, capsys):
    def saving(cell: Cell, *arguments) -> dict:
        (cell.folder / MODEL).mkdir(parents=True)
        (cell.folder / MODEL / "model.safetensors").write_bytes(b"trained")
        return cell.finish({"score": 0.5, "seconds": 2.0, "metrics": {}, "weights": digests(cell.folder / MODEL)})

    run_cells(planned(tmp_path, ["mnli"], ["a"], seeds=1), saving)
    mnli, rte = cells = planned(tmp_path, ["mnli", "rte"], ["a"], seeds=1, transfer={"rte": "mnli"})
    weights = mnli.folder / MODEL / "model.safetensors"
    weights.write_bytes(b"another")
    run_cells(cells, train)
    assert train.calls == [] and "model.safetensors is not as it was written. Delete" in capsys.readouterr().out
    weights.write_bytes(b"trained")
    run_cells(cells, train)
    assert [call[0] for call in train.calls] == ["rte"] and rte.result() is not None


def test_transfer_without_a_model_of_mnli(train: Training, tmp_path: Path, capsys: pytest.CaptureFixture):
    def failing(cell: Cell, *_) -> dict:
        raise RuntimeError("no")

    run_cells(planned(tmp_path, tasks=["mnli", "rte"], models=["a"], seeds=1, transfer={"rte": "mnli"}), failing)
    assert "failed: there is no mnli model of a to start from: its cells have failed." in capsys.readouterr().out


@pytest.mark.parametrize("name", ["", "model", "result.json", "begun.json", "predictions"])
def test_a_folder_in_the_place_of_a_file_and_the_reverse(tmp_path: Path, name: str):
    cells = planned(tmp_path, ["rte"], ["a"], seeds=1)
    check_cell_places(cells)
    path = cells[0].folder / name
    path.parent.mkdir(parents=True)
    path.mkdir() if name.endswith(".json") else path.touch()
    with pytest.raises(UserError, match=f"^{path} is a .*, but a .* is to be written there"):
        check_cell_places(planned(tmp_path, ["rte"], ["a"], seeds=1))


def test_the_plan_says_what_a_call_would_run_and_why(train: Training, tmp_path: Path):
    cells = planned(tmp_path, models=["a"], seeds=2)
    run_cells(cells[:3], train)
    (cells[1].folder / RESULT).write_text("{", encoding="utf-8")
    lines = describe_plan(cells).splitlines()
    assert lines[2:4] == [
        "| CoLA |     a | default |        2 |            - |",
        "| RTE  |     a | default |        0 |         1, 2 |",
    ]
    assert lines[-2].startswith("RTE · a · seed 1: run again, since ") and "cut short or damaged" in lines[-2]
    assert lines[-1] == "2 of 4 cells would be run; the data and models that they need were checked."
