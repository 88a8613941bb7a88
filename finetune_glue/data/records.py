"""Rows of named and perhaps nested values, as JSON, Parquet and the Hub have them."""

from collections.abc import Iterable
from typing import Any

import datasets

from common.encodings import without_half_characters
from common.errors import UserError
from finetune_glue.data.columns import missing_column, place_of
from finetune_glue.data.rows import Rows
from finetune_glue.data.tasks import Columns, Task


def rows_of_records(
    task: Task,
    columns: Columns,
    known: list[str],
    records: Iterable[dict],
    place: str,
    label_names: list[str] | None = None,
) -> Rows:
    """The rows of a table of named and perhaps nested values.

    Args:
        known: all columns of the table.
        records: the columns of each row that the task needs; one that is not there is null.
        label_names: see `label_names_of`.
    """
    texts: dict[str, list] = {name: [] for name in task.text_columns + task.choice_columns}
    labels: list[Any] = []
    for path in columns.text + columns.choices:
        if _root(path, known) not in known:
            raise missing_column(place, path, known)
    labelled = _root(columns.label, known) in known
    roots, count = roots_of(columns, known), 0
    for root in roots:
        place_of(root, known, place)
    for count, record in enumerate(records, 1):
        where = f"{place}, row {count}"
        row = {root: record.get(root) for root in roots}
        for name, value in texts_of_row(task, columns, row, where).items():
            texts[name].append(value)
        if labelled:
            label = _value(row, columns.label, where)
            labels.append(label_names[label] if label_names and label is not None and label >= 0 else label)
    return Rows(place, texts, labels if labelled else None, list(range(count)), range(1, count + 1), "row")


def texts_of_row(task: Task, columns: Columns, row: dict, where: str) -> dict[str, str]:
    """The texts and choices of a row, whose columns may be nested, with U+FFFD in place of half surrogate pairs.

    Args:
        where: the row stands, for messages.
    """
    values = [_value(row, path, where) for path in columns.text] + _choices(task, row, columns, where)
    texts = dict(zip(task.text_columns + task.choice_columns, values, strict=True))
    for name, value in texts.items():
        if not isinstance(value, str):
            raise UserError(f"{where}: {name} is {value!r}, but must be text.")
        texts[name] = without_half_characters(value)
    return texts


def roots_of(columns: Columns, known: list[str]) -> list[str]:
    """The columns of a table that a task needs, as far as they are there."""
    roots = {_root(path, known) for path in columns.paths}
    return [name for name in known if name in roots]


def label_names_of(features: datasets.Features, columns: Columns) -> list[str] | None:
    """What the ids of labels are called, where the labels are ids."""
    feature = features.get(columns.label)
    return feature.names if isinstance(feature, datasets.ClassLabel) else None


def _choices(task: Task, row: dict, columns: Columns, where: str) -> list:
    if len(columns.choices) == len(task.choice_columns):
        return [_value(row, path, where) for path in columns.choices]
    choices = _value(row, columns.choices[0], where)
    if not isinstance(choices, list) or len(choices) != len(task.choice_columns):
        raise UserError(
            f"{where}: {columns.choices[0]} is {choices!r}, but must list {len(task.choice_columns)} choices, one for "
            f"each of the labels {', '.join(task.labels)}."
        )
    return choices


def _root(path: str, known: list[str]) -> str:
    """The column that a path begins in; a column's own name may hold dots."""
    return path if path in known else path.partition(".")[0]


def _value(row: Any, path: str, where: str) -> Any:
    """What a path with dots leads to; in a list, what it leads to in each entry."""
    if isinstance(row, list):
        return [_value(entry, path, where) for entry in row]
    if isinstance(row, dict) and path in row:
        return row[path]
    key, dot, rest = path.partition(".")
    if not dot or not isinstance(row, dict) or key not in row:
        raise UserError(f"{where} has no {path}.")
    return _value(row[key], rest, where)
