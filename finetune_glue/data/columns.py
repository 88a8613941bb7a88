"""Columns by their names: which place they have, and what is said of missing or doubled ones."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from common.errors import UserError


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
