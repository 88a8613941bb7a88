"""Fine-tune encoders on GLUE, or on one's own tasks.

    python finetune_glue/run_glue.py configs/glue/NAME.yaml --model FOLDER_OR_ID [--tasks all] [--key value ...]

- Each task, model, setting and seed is a cell with a folder of its own. A second call runs what is missing or has
  failed; a killed one loses the cell that it was at.
- The data, the order of the rows, the new head and dropout of a cell depend on its seed alone.
- `--dry_run` behind the other options shows the cells, compares and checks data and models, and starts nothing.
- What comes out: a table (Markdown, CSV), a picture, results.json, the best models with their cards, and the zip for
  the GLUE server.
"""

import sys
from pathlib import Path

from common.errors import report_user_errors
from common.launcher import end_with_launcher
from finetune_glue.configuration import GlueConfig, load_config


DRY_RUN = "--dry_run"


def main(config: GlueConfig, dry_run: bool = False) -> int:
    """Run what is missing and write the results; the exit code is 1 where a cell has failed.

    Args:
        dry_run: whether the plan is shown and checked instead.
    """
    # These imports take seconds, and a wrong key is said before.
    from common.files import make_folder
    from experiments.kept_models import delete_unwanted_models
    from experiments.launch import end_processes, start_processes
    from experiments.planning import describe_plan
    from experiments.progress import Progress
    from experiments.scheduler import run_cells
    from finetune_glue.plan import check, plan
    from finetune_glue.report import write_report
    from finetune_glue.training.fine_tuning import FineTuning

    main_process = start_processes(config.side_by_side)
    say = print if main_process else str
    with Progress(say) as progress:
        progress.at("comparing data and models with those of finished cells")
        cells = plan(config, say)
    check(config, cells)
    if dry_run:
        say(describe_plan(cells))
        end_processes()
        return 0
    make_folder(Path(config.output_dir), "output_dir")
    training = FineTuning(
        data=config.data,
        save_models=config.save_models != "none",
        trust_remote_code=config.trust_remote_code,
        per_device_train_batch_size=config.per_device_train_batch_size,
        mixed_precision=config.mixed_precision,
    )
    try:
        run_cells(cells, training, config.side_by_side, config.save_models)
        if main_process:
            delete_unwanted_models(cells, config.save_models)
    finally:
        if main_process:
            write_report(config, cells)
    end_processes()
    return int(any(cell.result() is None for cell in cells))


if __name__ == "__main__":
    end_with_launcher()
    with report_user_errors(kept="The same command runs what is missing."):
        arguments = [argument for argument in sys.argv[1:] if argument != DRY_RUN]
        sys.exit(main(load_config(arguments, about=__doc__), dry_run=DRY_RUN in sys.argv))
