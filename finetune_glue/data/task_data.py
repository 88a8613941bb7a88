"""The rows of a task: of each split, from the Hub, the files of GLUE, or those of a task description."""

from dataclasses import dataclass, field

import datasets

from common.errors import UserError
from finetune_glue.data.glue_files import LAYOUTS, read_glue_file
from finetune_glue.data.hub import read_hub
from finetune_glue.data.own_files import read_split
from finetune_glue.data.rows import to_dataset
from finetune_glue.data.task_files import content_of_files, find_task_files, folder_of_files
from finetune_glue.data.tasks import Task


HELD_OUT_SEED = 0  # of the choice of rows for a validation split; the same in every run


@dataclass(frozen=True)
class TaskData:
    """What a task is learned from and judged on.

    Args:
        splits: by name; columns are the texts (and choices) of the task, "index" (int, number of the row in its file
            or for the GLUE server) and "label" (int id, float of a regression; not in test splits without labels).
        source: what to cite: data set of the Hub with its revision, or the folder.
        notes: rows that were left out, files that were not there, rows that were held out.
        content: what was read, as `task_content` has it.
    """

    task: Task
    splits: dict[str, datasets.Dataset]
    source: str
    notes: tuple[str, ...] = ()
    content: dict[str, list[str]] = field(default_factory=dict)


def load_task(task: Task, source: str) -> TaskData:
    """Read all splits of a task.

    Args:
        source: `hub`, `hub@REVISION` (of GLUE), or a folder: that of GLUE's files, in which the files of a description
            are looked for, too, where it also names a data set of the Hub. The files of a description that names no
            such data set are looked for beside it.

    Raises:
        UserError: for what is missing or cannot be read, with the file and line.
    """
    files = find_task_files(task, source)
    if files is None:
        rows, cited = read_hub(task, source.partition("@")[2])
        content = {task.name: [cited]}
    else:
        cited, content = str(folder_of_files(task, source)), content_of_files(task, files)
        if task.name in LAYOUTS:
            rows = {split: read_glue_file(task, path, split) for split, (path,) in files.items()}
        else:
            rows = {split: read_split(task, paths) for split, paths in files.items()}
    splits = {split: to_dataset(task, read, split) for split, read in rows.items()}
    notes = [note for read in rows.values() for note in read.notes]
    notes += [f"{task.name}: there is no {split} split" for split in task.test_splits if split not in splits]
    if task.source.validation_share and not any(split in splits for split in task.validation_splits):
        splits = _hold_out(task, splits)
        held_out = splits[task.validation_splits[0]]
        notes.append(f"{task.name}: {len(held_out):,} of the training rows are held out as the validation split")
    return TaskData(task, splits, cited, tuple(notes), content)


def _hold_out(task: Task, splits: dict[str, datasets.Dataset]) -> dict[str, datasets.Dataset]:
    """Move a share of the training rows into the first validation split."""
    train = splits[task.train_split]
    if len(train) < 2:
        raise UserError(f"{task.name} has {len(train)} training rows: too few to hold some out for validation.")
    count = min(max(1, round(len(train) * task.source.validation_share)), len(train) - 1)
    parts = train.train_test_split(test_size=count, seed=HELD_OUT_SEED)
    held_out = {task.train_split: parts["train"], task.validation_splits[0]: parts["test"]}
    return {**held_out, **{split: rows for split, rows in splits.items() if split not in held_out}}
