"""A source of text as a person names it, and what every kind of source has in common."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NoReturn

from pretrain.errors import UserError


DOCUMENT_MODES = ("auto", "line", "blank_line", "file")

# The name of a document, which says where it starts, and its text; no text for a null.
Row = tuple[str, str | None]


class SourceError(UserError):
    """A source that cannot be read."""


@dataclass(frozen=True)
class Source:
    """One source of documents.

    Args:
        path: The word `python-docs`, a dataset of the Hub such as `wikitext` or `organisation/name`, or
            something local: a file, a folder (searched at all depths) or a glob, which may contain `**`.
        text_column: The column of tables, and the key of JSON lines, that holds the text.
        config: Configuration of a dataset of the Hub.
        split: Split of a dataset of the Hub; slices such as `train[:10%]` work.
        revision: Branch, tag or commit of a dataset of the Hub.
        documents: What a document is in a text file: a "line", lines up to a "blank_line", or the whole
            "file". With "auto" blank lines separate documents if there is one between text in the first MiB,
            else each line is a document.
    """

    path: str
    text_column: str = "text"
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    documents: str = "auto"

    def __post_init__(self) -> None:
        if self.documents not in DOCUMENT_MODES:
            raise SourceError(
                f"{self.path}: documents is {self.documents!r}, but must be one of {quoted(DOCUMENT_MODES)}"
            )


def checked_text(value: object, place: str, column: str) -> str | None:
    """Checks a value of the text column. Half surrogate pairs, which no encoding can write, become U+FFFD."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise SourceError(
            f"{place}: the column {column!r} must hold text, "
            f"but here it is {repr(value)[:80]} ({type(value).__name__})"
        )
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return value


def raise_missing_column(place: str, column: str, columns: Iterable[str]) -> NoReturn:
    """Raises a `SourceError` that names the columns there are, and the one that is most like the wanted one."""
    names = list(columns)
    nearest = difflib.get_close_matches(column, names, n=1, cutoff=0.5)
    suggestion = f"; did you mean {nearest[0]!r}?" if nearest else ""
    raise SourceError(
        f"{place}: there is no column {column!r}, only {quoted(names)}. Set text_column to one of them{suggestion}"
    )


def quoted(names: Iterable[str]) -> str:
    """The names in quotes, with commas between them."""
    return ", ".join(map(repr, names))
