"""Tables whose lines are rows and whose fields are separated by tabs or commas."""

import csv
from pathlib import Path

from common.errors import UserError
from finetune_glue.data.columns import Lines, missing_column, place_of, read_columns
from finetune_glue.data.lines import LONGEST_LINE, lines_of
from finetune_glue.data.rows import Rows
from finetune_glue.data.tasks import Columns, Task


def lines_of_tsv(path: Path) -> Lines:
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


def lines_of_csv(path: Path) -> Lines:
    """The number of the last line, and the fields, of each row."""
    csv.field_size_limit(LONGEST_LINE)
    reader = csv.reader((line for _, line in lines_of(path)), strict=True)
    try:
        for fields in reader:
            if fields:
                yield reader.line_num, fields
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: not CSV: {error}. Check the quotes.") from error


def read_delimited(task: Task, columns: Columns, path: Path, lines: Lines) -> Rows:
    """The rows of a file that a task describes, from its lines.

    Raises:
        UserError: naming file and line, for a missing column, or another number of fields than in the header.
    """
    if len(columns.choices) != len(task.choice_columns):
        raise UserError(f"{task.name}: a list of choices needs JSON lines or Parquet; CSV has one column for each.")
    names = (*task.text_columns, *task.choice_columns, "label")
    wanted = dict(zip(names, (*columns.text, *columns.choices, columns.label), strict=True))
    number, header = (0, list(task.source.header)) if task.source.header else next(lines, (0, []))
    where = f"{path}, line {number}" if number else f"The header of {task.name}"
    places = {name: place_of(column, header, where) for name, column in wanted.items() if column in header}
    for name, column in wanted.items():
        if name not in places and name != "label":
            raise missing_column(str(path), column, header)
    table = read_columns(path, lines, header, places)
    labels = table.values.pop("label", None)
    return Rows(str(path), table.values, labels, list(range(len(table.numbers))), table.numbers)
