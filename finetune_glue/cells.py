"""The cells of a run: one task, model, setting and seed each, with a folder of its own and what became of it."""

import dataclasses
import json
import math
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from common.files import write_json
from common.yaml_config import ConfigurationError
from finetune_glue.configuration import TRANSFER_FROM, TRANSFER_TO, GlueConfig
from finetune_glue.results import CELLS, ERROR, RESULT, SEED, read_result
from finetune_glue.settings import Hyperparameters, settings
from finetune_glue.tasks import Task


LOCK = ".lock"  # held by the process that runs a cell; the system releases it where that process is killed
BEGUN = "begun.json"  # which process runs a cell; one that is killed leaves it behind


@dataclasses.dataclass(frozen=True)
class Cell:
    """One fine-tuning.

    Args:
        task: on what.
        model: what, a folder or an id of the Hub.
        model_name: of the model in tables and folders.
        setting: name of the point of the grid.
        hyperparameters: of that point.
        seed: of the new head, the order of the rows and dropout.
        folder: where all of it goes.
        init_from_task: whose best fine-tuned model gives the weights to start from.
    """

    task: Task
    model: str
    model_name: str
    setting: str
    hyperparameters: Hyperparameters
    seed: int
    folder: Path
    init_from_task: str | None = None

    def __str__(self) -> str:
        setting = "" if self.setting == "default" else f" · {self.setting}"
        return f"{self.task.title} · {self.model_name}{setting} · seed {self.seed}"

    def result(self) -> dict | None:
        """What it came to, if it is finished; a score that is no number counts as failed.

        Raises:
            ConfigurationError: where the result is that of other hyper-parameters or of another model.
        """
        result = read_result(self.folder)
        if result is None:
            return None
        for key, value in self.identity().items():
            if result.get(key) != value:
                raise ConfigurationError(
                    f"{self.folder / RESULT} was made with {_difference(key, result.get(key), value)}: name another "
                    f"output_dir, or delete {self.folder} to run it again."
                )
        return result if math.isfinite(result["score"]) else None

    def identity(self) -> dict:
        """What a finished cell must have been made with to count for this one."""
        return {
            "task": self.task.name,
            "model": self.model,
            "hyperparameters": json.loads(json.dumps(dataclasses.asdict(self.hyperparameters))),
            "seed": self.seed,
            "init_from_task": self.init_from_task,
        }

    def fail(self, error: str, traceback: str = ""):
        """Leave a note of what went wrong; the cell is run again by the next call."""
        write_json(self.folder / ERROR, {"error": error, "traceback": traceback})

    def failed_after(self, moment: float) -> bool:
        """Whether it has failed since a moment of `time.time`."""
        try:
            return (self.folder / ERROR).stat().st_mtime >= moment
        except OSError:
            return False

    def clear(self):
        """Delete what an earlier, unfinished or damaged try has left."""
        for name in (RESULT, ERROR):
            (self.folder / name).unlink(missing_ok=True)

    @contextmanager
    def running(self, losses: int = 0) -> Iterator[None]:
        """Note that this process, which has taken the cell, runs it now.

        Args:
            losses: the number of processes before it that were killed while they ran the cell.
        """
        self.clear()
        begun = {"process": os.getpid(), "host": socket.gethostname(), "time": time.time(), "losses": losses}
        write_json(self.folder / BEGUN, begun)
        try:
            yield
        finally:
            (self.folder / BEGUN).unlink(missing_ok=True)

    def loss(self) -> dict | None:
        """The note of a process that was killed while it ran the cell, for a process that has taken the cell."""
        try:
            return json.loads((self.folder / BEGUN).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None

    def finish(self, values: dict):
        """Write the result; from then on the cell is finished."""
        write_json(self.folder / RESULT, self.identity() | values)

    def take(self) -> FileLock | None:
        """A lock that keeps the cell from other processes; none where one of them has it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / LOCK)
        try:
            return lock.acquire(blocking=False).lock
        except Timeout:
            return None


def plan_cells(config: GlueConfig) -> list[Cell]:
    """All cells of a run in the order in which they are run: seed by seed, so that a table fills evenly.

    With transfer the cells of MNLI come first, since others start from their best model.
    """
    models, cells = config.models(), []
    for seed in range(1, config.seeds + 1):
        for task in config.task_list():
            transferred = config.transfer and task.name in TRANSFER_TO
            for model_name, model in models.items():
                for setting, hyperparameters in settings(
                    task.name, config.hyperparameters, config.per_task, config.grid
                ):
                    folder = Path(config.output_dir) / CELLS / model_name / task.name / setting / f"{SEED}{seed}"
                    source = TRANSFER_FROM if transferred else None
                    cells.append(Cell(task, model, model_name, setting, hyperparameters, seed, folder, source))
    if config.transfer:
        cells.sort(key=lambda cell: cell.task.name != TRANSFER_FROM)
    return cells


def _difference(key: str, found: object, wanted: object) -> str:
    if isinstance(found, dict) and isinstance(wanted, dict):
        names = [name for name in {**wanted, **found} if found.get(name) != wanted.get(name)]
        return ", ".join(f"{name} {found.get(name)!r}, not {wanted.get(name)!r}" for name in names)
    return f"{key} {found!r}, not {wanted!r}"
