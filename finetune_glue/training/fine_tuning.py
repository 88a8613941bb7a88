"""Fine-tunes one cell after the other; what several of them need is read and tokenised once."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from common.errors import UserError
from experiments.cells import Cell
from experiments.made_from import difference
from finetune_glue.data.task_data import TaskData, load_task
from finetune_glue.data.tasks import TASKS, Task
from finetune_glue.training.settings import Hyperparameters
from finetune_glue.training.training import Split, run_cell


@dataclass
class FineTuning:
    """How the cells of a run are trained: an `experiments.worker.Train`.

    Args:
        data: where GLUE's data are, see `load_task`.
        save_models: whether fine-tuned models are written.
        trust_remote_code, per_device_train_batch_size, mixed_precision: see `run_cell`.
    """

    data: str
    save_models: bool = True
    trust_remote_code: bool = False
    per_device_train_batch_size: int | None = None
    mixed_precision: str | None = None
    loaded: dict[str, TaskData | UserError] = field(default_factory=dict)  # by the name of the task
    encoded: dict[tuple, dict[str, Split]] = field(default_factory=dict)  # see `run_cell`

    def __call__(
        self,
        cell: Cell[Task, Hyperparameters],
        init_from: Path | None,
        say: Callable[[str], object],
        on_progress: Callable[[str, int, int], object],
    ) -> dict:
        on_progress("reading the data", 0, 0)
        data, diagnostics = self._load(cell.task, say), self._diagnostics(cell.task, say)
        return run_cell(
            _made_from(cell, [data, *diagnostics]),
            data,
            diagnostics=diagnostics,
            save_model=self.save_models,
            init_from=init_from,
            trust_remote_code=self.trust_remote_code,
            per_device_train_batch_size=self.per_device_train_batch_size,
            mixed_precision=self.mixed_precision,
            on_progress=on_progress,
            encoded=self.encoded,
        )

    def _load(self, task: Task, say: Callable[[str], object]) -> TaskData:
        """The data of a task."""
        if task.name not in self.loaded:
            try:
                data = self.loaded[task.name] = load_task(task, self.data)
                for note in data.notes:
                    say(f"    {note}")
            except UserError as error:
                self.loaded[task.name] = error
        loaded = self.loaded[task.name]
        if isinstance(loaded, UserError):
            raise loaded
        return loaded

    def _diagnostics(self, task: Task, say: Callable[[str], object]) -> list[TaskData]:
        """The data of tasks that models of this one are judged on, as far as they are there."""
        found = []
        for other in TASKS.values():
            if other.training_task == task.name:
                first = other.name not in self.loaded
                try:
                    found.append(self._load(other, say))
                except UserError as error:
                    if first:
                        say(f"    {other.title} is left out: {error}")
        return found


def _made_from(cell: Cell[Task, Hyperparameters], all_data: list[TaskData]) -> Cell[Task, Hyperparameters]:
    """The cell with the content of the data that were read.

    Raises:
        UserError: where they are not those that it was to be made from.
    """
    read = {name: digests for data in all_data for name, digests in data.content.items()}
    wanted = cell.made_from.get("data") or {}
    if difference({"data": {name: wanted[name] for name in wanted.keys() & read.keys()}}, {"data": read}):
        raise UserError(
            f"the data of {cell.task.name} have changed while this call was running: it must be started again."
        )
    return dataclasses.replace(cell, made_from=cell.inputs() | {"data": wanted | read})
