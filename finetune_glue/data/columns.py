"""The columns of a table by their names: those that are wanted, and what is said of missing and doubled ones."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common.errors import UserError


Lines = Iterator[tuple[int, list[str]]]  # the number and the fields of each row


@dataclass
class Table:
    """Some columns of a table.

    Args:
        values: of each column, in the order of the rows.
        numbers: of the rows' lines.
        broken: numbers of lines that were left out.
    """

    values: dict[str, list[str]]
    numbers: list[int] = field(default_factory=list)
    broken: list[int] = field(default_factory=list)


def read_columns(
    path: Path,
    lines: Lines,
    header: Sequence[str],
    places: Mapping[str, int],
    optional: int = 0,
    broken_share: float = 0.0,
) -> Table:
    """Some columns of the lines of a file.

    Args:
        header: all columns.
        places: where those that are wanted are among them.
        optional: how many more columns a line may have.
        broken_share: of the lines, how many may have another number of columns: they are left out.

    Raises:
        UserError: for the first line with another number of columns, where there are more of them.
    """
    table = Table({name: [] for name in places})
    first: UserError | None = None
    for number, fields in lines:
        if len(header) <= len(fields) <= len(header) + optional:
            for name, place in places.items():
                table.values[name].append(fields[place])
            table.numbers.append(number)
            continue
        first = first or wrong_number_of_columns(path, number, fields, header)
        if not broken_share:
            raise first
        table.broken.append(number)
    if first is not None and len(table.broken) > broken_share * (len(table.numbers) + len(table.broken)):
        raise first
    return table


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
