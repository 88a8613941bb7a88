"""What the cells of a run are to be made from: a result counts only as long as all of it is what it was."""

import dataclasses
import json
import os
from collections.abc import Callable

from common.errors import UserError
from experiments.cells import Cell, with_sources
from experiments.results import RESULT
from finetune_glue.configuration import GlueConfig
from finetune_glue.data.task_data import task_content
from finetune_glue.data.tasks import TASKS, Task
from finetune_glue.training.starting_model import model_content


NOT_COMPARED = ("name", "title", "training_task", "source")  # fields of a task
PLACES = ("hub", "files", "folder")  # fields of its source; what is there counts by its content


def with_contents(config: GlueConfig, cells: list[Cell], say: Callable[[str], object]) -> list[Cell]:
    """The cells with what they are to be made from: task, data, model and precision.

    What cannot be read now is left open: finished cells count nevertheless, which is said.
    """

    def known(what: str, of_it: list[Cell], content: Callable[..., dict], *arguments: object) -> dict | None:
        try:
            return content(*arguments)
        except UserError as error:
            if any((cell.folder / RESULT).exists() for cell in of_it):
                say(f"{what}: finished cells cannot be compared with it, and count as they are. {error}")
            return None

    data, models = {}, {}
    for task in {cell.task: None for cell in cells}:
        of_it = [cell for cell in cells if cell.task == task]
        data[task.name] = known(f"Data of {task.title}", of_it, _data, task, config.data)
    for model in {cell.model: None for cell in cells}:
        of_it = [cell for cell in cells if cell.model == model]
        models[model] = known(f"Model {model}", of_it, model_content, model, config.trust_remote_code)
    precision = config.mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    return with_sources(
        [
            dataclasses.replace(
                cell,
                made_from={
                    "task": _definition(cell.task),
                    "data": data[cell.task.name],
                    "model": models[cell.model],
                    "mixed_precision": precision,
                },
            )
            for cell in cells
        ]
    )


def _data(task: Task, source: str) -> dict[str, list[str]]:
    """The content of a task's data, and of those that its models are judged on, as far as they are there."""
    content = task_content(task, source)
    for other in TASKS.values():
        if other.training_task == task.name:
            try:
                content |= task_content(other, source)
            except UserError:
                continue  # it is left out
    return content


def _definition(task: Task) -> dict:
    """What of a task's description decides what is learned and how it is judged."""
    fields = dataclasses.asdict(task)
    source = fields["source"]
    chosen = {key: value for key, value in fields.items() if key not in NOT_COMPARED}
    chosen |= {key: value for key, value in source.items() if key not in PLACES}
    return json.loads(json.dumps(chosen))
