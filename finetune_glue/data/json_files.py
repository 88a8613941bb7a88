"""JSON: an object in each line, or one array of objects; and a whole file of another form."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.errors import UserError
from finetune_glue.data.lines import lines_of
from finetune_glue.data.records import rows_of_records
from finetune_glue.data.rows import Rows
from finetune_glue.data.tasks import Columns, Task


def read_json(task: Task, columns: Columns, path: Path) -> Rows:
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
    return rows_of_records(task, columns, list(known), records, str(path))


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
