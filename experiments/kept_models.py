"""Which of the cells' models are kept: the best of each task and model, all, or none."""

import shutil

from experiments.cell_folder import MODEL
from experiments.cells import Cell, best_run


def keep_best_of_setting(cell: Cell, cells: list[Cell]):
    """Keep of a cell's setting the model of the best seed so far, once the cell has ended."""
    key = (cell.task, cell.model_name, cell.setting)
    rivals = [other for other in cells if (other.task, other.model_name, other.setting) == key]
    ended = [rival for rival in rivals if rival.result() is not None]
    _keep_best_model(ended, ended)


def delete_unwanted_models(cells: list[Cell], save_models: str):
    """Keep the models that are wanted, once all cells have ended.

    Args:
        save_models: "best": of each task and model the best seed of the best setting; "all" or "none".
    """
    if save_models == "all":
        return
    for task, model_name in {(cell.task, cell.model_name): None for cell in cells}:
        rivals = [cell for cell in cells if (cell.task, cell.model_name) == (task, model_name)]
        _keep_best_model(rivals if save_models == "best" else [], rivals)


def _keep_best_model(candidates: list[Cell], cells: list[Cell]):
    best = best_run(candidates)
    for cell in cells:
        if best is None or cell.folder != best.folder:
            shutil.rmtree(cell.folder / MODEL, ignore_errors=True)
