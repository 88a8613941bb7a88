"""Rows as they were read, and what they become: a data set with ids of labels, or numbers."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets

from common.errors import UserError
from common.labels import IGNORED
from finetune_glue.data.tasks import Task


# What stands where annotators agreed on no label: in the files of SNLI and MNLI, on the Hub, and in Transformers.
NO_LABEL = ("-", "-1", str(IGNORED), "")


@dataclass
class Rows:
    """The rows of one file, or of one split on the Hub.

    Args:
        place: the file, or the data set.
        texts: values of each text and choice column of the task.
        labels: as they were written; None where there is no such column.
        index: number of each row, from 0.
        numbers: where each row is in the file, in `unit`s from 1.
        notes: what was left out and why.
        places: the file of each row, where they come from several.
    """

    place: str
    texts: dict[str, list[str]]
    labels: Sequence[Any] | None
    index: list[int]
    numbers: Sequence[int]
    unit: str = "line"
    notes: list[str] = field(default_factory=list)
    places: list[str] = field(default_factory=list)

    def where(self, row: int) -> str:
        """Where a row stands, for a message."""
        return f"{self.places[row] if self.places else self.place}, {self.unit} {self.numbers[row]}"


def joined(parts: list[Rows]) -> Rows:
    """The rows of several files, numbered through."""
    if len(parts) == 1:
        return parts[0]
    if len({part.labels is None for part in parts}) > 1:
        without = next(part for part in parts if part.labels is None)
        raise UserError(f"{without.place} has no labels, but other files of its split have.")
    count = sum(len(part.index) for part in parts)
    return Rows(
        place=parts[0].place,
        texts={name: [text for part in parts for text in part.texts[name]] for name in parts[0].texts},
        labels=None if parts[0].labels is None else [label for part in parts for label in part.labels or ()],
        index=list(range(count)),
        numbers=[number for part in parts for number in part.numbers],
        unit=parts[0].unit,
        places=[part.place for part in parts for _ in part.index],
    )


def to_dataset(task: Task, rows: Rows, split: str) -> datasets.Dataset:
    """The columns of the task, "index" and "label"; the last is missing where the rows of a test split have none.

    Rows without an agreed label are left out, with a note in `rows.notes`; of a regression those with -100.

    Raises:
        UserError: for no rows, a label that is not of the task, or a test split that numbers two rows alike.
    """
    if not rows.index:
        raise UserError(f"{rows.place} has no rows: the split {split} of {task.name} is empty.")
    columns: dict[str, Sequence[Any]] = {**rows.texts, "index": rows.index}
    test = split in task.test_splits
    if test:
        _check_index(rows)
    labels = None if rows.labels is None else ["" if label is None else as_text(label) for label in rows.labels]
    if test and (labels is None or all(label in NO_LABEL for label in labels)):
        return datasets.Dataset.from_dict(columns)
    if labels is None:
        raise UserError(f"{rows.place} has no labels, which the split {split} of {task.name} needs.")
    if task.problem == "regression":
        values: list[float] = [_number(task, rows, row, label) for row, label in enumerate(labels)]
        kept = [row for row, value in enumerate(values) if value != IGNORED]
    else:
        ids = ids_of_labels(task)
        values = [ids.get(label, -1) for label in labels]
        kept = [row for row, label in enumerate(labels) if label in ids or label == "" or label not in NO_LABEL]
        _check_labels(task, rows, labels, [row for row in kept if labels[row] not in ids])
    if len(kept) < len(labels):
        rows.notes.append(f"{rows.place}: {len(labels) - len(kept):,} rows without an agreed label are left out")
    if not kept:
        raise UserError(f"{rows.place}: no row has a label, so that the split {split} of {task.name} is empty.")
    dataset = datasets.Dataset.from_dict({**columns, "label": values})
    return dataset if len(kept) == len(labels) else dataset.select(kept).flatten_indices()


def _check_labels(task: Task, rows: Rows, labels: list[str], unknown: list[int]):
    """Raise a `UserError` for the first of the rows whose labels are not of the task."""
    if unknown:
        known = ", ".join(task.labels)
        raise UserError(
            f"{rows.where(unknown[0])}: the label is {labels[unknown[0]]!r}, but {task.name} has: {known}. Mend the "
            "line, or check that file and task belong together."
        )


def as_text(value: object) -> str:
    """A label as text: JSON's true is `true`, and a whole number is written without a point."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value)


def ids_of_labels(task: Task) -> dict[str, int]:
    """The id of each label by how it may be written: as the task has it, by name, or as the id itself."""
    ids = {label: id for id, label in enumerate(task.labels)}
    by_name = {name: id for id, name in enumerate(task.label_names)}
    # Where labels are numbers, another number is no id: of the stars 1 to 5, 0 is none.
    by_id = {} if any(label.lstrip("-").isdigit() for label in ids) else {str(id): id for id in ids.values()}
    return {**by_id, **by_name, **ids}


def _number(task: Task, rows: Rows, row: int, label: str) -> float:
    try:
        value = float(label)
    except ValueError:
        value = math.nan
    low, high = task.label_range or (-math.inf, math.inf)
    if value == IGNORED:
        return value
    if not low <= value <= high or math.isinf(value):
        expected = f" from {low:g} to {high:g}" if task.label_range else ""
        raise UserError(f"{rows.where(row)}: the label is {label!r}, but {task.name} has numbers{expected}.")
    return value


def _check_index(rows: Rows):
    if len(set(rows.index)) == len(rows.index):
        return
    number, _ = Counter(rows.index).most_common(1)[0]
    first = rows.index.index(number)
    second = rows.index.index(number, first + 1)
    raise UserError(
        f"{rows.where(second)}: the index {number} stands in {rows.unit} {rows.numbers[first]} already. Predictions "
        "are told apart by it: give each row its own."
    )
