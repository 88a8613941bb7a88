"""What a run leaves beside its cells: tables, a picture, cards, the zip for the GLUE server, and models on the Hub."""

from pathlib import Path

from filelock import FileLock

from common.errors import UserError
from common.files import write_json, write_text
from experiments.cells import LOCK, Cell, outdated_beside
from experiments.picture import draw_results
from experiments.push import push_models, repository_ids
from experiments.results import read_results
from experiments.tables import csv_text, markdown, terminal_table
from finetune_glue.configuration import GlueConfig
from finetune_glue.model_card import write_cards
from finetune_glue.submission import write_submissions


def write_report(config: GlueConfig, cells: list[Cell]):
    """Print the table of the cells that are finished, and write all of it.

    Raises:
        UserError: where a file cannot be written.
    """
    folder = Path(config.output_dir)
    with FileLock(folder / LOCK):  # calls that share the cells out among themselves end together
        _write(config, cells, folder)


def _write(config: GlueConfig, cells: list[Cell], folder: Path):
    results = read_results(folder, config.task_list(), [cell.folder for cell in cells], outdated_beside(cells))
    print(f"\n{terminal_table(results)}")
    try:
        write_json(folder / "results.json", results.to_json())
        write_text(folder / "results.md", markdown(results))
        write_text(folder / "results.csv", csv_text(results))
        draw_results(results, folder / "results.png")
        write_cards(results, repository_ids(results, config.push_to_hub) if config.push_to_hub else {})
    except OSError as error:
        raise UserError(
            f"The results cannot be written: {error}. The cells are kept: the same command writes the results again."
        ) from error
    for line in write_submissions(results, folder):
        print(line)
    if config.push_to_hub:
        for line in push_models(results, folder, config.push_to_hub, config.hub_private_repo):
            print(line)
    print(f"\nTable    {folder / 'results.md'} (and .csv, .json)\nPicture  {folder / 'results.png'}", flush=True)
