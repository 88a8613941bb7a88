"""Compare masked language models of Transformers, side by side in one table.

    python evaluation/evaluate.py MODEL [MODEL ...] [--data SOURCE ...] [--minimal_pairs FOLDER] [--output FILE ...]

On text (--data): words are hidden, the same ones for every model, and predicted; evaluation/hidden_words.py
says what exactly is measured. On minimal pairs (--minimal_pairs): how often the good sentence is found likelier than
the bad one, see evaluation/minimal_pairs.py.

`accelerate launch --config_file configs/accelerate/NAME.yaml evaluation/evaluate.py ...` shares the rows out over
processes; each row is scored once, in the same batch as by one process, so the numbers stay the same.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from common.errors import UserError, report_user_errors, say
from common.files import make_folder, write_json, write_text
from common.launcher import end_with_launcher
from evaluation.options import parse_arguments


SOME_FAILED = 1  # exit code where a model could not be evaluated; the others were


def main(options: argparse.Namespace) -> int:
    """Evaluate, print the tables, write the files, and return the exit code."""
    # Processes that read the built-in corpus import this file again: without what takes seconds to import.
    from evaluation.comparison import compare, processes
    from evaluation.tables import markdown

    for path in options.output:
        make_folder(path.parent, "--output")
        if path.is_dir():
            raise UserError(f"--output: {path} is a folder: name a file.")
    with processes(options.device) as state:
        results = compare(options, lambda results: write_files(results, options.output))
        if state.is_main_process:
            say(f"\n{markdown(results)}")
        state.wait_for_everyone()  # one that ended with an error code would have the launcher end the others
    return SOME_FAILED if any(model["errors"] for model in results["models"]) else 0


def write_files(results: dict[str, Any], paths: list[Path]):
    """Write each file in the format that its suffix says."""
    from evaluation.tables import csv_text, markdown

    for path in paths:
        if path.suffix == ".json":
            write_json(path, results)
        else:
            write_text(path, csv_text(results) if path.suffix == ".csv" else markdown(results))


if __name__ == "__main__":
    end_with_launcher()
    with report_user_errors(kept="--output holds the models that were finished."):
        sys.exit(main(parse_arguments(sys.argv[1:], __doc__.splitlines()[0])))
