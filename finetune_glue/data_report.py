"""What data of GLUE hold: rows, labels and lengths of each file, or of each split of some tasks.

    python finetune_glue/data_report.py FOLDER                        every file below FOLDER of a task that is known
    python finetune_glue/data_report.py FOLDER --tasks cola,rte       what a run with `--data FOLDER` reads
    python finetune_glue/data_report.py hub --tasks all,configs/tasks/snli.yaml     the same from the Hub

The task of a file is told from the beginning of its own name or of its folder's: `RTE/train.tsv`, `MNLI.dev.tsv`. It
may also be that of a description in configs/tasks. Lengths are words between spaces, of all columns of text together.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import datasets

from common.errors import UserError, report_user_errors, say
from common.files import is_file, is_folder
from common.signs_of_life import to_stderr
from experiments.progress import Progress
from finetune_glue.data.description import find_tasks, read_task
from finetune_glue.data.glue_files import read_glue_file, task_of_file
from finetune_glue.data.own_files import FORMATS, read_file
from finetune_glue.data.rows import to_dataset
from finetune_glue.data.task_data import load_task
from finetune_glue.data.task_files import HUB
from finetune_glue.data.tasks import Task


DESCRIPTIONS = Path(__file__).resolve().parent.parent / "configs" / "tasks"
HEADER = ("file or split", "task", "rows", "labels", "words: mean", "longest")


def main(arguments: list[str]):
    """Print a table with a line for each file or split, and what was left out."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("source", help="a folder, a file, `hub`, or `hub@REVISION`")
    parser.add_argument("--tasks", help="names or description files with commas between; by default the files' own")
    options = parser.parse_args(arguments)
    from_hub = options.source.partition("@")[0] == HUB
    datasets.disable_progress_bars()
    lines, notes = [HEADER], []
    with Progress(to_stderr) as progress:
        if options.tasks or from_hub:
            found = _of_tasks(find_tasks((options.tasks or "all").split(",")), options.source, progress)
        else:
            found = _of_files(Path(options.source), progress)
        for place, task, table, remarks in found:
            lines.append((place, task.name, f"{len(table):,}", labels_of(task, table), *lengths_of(task, table)))
            notes += remarks
    if len(lines) == 1:
        raise UserError(f"{options.source} holds no file of a task that is known. Known are GLUE's folders, as CoLA.")
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    for line in lines:
        say("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
    for note in notes:
        say(note)


Found = tuple[str, Task, datasets.Dataset, list[str]]


def _of_tasks(tasks: list[Task], source: str, progress: Progress) -> Iterator[Found]:
    for task in tasks:
        progress.at(f"reading {task.name}")
        data = load_task(task, source)
        notes = list(data.notes)
        for split, table in data.splits.items():
            yield split, task, table, notes
            notes = []


def _of_files(source: Path, progress: Progress) -> Iterator[Found]:
    if not is_folder(source) and not is_file(source):
        raise UserError(f"There is no folder or file {source}.")
    paths = sorted(path for path in source.rglob("*") if path.is_file()) if source.is_dir() else [source]
    described = [read_task(path) for path in sorted(DESCRIPTIONS.glob("*.yaml"))]
    for path in paths:
        if not set(path.suffixes) & set(FORMATS) or path.suffix == ".txt" and not path.name.startswith("msr_"):
            continue
        progress.at(f"reading {path}")
        task = task_of_file(path)
        if task is not None:
            rows = read_glue_file(task, path, split_of(task, path))
        else:
            task = next((task for task in described if _belongs(task, path)), None)
            if task is None:
                continue
            rows = read_file(task, path)
        table = to_dataset(task, rows, split_of(task, path))
        place = str(path.relative_to(source)) if source.is_dir() else str(path)
        yield place, task, table, rows.notes


def _belongs(task: Task, path: Path) -> bool:
    return any(part.lower().startswith(task.name) for part in (path.name, path.parent.name))


def split_of(task: Task, path: Path) -> str:
    """The split that a file is of, as far as it matters: test files, and those of AX, may have no labels."""
    return task.test_splits[0] if task.training_task or "test" in path.name else task.train_split


def labels_of(task: Task, table: datasets.Dataset) -> str:
    """The rows of each label with their share, or the range and mean of the numbers."""
    if "label" not in table.column_names:
        return "none"
    labels = list(table["label"])
    if task.problem == "regression":
        return f"{min(labels):.2f} to {max(labels):.2f}, mean {fmean(labels):.3f}"
    counts = Counter(labels)
    return ", ".join(
        f"{name} {counts[id]:,} ({100 * counts[id] / len(labels):.1f} %)" for id, name in enumerate(task.label_names)
    )


def lengths_of(task: Task, table: datasets.Dataset) -> tuple[str, str]:
    """The mean and the longest length of a row in words."""
    columns = [list(table[column]) for column in task.text_columns + task.choice_columns]
    words = [sum(len(text.split()) for text in texts) for texts in zip(*columns, strict=True)]
    return f"{fmean(words):.1f}", f"{max(words):,}"


if __name__ == "__main__":
    with report_user_errors():
        main(sys.argv[1:])
