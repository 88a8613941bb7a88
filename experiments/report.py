"""What a run leaves beside its cells: tables, a picture, and the cards of its models."""

from collections.abc import Callable, Mapping
from pathlib import Path

from huggingface_hub.constants import REPOCARD_NAME

from common.errors import UserError
from common.files import write_json, write_text
from experiments.cell_folder import MODEL
from experiments.picture import draw_results
from experiments.results import Group, Results, Run
from experiments.tables import csv_text, markdown, terminal_table


# The text of the card of a run, with the number of settings that its own was chosen from (1: none were compared), and
# the id of its repository on the Hub if there is to be one.
ModelCard = Callable[[Group, Run, int, str | None], str]


def write_results(results: Results, folder: Path, model_card: ModelCard, ids: Mapping[tuple[str, str], str]):
    """Print the table of the cells that are finished, and write it into a run's folder in all its forms.

    Args:
        ids: repository on the Hub of the best model of (model, task), where it is to be pushed.

    Raises:
        UserError: where a file cannot be written.
    """
    print(f"\n{terminal_table(results)}")
    try:
        write_json(folder / "results.json", results.to_json())
        write_text(folder / "results.md", markdown(results))
        write_text(folder / "results.csv", csv_text(results))
        draw_results(results, folder / "results.png")
        write_cards(results, model_card, ids)
    except OSError as error:
        raise UserError(
            f"The results cannot be written: {error}. The cells are kept: the same command writes the results again."
        ) from error


def write_cards(results: Results, model_card: ModelCard, ids: Mapping[tuple[str, str], str]):
    """Write a card into each folder of a model that was kept."""
    for group in results.groups:
        chosen = group is results.best(group.model, group.task)
        settings = len(results.of(group.model, group.task)) if chosen else 1
        for run in group.finished:
            folder = run.folder / MODEL
            if folder.is_dir():
                pushed = chosen and run is group.best
                repository = ids.get((group.model, group.task.name)) if pushed else None
                write_text(folder / REPOCARD_NAME, model_card(group, run, settings, repository))
