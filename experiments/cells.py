"""The cells of a run: one task, model, setting and seed each, with a folder of its own and what became of it."""

import dataclasses
import json
import math
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, TypeVar

from filelock import FileLock, Timeout

from common.checksums import KEY
from common.config.yaml_config import ConfigurationError
from common.files import DamagedFile, read_checked_json, write_checked_json, write_json
from experiments.cell_folder import DEFAULT, ERROR, RESULT, DamagedResult, read_result, write_result
from experiments.made_from import difference
from experiments.results import Group, Run, best_group
from experiments.tasks import ScoredTask


LOCK = ".lock"  # held by the process that runs a cell; the system releases it where that process is killed
OLD_RESULT = "result.old.json"  # one that did not count any more when the cell was run again
BEGUN = "begun.json"  # which process runs a cell; one that is killed leaves it behind
TaskType = TypeVar("TaskType", bound=ScoredTask)
Values = TypeVar("Values")  # a dataclass of hyper-parameters


@dataclasses.dataclass(frozen=True)
class Cell(Generic[TaskType, Values]):
    """One training.

    Args:
        task: on what.
        model: what, a folder or an id of the Hub.
        model_name: of the model in tables and folders.
        setting: name of the point of the grid.
        hyperparameters: of that point.
        seed: of all that is random.
        folder: where all of it goes.
        init_from_task: whose best model gives the weights to start from.
        sources: the cells of that task and model.
        made_from: the content of its task, data and model, and the precision; what is null is not known.
    """

    task: TaskType
    model: str
    model_name: str
    setting: str
    hyperparameters: Values
    seed: int
    folder: Path
    init_from_task: str | None = None
    sources: tuple["Cell", ...] = dataclasses.field(default=(), compare=False)
    made_from: dict = dataclasses.field(default_factory=dict, compare=False)

    def __str__(self) -> str:
        setting = "" if self.setting == DEFAULT else f" · {self.setting}"
        return f"{self.task.title} · {self.model_name}{setting} · seed {self.seed}"

    def result(self) -> dict | None:
        """What it came to, if it is finished; a score that is no number counts as failed.

        Raises:
            ConfigurationError: where the result is that of other hyper-parameters or of another model.
        """
        result, _ = self.judged()
        return result if result is not None and math.isfinite(result["score"]) else None

    def judged(self) -> tuple[dict | None, str]:
        """The result if it counts, else why one that is there does not.

        Raises:
            ConfigurationError: as `result`.
        """
        try:
            result = read_result(self.folder)
        except DamagedResult as error:
            return None, str(error)
        reason = "" if result is None else self.outdated(result)
        return (None, reason) if reason else (result, "")

    def outdated(self, result: dict) -> str:
        """What a result was made from that is different now; '' where nothing is."""
        recorded = result.get("made_from", {})
        reason = difference(self.inputs(), recorded)
        same_model = self.made_from.get("model") is not None and self.made_from["model"] == recorded.get("model")
        for key, value in self.identity().items():
            if result.get(key) != value and not (key == "model" and same_model):
                raise ConfigurationError(
                    f"{self.folder / RESULT} was made with {_difference(key, result.get(key), value)}: name another "
                    f"output_dir, or delete {self.folder} to run it again."
                )
        return reason

    def identity(self) -> dict:
        """The values that a stored result must match to count as that of this cell."""
        return {
            "task": self.task.name,
            "model": self.model,
            "hyperparameters": json.loads(json.dumps(vars(self.hyperparameters))),
            "seed": self.seed,
            "init_from_task": self.init_from_task,
        }

    def inputs(self) -> dict:
        """What it is made from, the model of another task that it starts from included."""
        if self.init_from_task is None:
            return self.made_from
        start = self.start()
        return self.made_from | {"start": start.result[KEY] if start and start.result else ""}

    def start(self) -> Run | None:
        """The best of its sources, whose model it starts from, as far as they are finished."""
        return best_run(self.sources)

    def fail(self, error: str, traceback: str = ""):
        """Leave a note of what went wrong; the cell is run again by the next call."""
        write_json(self.folder / ERROR, {"error": error, "traceback": traceback})

    @contextmanager
    def running(self, losses: int = 0) -> Iterator[None]:
        """Note that this process, which has taken the cell, runs it now; a result that does not count is put aside.

        Args:
            losses: the number of processes before it that were killed while they ran the cell.
        """
        if (self.folder / RESULT).exists():
            (self.folder / RESULT).replace(self.folder / OLD_RESULT)
        (self.folder / ERROR).unlink(missing_ok=True)
        begun = {"process": os.getpid(), "host": socket.gethostname(), "time": time.time(), "losses": losses}
        write_checked_json(self.folder / BEGUN, begun)
        try:
            yield
        finally:
            (self.folder / BEGUN).unlink(missing_ok=True)

    def loss(self) -> dict | None:
        """The note of a process that was killed while it ran the cell, for a process that has taken the cell; empty
        where the note is not as it was written."""
        path = self.folder / BEGUN
        try:
            return read_checked_json(path)
        except DamagedFile:
            return {} if path.exists() else None

    def finish(self, values: dict) -> dict:
        """Write the result, which is returned; from then on the cell is finished."""
        return write_result(self.folder, self.identity() | {"made_from": self.inputs()} | values)

    def take(self) -> FileLock | None:
        """A lock that keeps the cell from other processes; none where one of them has it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / LOCK)
        try:
            return lock.acquire(blocking=False).lock
        except Timeout:
            return None


class Notes:
    """The notes of failed and of killed processes that lie in the folders of cells, to know later ones by.

    No time is compared: the clocks of a file server and of other machines may differ.
    """

    def __init__(self, cells: Sequence[Cell]):
        self._stamps = {cell.folder / name: _stamp(cell.folder / name) for cell in cells for name in (ERROR, BEGUN)}

    def have_grown(self, cell: Cell, name: str) -> bool:
        """Whether a cell has a note, `ERROR` or `BEGUN`, that has been written since."""
        stamp = _stamp(cell.folder / name)
        return stamp is not None and stamp != self._stamps.get(cell.folder / name)


def _stamp(path: Path) -> tuple[int, int] | None:
    """What tells a file from one that takes its place; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def best_run(cells: Sequence[Cell]) -> Run | None:
    """The best seed of the best setting among cells of one task and model."""
    runs: dict[str, list[Run]] = {}
    for cell in cells:
        runs.setdefault(cell.setting, []).append(Run(cell.seed, cell.folder, cell.result()))
    groups = [Group(cells[0].model_name, cells[0].task, setting, tuple(seeds)) for setting, seeds in runs.items()]
    best = best_group(groups)
    return best.best if best else None


def outdated_beside(cells: Sequence[Cell]) -> Callable[[Path, dict], str]:
    """A function that tells why the result in a folder of a run does not count beside these cells, '' where it does.

    It may be that of another task, setting or seed; what is known of its model and task must be the same.
    """
    planned = {cell.folder: cell for cell in cells}

    def outdated(folder: Path, result: dict) -> str:
        if folder in planned:
            return planned[folder].outdated(result)
        model_name, task = folder.parts[-4:-2]
        of_model = [cell.made_from for cell in cells if cell.model_name == model_name]
        of_task = [cell.made_from for cell in cells if (cell.model_name, cell.task.name) == (model_name, task)]
        wanted = of_task[0] if of_task else {"model": of_model[0].get("model")} if of_model else {}
        return difference(wanted, result.get("made_from", {}))

    return outdated


def _difference(key: str, found: object, wanted: object) -> str:
    if isinstance(found, dict) and isinstance(wanted, dict):
        names = [name for name in {**wanted, **found} if found.get(name) != wanted.get(name)]
        return ", ".join(f"{name} {found.get(name)!r}, not {wanted.get(name)!r}" for name in names)
    return f"{key} {found!r}, not {wanted!r}"
