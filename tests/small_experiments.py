"""Cells of an experiment whose trainings take no time."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from experiments.cell_folder import MODEL
from experiments.cells import Cell
from experiments.planning import plan_cells
from experiments.tasks import ScoredTask, Suite


TASKS = {
    "cola": ScoredTask(name="cola", title="CoLA", metrics=("matthews_correlation",)),
    "mnli": ScoredTask(name="mnli", title="MNLI", metrics=("accuracy",)),
    "rte": ScoredTask(name="rte", title="RTE", metrics=("accuracy",)),
}

SUITE = Suite("GLUE", tuple(TASKS.values()), {"GLUE": ()})


@dataclasses.dataclass(frozen=True)
class Values:
    learning_rate: float = 2e-5


def planned(
    folder: Path,
    tasks: Sequence[str] = ("cola", "rte"),
    models: Sequence[str] = ("a", "b"),
    seeds: int = 2,
    settings: dict[str, Values] | None = None,
    transfer: dict[str, str] | None = None,
) -> list[Cell[ScoredTask, Values]]:
    """The cells of an experiment in a folder; by default each has the same setting."""
    settings = settings or {"default": Values()}
    named = {name: name for name in models}
    return plan_cells(folder, [TASKS[name] for name in tasks], named, seeds, lambda task: settings.items(), transfer)


def finish(cell: Cell, score: float, **values) -> dict:
    """Write what a training leaves; what was written."""
    (cell.folder / MODEL).mkdir(parents=True)
    return cell.finish({"score": score, "seconds": 2.0, "metrics": {}} | values)
