"""One's own files: CSV, TSV, JSON lines and Parquet, read as a task description says."""

import bz2
import codecs
import csv
import gzip
import json
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
from datasets.exceptions import DatasetGenerationError

from common.errors import UserError
from common.files import is_file
from finetune_glue.rows import Rows
from finetune_glue.tasks import Columns, Task


FORMATS = {
    ".tsv": "tsv",
    ".txt": "tsv",
    ".csv": "csv",
    ".jsonl": "json",
    ".json": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
}
COMPRESSED: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


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
    if form in ("json", "parquet"):
        try:
            return rows_of_table(task, columns, _load(path, form), str(path))
        except UnicodeDecodeError as error:
            if form == "json":
                _check_json_lines(path)
            raise UserError(f"{path} holds text that is not UTF-8: {error}.") from error
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
    csv.field_size_limit(2**30)
    reader = csv.reader((line for _, line in lines_of(path)), strict=True)
    try:
        for fields in reader:
            if fields:
                yield reader.line_num, fields
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: not CSV: {error}. Check the quotes.") from error


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """The number and the text of each line.

    Raises:
        UserError: for what cannot be read, or is not UTF-8.
    """
    try:
        with COMPRESSED.get(path.suffix, Path.open)(path, "rb") as file:
            for number, line in enumerate(file, 1):
                yield number, decoded(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line, path, number)
    except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error


def decoded(line: bytes, path: Path, number: int) -> str:
    """A line as text."""
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        if number == 1 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise UserError(
                f"{path} is UTF-16. Save it as UTF-8, for example by: iconv -f UTF-16 -t UTF-8 FILE"
            ) from error
        raise UserError(
            f"{path}, line {number}: byte {error.start + 1} (0x{line[error.start]:02x}) is not UTF-8. Convert the "
            "file, for example by: iconv -f WINDOWS-1252 -t UTF-8 FILE"
        ) from error


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


def _load(path: Path, form: str) -> datasets.Dataset:
    try:
        return datasets.load_dataset(form, data_files=str(path), split="train")
    except (DatasetGenerationError, ValueError, TypeError, OSError, StopIteration) as error:
        if form == "json" and ".json" not in path.suffixes:
            _check_json_lines(path)
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        message = str(cause) or "it holds no rows."
        raise UserError(f"{path} cannot be read as {form}: {message.splitlines()[0]}") from error


def _check_json_lines(path: Path):
    """Raise a `UserError` for the first line that is no JSON; what reads them all at once does not know its number."""
    for number, line in lines_of(path):
        try:
            json.loads(line.rstrip("\r\n") if line.strip() else "null")
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number}: not JSON: {error.msg} at column {error.colno}.") from error


def rows_of_table(task: Task, columns: Columns, table: datasets.Dataset, place: str) -> Rows:
    """The rows of a data set, whose columns may be nested.

    Args:
        place: of the data set, for messages.
    """
    texts: dict[str, list] = {name: [] for name in task.text_columns + task.choice_columns}
    labels: list[Any] = []
    known = table.column_names
    for path in columns.text + columns.choices:
        if _root(path, known) not in known:
            raise missing_column(place, path, known)
    labelled = _root(columns.label, known) in known
    needed = [*columns.text, *columns.choices, *([columns.label] if labelled else [])]
    feature = table.features.get(columns.label)
    names = feature.names if isinstance(feature, datasets.ClassLabel) else None
    for number, row in enumerate(table.select_columns(list({_root(path, known): None for path in needed})), 1):
        where = f"{place}, row {number}"
        for name, value in texts_of_row(task, columns, row, where).items():
            texts[name].append(value)
        if labelled:
            label = _value(row, columns.label, where)
            labels.append(names[label] if names and label is not None and label >= 0 else label)
    count = len(table)
    return Rows(place, texts, labels if labelled else None, list(range(count)), range(1, count + 1), "row")


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
