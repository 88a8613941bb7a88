"""Fine-tune encoders on GLUE, or on one's own tasks.

    python finetune_glue/run_glue.py configs/glue/NAME.yaml --model FOLDER_OR_ID [--tasks all] [--key value ...]

- Each task, model, setting and seed is a cell with a folder of its own. A second call runs what is missing or has
  failed; a killed one loses the cell that it was at.
- The data, the order of the rows, the new head and dropout of a cell depend on its seed alone.
- What comes out: a table (Markdown, CSV), a picture, results.json, the best models with their cards, and the zip for
  the GLUE server.
"""

import sys
from pathlib import Path

from common.errors import report_user_errors
from common.launcher import end_with_launcher
from finetune_glue.configuration import GlueConfig, load_config


def main(config: GlueConfig) -> int:
    """Run what is missing and write the results; the exit code is 1 where a cell has failed."""
    # These imports take seconds, and a wrong key is said before.
    from common.files import make_folder
    from experiments.cells import plan_cells
    from experiments.launch import end_processes, start_processes
    from experiments.progress import Progress
    from experiments.push import check_push
    from experiments.scheduler import delete_unwanted_models, run_cells
    from finetune_glue.data.task_data import find_task_files
    from finetune_glue.made_from import with_contents
    from finetune_glue.report import write_report
    from finetune_glue.training.metrics import check_metrics
    from finetune_glue.training.starting_model import check_starting_model

    main_process = start_processes(config)
    for task in config.task_list():
        check_metrics(task)
    say = print if main_process else str
    with Progress(say) as progress:
        progress.at("comparing data and models with those of finished cells")
        cells = with_contents(config, plan_cells(config), say)
    missing = [cell for cell in cells if cell.result() is None]
    for task in {cell.task: None for cell in missing}:
        find_task_files(task, config.data)
    for cell in {(cell.model, cell.task.problem, str(cell.hyperparameters.model)): cell for cell in missing}.values():
        check_starting_model(cell.model, cell.task, cell.hyperparameters.model, config.trust_remote_code)
    if config.push_to_hub:
        check_push(config.push_to_hub)
    make_folder(Path(config.output_dir), "output_dir")
    try:
        run_cells(config, cells)
        if main_process:
            delete_unwanted_models(config, cells)
    finally:
        if main_process:
            write_report(config, cells)
    end_processes()
    return int(any(cell.result() is None for cell in cells))


if __name__ == "__main__":
    end_with_launcher()
    with report_user_errors(kept="The same command runs what is missing."):
        sys.exit(main(load_config(sys.argv[1:], about=__doc__)))
