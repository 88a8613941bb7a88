"""The data of a task, from the Hub, a folder in the layout of GLUE, or the files of a task description."""

from dataclasses import dataclass, field
from pathlib import Path

import datasets

from common.contents import digest_of_files
from common.errors import UserError
from common.files import is_folder, require_file
from finetune_glue.data.folder_files import files_below, read_folder
from finetune_glue.data.glue_files import LAYOUTS, find_files, read_glue_file
from finetune_glue.data.hub import hub_content, read_hub
from finetune_glue.data.own_files import read_file
from finetune_glue.data.rows import Rows, joined, to_dataset
from finetune_glue.data.tasks import Task


HUB = "hub"
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
        rows, cited = _file_rows(task, files), str(_folder(task, source))
        content = _content_of_files(task, files)
    splits = {split: to_dataset(task, read, split) for split, read in rows.items()}
    notes = [note for read in rows.values() for note in read.notes]
    notes += [f"{task.name}: there is no {split} split" for split in task.test_splits if split not in splits]
    if task.source.validation_share and not any(split in splits for split in task.validation_splits):
        splits = _hold_out(task, splits)
        held_out = splits[task.validation_splits[0]]
        notes.append(f"{task.name}: {len(held_out):,} of the training rows are held out as the validation split")
    return TaskData(task, splits, cited, tuple(notes), content)


def task_content(task: Task, source: str) -> dict[str, list[str]]:
    """What the data of a task are now, without reading their rows: of each split the digests of its files.

    Of a data set of the Hub it is its name with the commit.

    Args:
        source: as of `load_task`.

    Raises:
        UserError: for what is missing or cannot be read.
    """
    files = find_task_files(task, source)
    if files is not None:
        return _content_of_files(task, files)
    return {task.name: [hub_content(task, source.partition("@")[2])]}


def _content_of_files(task: Task, files: dict[str, list[Path]]) -> dict[str, list[str]]:
    return {
        f"{task.name} {split}": [
            digest_of_files(files_below(path), path) if path.is_dir() else digest_of_files([path]) for path in paths
        ]
        for split, paths in files.items()
    }


def find_task_files(task: Task, source: str) -> dict[str, list[Path]] | None:
    """The files of each split; none of a task that comes from the Hub. Those of test splits may be missing.

    Args:
        source: as of `load_task`.

    Raises:
        UserError: naming what is missing.
    """
    if source.partition("@")[0] == HUB:
        if task.source.hub is not None:
            return None
        if not task.source.files:
            raise UserError(f"The task {task.name} is not on the Hub.")
    if task.name in LAYOUTS:
        return {split: [path] for split, path in find_files(task, Path(source)).items()}
    if not task.source.files:
        raise UserError(f"The description of {task.name} names no files: use --data hub.")
    found = {}
    for split, files in task.source.files.items():
        paths = [_folder(task, source) / file for file in files]
        if split in task.test_splits and not any(path.exists() for path in paths):
            continue
        for path in paths:
            if not is_folder(path):
                require_file(path)
        found[split] = paths
    return found


def _folder(task: Task, source: str) -> Path:
    """Own data lie beside their description; published ones where the user keeps them."""
    return Path(source) if task.source.hub else task.source.folder


def _file_rows(task: Task, files: dict[str, list[Path]]) -> dict[str, Rows]:
    if task.name in LAYOUTS:
        return {split: read_glue_file(task, path, split) for split, (path,) in files.items()}
    return {split: joined([part for path in paths for part in _parts(task, path)]) for split, paths in files.items()}


def _parts(task: Task, path: Path) -> list[Rows]:
    return read_folder(task, path) if is_folder(path) else [read_file(task, path)]


def _hold_out(task: Task, splits: dict[str, datasets.Dataset]) -> dict[str, datasets.Dataset]:
    """Move a share of the training rows into the first validation split."""
    train = splits[task.train_split]
    if len(train) < 2:
        raise UserError(f"{task.name} has {len(train)} training rows: too few to hold some out for validation.")
    count = min(max(1, round(len(train) * task.source.validation_share)), len(train) - 1)
    parts = train.train_test_split(test_size=count, seed=HELD_OUT_SEED)
    held_out = {task.train_split: parts["train"], task.validation_splits[0]: parts["test"]}
    return {**held_out, **{split: rows for split, rows in splits.items() if split not in held_out}}
