"""What a run leaves beside its cells: tables, a picture, cards, the zip for the GLUE server, and models on the Hub."""

from pathlib import Path

from filelock import FileLock

from experiments.cells import LOCK, outdated_beside
from experiments.push import push_models, repository_ids
from experiments.report import write_results
from experiments.results import read_results
from finetune_glue.configuration import GlueConfig
from finetune_glue.data.tasks import SUITE
from finetune_glue.model_card import model_card
from finetune_glue.plan import GlueCell
from finetune_glue.submission import write_submissions


def write_report(config: GlueConfig, cells: list[GlueCell]):
    """Print the table of the cells that are finished, and write all of it.

    Raises:
        UserError: where a file cannot be written.
    """
    folder = Path(config.output_dir)
    with FileLock(folder / LOCK):  # calls that share the cells out among themselves end together
        planned = [cell.folder for cell in cells]
        results = read_results(folder, SUITE, config.task_list(), planned, outdated_beside(cells))
        ids = repository_ids(results, config.push_to_hub) if config.push_to_hub else {}
        write_results(results, folder, model_card, ids)
        for line in write_submissions(results, folder):
            print(line)
        if config.push_to_hub:
            for line in push_models(results, folder, config.push_to_hub, config.hub_private_repo):
                print(line)
        print(f"\nTable    {folder / 'results.md'} (and .csv, .json)\nPicture  {folder / 'results.png'}", flush=True)
