"""One's own files: CSV, TSV, JSON lines and Parquet, read as a task description says."""

import csv
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow
from pyarrow import parquet

from common.errors import UserError
from common.files import is_file
from finetune_glue.data.lines import COMPRESSED, LONGEST_LINE, check_expansion, lines_of
from finetune_glue.data.rows import Rows
from finetune_glue.data.tasks import Columns, Task


FORMATS = {
    ".tsv": "tsv",
    ".txt": "tsv",
    ".csv": "csv",
    ".jsonl": "json",
    ".json": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
}
BATCH = 1024  # rows of a Parquet file that are read at once


def read_table(task: Task, path: Path) -> Rows:
    """The rows of a file; its suffix says the format.

    A TSV file has one row in each line and no quoting, as GLUE's; a CSV file quotes fields that hold commas, quotes or
    line ends.

    Raises:
        UserError: naming file and line, for a file or column that is not there, another number of fields than in the
            header, what is not text, and what cannot be decoded.
    """
    form = file_format(path)
    columns = task.source.file_columns
    assert columns is not None
    require_file(path)
    if form == "json":
        return _rows_of_json(task, columns, path)
    if form == "parquet":
        return _rows_of_parquet(task, columns, path)
    lines = _lines_of_csv(path) if form == "csv" else lines_of_tsv(path)
    return _rows_of_lines(task, columns, lines, path)


def file_format(path: Path) -> str:
    """How a file is written: "tsv", "csv", "json" or "parquet"."""
    suffixes = [suffix for suffix in path.suffixes if suffix not in COMPRESSED]
    form = FORMATS.get(suffixes[-1].lower() if suffixes else "")
    if form is None:
        raise UserError(f"{path}: the name must end in one of {', '.join(FORMATS)}, which says how it is written.")
    return form


def require_file(path: Path):
    """Raise a `UserError` where there is no such file; it names those beside it."""
    if is_file(path):
        return
    if path.is_symlink() or path.exists():
        what = "a folder" if path.is_dir() else "no file" if path.exists() else "a link to what is not there"
        raise UserError(f"{path} is {what}: put the file in its place.")
    beside = sorted(entry.name for entry in path.parent.iterdir()) if path.parent.is_dir() else []
    found = f"{path.parent} holds: {', '.join(beside[:10])}" if beside else f"there is no folder {path.parent}"
    raise UserError(
        f"There is no file {path}; {found if beside or not path.parent.is_dir() else 'its folder is empty'}."
    )


