"""Data sets of the Hugging Face Hub."""

import datasets
from datasets.exceptions import DatasetsError
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import httpx

from common.contents import commit_of
from common.errors import UserError
from finetune_glue.data.records import label_names_of, roots_of, rows_of_records
from finetune_glue.data.rows import Rows
from finetune_glue.data.tasks import TASKS, Columns, Task


def read_hub(task: Task, revision: str) -> tuple[dict[str, Rows], str]:
    """The splits of a data set of the Hub, and its name with the commit that was read."""
    source = task.source
    assert source.hub_columns is not None
    name, wanted = _source(task, revision)
    config = f", configuration {source.hub_config}" if source.hub_config else ""
    place = f"{name}{f'@{wanted}' if wanted else ''}{config}"
    try:
        builder = datasets.load_dataset_builder(name, source.hub_config, revision=wanted)
        builder.download_and_prepare()
        loaded = builder.as_dataset()
    except (DatasetsError, HfHubHTTPError, httpx.TransportError, OSError, ValueError) as error:
        message = str(error).splitlines()[0].rstrip(".")
        raise UserError(
            f"The data set {place} cannot be loaded from the Hub: {message}. Where there is no network, give a folder "
            "of its files with --data FOLDER."
        ) from error
    rows = {}
    for split, on_hub in source.hub_splits.items():
        if on_hub not in loaded:
            if split in task.test_splits or (source.validation_share and split.startswith("validation")):
                continue
            raise UserError(f"The data set {place} has no split {on_hub!r}. Its splits are: {', '.join(loaded)}.")
        table = loaded[on_hub]
        where = f"{place}, split {on_hub}"
        rows[split] = _rows_of_table(task, source.hub_columns, table, where)
        if "idx" in table.column_names:
            rows[split].index = [int(index) for index in table["idx"]]
    return rows, f"{name}@{builder.hash}"


def hub_content(task: Task, revision: str) -> str:
    """The name of a task's data set with the commit that would be read now.

    Raises:
        UserError: where the commit is not known.
    """
    name, wanted = _source(task, revision)
    commit = commit_of(name, wanted, "README.md", "dataset")
    if not commit:
        raise UserError(f"The commit of the data set {name} is not known: the Hub cannot be reached.")
    return f"{name}@{commit}"


def _source(task: Task, revision: str) -> tuple[str, str | None]:
    """The data set of a task, and its revision: that of the description, or of GLUE what the user asks for."""
    assert task.source.hub is not None
    name, _, described = task.source.hub.partition("@")
    return name, described or (revision if task.name in TASKS else "") or None


def _rows_of_table(task: Task, columns: Columns, table: datasets.Dataset, place: str) -> Rows:
    """The rows of a data set, whose columns may be nested.

    Args:
        place: of the data set, for messages.
    """
    _check_names(task, columns, table, place)
    known = table.column_names
    records = table.select_columns(roots_of(columns, known))
    return rows_of_records(task, columns, known, records, place, label_names_of(table.features, columns))


def _check_names(task: Task, columns: Columns, table: datasets.Dataset, where: str):
    """Raise a `UserError` where the labels of the Hub are not those of the task."""
    names = label_names_of(table.features, columns) or []
    if not set(names) <= {*task.labels, *task.label_names}:
        expected = ", ".join(task.label_names)
        raise UserError(f"{where} has the labels {', '.join(names)}, but {task.name} has {expected}.")
