"""Which cells a run has, and what they are to be made from."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import check_places
from common.tables import NONE, markdown_table
from experiments.cell_folder import ERROR, MODEL, PREDICTIONS, RESULT, cell_folder
from experiments.cells import BEGUN, LOCK, OLD_RESULT, Cell, TaskType, Values


def plan_cells(
    output_dir: Path,
    tasks: Sequence[TaskType],
    models: Mapping[str, str],
    seeds: int,
    settings: Callable[[TaskType], Iterable[tuple[str, Values]]],
    transfer: Mapping[str, str] | None = None,
) -> list[Cell[TaskType, Values]]:
    """All cells of a run in the order in which they are run: seed by seed, so that a table fills evenly.

    Args:
        models: folder or id of each model by its name.
        seeds: their number; they are 1, 2, ...
        settings: the name and the hyper-parameters of each setting of a task.
        transfer: of tasks that start from another task's best model the name of that task, whose cells come first.
    """
    transfer = transfer or {}
    cells = [
        Cell(
            task,
            model,
            name,
            setting,
            values,
            seed,
            cell_folder(output_dir, name, task.name, setting, seed),
            transfer.get(task.name),
        )
        for seed in range(1, seeds + 1)
        for task in tasks
        for name, model in models.items()
        for setting, values in settings(task)
    ]
    cells.sort(key=lambda cell: cell.task.name not in transfer.values())
    return _with_sources(cells)


def with_contents(
    cells: Sequence[Cell[TaskType, Values]],
    definition: Callable[[TaskType], dict],
    data: Callable[[TaskType], dict],
    model: Callable[[str], dict],
    mixed_precision: str,
    say: Callable[[str], object],
) -> list[Cell[TaskType, Values]]:
    """The cells with what they are to be made from.

    What cannot be read now is left open: finished cells count nevertheless, which is said.

    Args:
        definition: what of a task decides what is learned and how it is judged.
        data, model: the content of a task's data, and of a model. A `UserError` says why it cannot be read now.
        mixed_precision: of the computation.
    """

    def known(what: str, of_it: list[Cell], content: Callable[[Any], dict], of: object) -> dict | None:
        try:
            return content(of)
        except UserError as error:
            if any((cell.folder / RESULT).exists() for cell in of_it):
                say(f"{what}: finished cells cannot be compared with it, and count as they are. {error}")
            return None

    of_task, of_model = {}, {}
    for task in {cell.task: None for cell in cells}:
        of_it = [cell for cell in cells if cell.task == task]
        of_task[task.name] = known(f"Data of {task.title}", of_it, data, task)
    for name in {cell.model: None for cell in cells}:
        of_it = [cell for cell in cells if cell.model == name]
        of_model[name] = known(f"Model {name}", of_it, model, name)
    return _with_sources(
        [
            dataclasses.replace(
                cell,
                made_from={
                    "task": definition(cell.task),
                    "data": of_task[cell.task.name],
                    "model": of_model[cell.model],
                    "mixed_precision": mixed_precision,
                },
            )
            for cell in cells
        ]
    )


def check_cell_places(cells: Sequence[Cell]):
    """See that no folder lies where a cell writes a file, and no file where it makes a folder.

    Raises:
        UserError: naming the first that does.
    """
    for cell in cells:
        check_places(folders=[*reversed(cell.folder.parents[:4]), cell.folder])  # from cells/ on
        check_places(
            files=[cell.folder / name for name in (LOCK, RESULT, OLD_RESULT, ERROR, BEGUN)],
            folders=[cell.folder / MODEL, cell.folder / PREDICTIONS],
        )


def describe_plan(cells: Sequence[Cell]) -> str:
    """What a call would do: of each setting its seeds that are finished, and those that would be run."""
    groups: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.task.title, cell.model_name, cell.setting), []).append(cell)
    rows = []
    for group, of_group in groups.items():
        finished = [cell.result() is not None for cell in of_group]
        seeds = [str(cell.seed) for cell, is_finished in zip(of_group, finished, strict=True) if not is_finished]
        rows.append([*group, f"{sum(finished)}", ", ".join(seeds) or NONE])
    missing = sum(cell.result() is None for cell in cells)
    return "\n".join(
        [
            markdown_table(["task", "model", "setting", "finished", "seeds to run"], rows),
            "",
            *run_again(cells),
            f"{missing} of {len(cells)} cells would be run; the data and models that they need were checked.",
        ]
    )


def run_again(cells: Sequence[Cell]) -> list[str]:
    """A line for each reason for which results do not count any more."""
    again: dict[str, list[Cell]] = {}
    for cell in cells:
        _, reason = cell.judged()
        if reason:
            again.setdefault(reason, []).append(cell)
    lines = []
    for reason, of_reason in again.items():
        others = f" and {len(of_reason) - 1} more" if len(of_reason) > 1 else ""
        lines.append(f"{of_reason[0]}{others}: run again, since {reason}")
    return lines


def _with_sources(cells: list[Cell[TaskType, Values]]) -> list[Cell[TaskType, Values]]:
    """The cells, each with those whose best model it starts from."""
    return [
        dataclasses.replace(
            cell,
            sources=tuple(
                other
                for other in cells
                if other.task.name == cell.init_from_task and other.model_name == cell.model_name
            ),
        )
        for cell in cells
    ]