def lines_of_tsv(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The number and the fields of each line; nothing is quoted, and empty lines at the end do not count.

    Raises:
        UserError: for what is not UTF-8.
    """
    empty = 0
    for number, line in lines_of(path):
        line = line.rstrip("\r\n")
        if not line:
            empty += 1
            continue
        yield from ((number - back, [""]) for back in range(empty, 0, -1))
        empty = 0
        yield number, line.split("\t")


def _lines_of_csv(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The number of the last line, and the fields, of each row."""
    csv.field_size_limit(LONGEST_LINE)
    reader = csv.reader((line for _, line in lines_of(path)), strict=True)
    try:
        for fields in reader:
            if fields:
                yield reader.line_num, fields
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: not CSV: {error}. Check the quotes.") from error


def _rows_of_lines(task: Task, columns: Columns, lines: Iterator[tuple[int, list[str]]], path: Path) -> Rows:
    number, header = (0, list(task.source.header)) if task.source.header else next(lines, (0, []))
    where = f"{path}, line {number}" if number else f"The header of {task.name}"
    wanted = {**_paths(task, columns), "label": columns.label}
    places = {name: place_of(column, header, where) for name, column in wanted.items() if column in header}
    for name, column in wanted.items():
        if name not in places and name != "label":
            raise missing_column(str(path), column, header)
    values: dict[str, list[str]] = {name: [] for name in places}
    numbers = []
    for number, fields in lines:
        if len(fields) != len(header):
            raise wrong_number_of_columns(path, number, fields, header)
        for name, place in places.items():
            values[name].append(fields[place])
        numbers.append(number)
    labels = values.pop("label", None)
    return Rows(str(path), values, labels, list(range(len(numbers))), numbers)


def place_of(column: str, header: Sequence[str], place: str) -> int:
    """Where a column is among those of a header.

    Args:
        place: of the header, for the message.

    Raises:
        UserError: where the column stands twice.
    """
    if header.count(column) > 1:
        raise UserError(f"{place}: the column {column!r} stands twice. Rename the one that is not meant.")
    return header.index(column)


def missing_column(place: str, column: str, header: Iterable[str]) -> UserError:
    return UserError(f"{place} has no column {column!r}. Its columns are: {', '.join(header) or 'none'}.")


def wrong_number_of_columns(path: Path, number: int, fields: list[str], header: Iterable[str]) -> UserError:
    expected = list(header)
    return UserError(
        f"{path}, line {number}: {len(fields)} columns instead of {len(expected)} ({', '.join(expected)}). Mend or "
        "remove the line."
    )


def _paths(task: Task, columns: Columns) -> dict[str, str]:
    """Where each column of the task is in a flat table."""
    if len(columns.choices) != len(task.choice_columns):
        raise UserError(f"{task.name}: a list of choices needs JSON lines or Parquet; CSV has one column for each.")
    return dict(zip(task.text_columns + task.choice_columns, columns.text + columns.choices, strict=True))


def _rows_of_parquet(task: Task, columns: Columns, path: Path) -> Rows:
    """The rows of a file; not by `datasets.load_dataset`, whose cache tells files by their path and time alone."""
    try:
        with parquet.ParquetFile(path) as file:
            known = file.schema_arrow.names
            names = _label_names(datasets.Features.from_arrow_schema(file.schema_arrow), columns)
            records = _records_of_parquet(file, path, _roots(columns, known))
            return _rows_of_records(task, columns, known, records, str(path), names)
    except UserError:
        raise
    except (pyarrow.ArrowException, ValueError, TypeError, OSError) as error:
        raise UserError(f"{path} cannot be read as parquet: {str(error).splitlines()[0]}") from error


def _records_of_parquet(file: parquet.ParquetFile, path: Path, columns: list[str]) -> Iterator[dict]:
    size = 0
    for batch in file.iter_batches(batch_size=BATCH, columns=columns):
        size += batch.nbytes
        check_expansion(path, path.stat().st_size, size)
        yield from batch.to_pylist()


def _rows_of_json(task: Task, columns: Columns, path: Path) -> Rows:
    """The rows of a file with an object in each line, or with one array of objects."""
    wanted = {name for path in columns.paths for name in (path, path.partition(".")[0])}
    known: dict[str, None] = {}
    records = []
    for number, record in enumerate(_values_of_json(path), 1):
        if not isinstance(record, dict):
            raise UserError(
                f"{path}, row {number}: it must be a JSON object with the names and values of the columns."
            )
        known |= dict.fromkeys(record)
        records.append({name: record[name] for name in record.keys() & wanted})
    if not records:
        raise UserError(f"{path} cannot be read as json: it holds no rows.")
    return _rows_of_records(task, columns, list(known), records, str(path))


def _values_of_json(path: Path) -> Iterator[Any]:
    lines = lines_of(path, longest=None)
    first = next(((number, line) for number, line in lines if line.strip()), (1, ""))
    lines = itertools.chain([first], lines)
    if first[1].lstrip().startswith("["):
        yield from parsed_json("".join(line for _, line in lines), path)
    else:
        yield from (parsed_json(line.rstrip("\r\n"), path, number) for number, line in lines if line.strip())


def parsed_json(text: str, path: Path, first_line: int = 1) -> Any:
    """The value that a text in JSON stands for.

    Args:
        path, first_line: where the text stands, for messages.

    Raises:
        UserError: for what is not JSON.
    """
    try:
        return json.loads(text, object_pairs_hook=_unambiguous)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise UserError(f"{path}, line {line}: not JSON: {error.msg} at column {error.colno}.") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise UserError(f"{path}, line {first_line}: its JSON cannot be read: {error}.") from error


def _unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} stands twice")
    return value


def rows_of_table(task: Task, columns: Columns, table: datasets.Dataset, place: str) -> Rows:
    """The rows of a data set, whose columns may be nested.

    Args:
        place: of the data set, for messages.
    """
    known = table.column_names
    records = table.select_columns(_roots(columns, known))
    return _rows_of_records(task, columns, known, records, place, _label_names(table.features, columns))


def _rows_of_records(
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
        label_names: what the labels are called where they are ids.
    """
    texts: dict[str, list] = {name: [] for name in task.text_columns + task.choice_columns}
    labels: list[Any] = []
    for path in columns.text + columns.choices:
        if _root(path, known) not in known:
            raise missing_column(place, path, known)
    labelled = _root(columns.label, known) in known
    roots, count = _roots(columns, known), 0
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


def _label_names(features: datasets.Features, columns: Columns) -> list[str] | None:
    feature = features.get(columns.label)
    return feature.names if isinstance(feature, datasets.ClassLabel) else None


def texts_of_row(task: Task, columns: Columns, row: dict, where: str) -> dict[str, str]:
    """The texts and choices of a row, whose columns may be nested.

    Args:
        where: the row stands, for messages.
    """
    values = [_value(row, path, where) for path in columns.text] + _choices(task, row, columns, where)
    texts = dict(zip(task.text_columns + task.choice_columns, values, strict=True))
    for name, value in texts.items():
        if not isinstance(value, str):
            raise UserError(f"{where}: {name} is {value!r}, but must be text.")
    return texts


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


def _roots(columns: Columns, known: list[str]) -> list[str]:
    """The columns of a table that a task needs, as far as they are there."""
    roots = {_root(path, known) for path in columns.paths}
    return [name for name in known if name in roots]


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
