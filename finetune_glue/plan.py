"""The cells of a run: which there are, what they are to be made from, and whether all that they need is there."""

import dataclasses
import functools
import json
import os
from collections.abc import Callable
from pathlib import Path

from common.errors import UserError
from experiments.cells import Cell
from experiments.planning import check_cell_places, plan_cells, with_contents
from experiments.push import check_push
from finetune_glue.configuration import TRANSFER_FROM, TRANSFER_TO, GlueConfig
from finetune_glue.data.task_files import find_task_files, task_content
from finetune_glue.data.tasks import TASKS, Task
from finetune_glue.training.metrics import check_metrics
from finetune_glue.training.settings import Hyperparameters, settings
from finetune_glue.training.starting_model import check_starting_model, model_content


GlueCell = Cell[Task, Hyperparameters]
NOT_COMPARED = ("name", "title", "training_task", "source")  # fields of a task
PLACES = ("hub", "files", "folder")  # fields of its source; what is there counts by its content


def plan(config: GlueConfig, say: Callable[[str], object] = print) -> list[GlueCell]:
    """All cells of a run, with what they are to be made from as far as it can be read now.

    Raises:
        UserError: for a metric that is none of its task.
    """
    for task in config.task_list():
        check_metrics(task)
    return with_contents(
        planned_cells(config),
        definition=_definition,
        data=functools.partial(_data, source=config.data),
        model=functools.partial(model_content, trust_remote_code=config.trust_remote_code),
        mixed_precision=config.mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no"),
        say=say,
    )


def planned_cells(config: GlueConfig) -> list[GlueCell]:
    """All cells of a run in the order in which they are run; with transfer those of MNLI come first."""
    return plan_cells(
        Path(config.output_dir),
        config.task_list(),
        config.models(),
        config.seeds,
        lambda task: settings(task.name, config.hyperparameters, config.per_task, config.grid),
        dict.fromkeys(TRANSFER_TO, TRANSFER_FROM) if config.transfer else {},
    )


def check(config: GlueConfig, cells: list[GlueCell]):
    """See that all is there that the cells need which are not finished.

    Raises:
        UserError: for a file in the place of a folder or the reverse, missing files, a model that cannot be
            fine-tuned, or a Hub that refuses it.
    """
    missing = [cell for cell in cells if cell.result() is None]
    check_cell_places(missing)
    for task in {cell.task: None for cell in missing}:
        find_task_files(task, config.data)
    for cell in {(cell.model, cell.task.problem, str(cell.hyperparameters.model)): cell for cell in missing}.values():
        check_starting_model(cell.model, cell.task, cell.hyperparameters.model, config.trust_remote_code)
    if config.push_to_hub:
        check_push(config.push_to_hub)


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
