"""The files of a task, and the fingerprints of its data."""

from pathlib import Path

from common.contents import digest_of_files
from common.errors import UserError
from common.files import is_folder, require_file
from finetune_glue.data.folder_files import files_below
from finetune_glue.data.glue_files import LAYOUTS, find_files
from finetune_glue.data.hub import hub_content
from finetune_glue.data.tasks import Task


HUB = "hub"


def find_task_files(task: Task, source: str) -> dict[str, list[Path]] | None:
    """The files of each split; none of a task that comes from the Hub. Those of test splits may be missing.

    Args:
        source: see `load_task`.

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
        paths = [folder_of_files(task, source) / file for file in files]
        if split in task.test_splits and not any(path.exists() for path in paths):
            continue
        for path in paths:
            if not is_folder(path):
                require_file(path)
        found[split] = paths
    return found


def folder_of_files(task: Task, source: str) -> Path:
    """Own data lie beside their description; published ones where the user keeps them."""
    return Path(source) if task.source.hub else task.source.folder


def task_content(task: Task, source: str) -> dict[str, list[str]]:
    """What the data of a task are now, without reading their rows: of each split the digests of its files.

    Of a data set of the Hub it is its name with the commit.

    Args:
        source: see `load_task`.

    Raises:
        UserError: for what is missing or cannot be read.
    """
    files = find_task_files(task, source)
    if files is not None:
        return content_of_files(task, files)
    return {task.name: [hub_content(task, source.partition("@")[2])]}


def content_of_files(task: Task, files: dict[str, list[Path]]) -> dict[str, list[str]]:
    """The digests of the files of each split."""
    return {
        f"{task.name} {split}": [
            digest_of_files(files_below(path), path) if path.is_dir() else digest_of_files([path]) for path in paths
        ]
        for split, paths in files.items()
    }
