"""A source of text as a person names it, and what every kind of source has in common."""

import difflib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from common.config.yaml_config import shown
from common.encodings import without_half_characters
from common.errors import UserError


DocumentMode = Literal["auto", "line", "blank_line", "file"]
OnBadRecord = Literal["error", "skip"]

MAX_DOCUMENT_BYTES = 4 * 2**20  # longer documents are cut at white space
CUT_WINDOW_BYTES = 2**16  # before the limit, in which white space is looked for first
MAX_RECORD_BYTES = 128 * 2**20  # of a line or row that must be read as a whole to be understood


class SourceError(UserError):
    """A source that cannot be read."""


class Row(NamedTuple):
    """A document, or a piece of one that is too long to be held in memory.

    Args:
        name: says where the document starts.
        text: None for a null.
        piece: how many pieces of the document came before.
    """

    name: str
    text: str | None
    piece: int = 0


class BadRecord(NamedTuple):
    """What stands where a document should be, but cannot be read.

    Args:
        file: the file or dataset.
        kind: by which such records are counted.
        message: says what is wrong, where, and what to do.
    """

    file: str
    kind: str
    message: str


@dataclass(frozen=True)
class Source:
    """One source of documents.

    Args:
        path: The word `python-docs`, a dataset of the Hub such as `wikitext` or `organisation/name`, or
            something local: a file, a folder (searched at all depths) or a glob, which may contain `**`.
        text_column: The column of tables, and the key of JSON lines, that holds the text.
        config: Configuration of a dataset of the Hub.
        split: Split of a dataset of the Hub; slices such as `train[:10%]` work where it is not streamed.
        revision: Branch, tag or commit of a dataset of the Hub.
        documents: What a document is in a text file: a "line", lines up to a "blank_line", or the whole
            "file". With "auto" blank lines separate documents if there is one between text in the first MiB,
            else each line is a document.
        streaming: Read a dataset of the Hub while it comes, instead of storing it first.
        weight: The share of this source in what training sees, relative to the weights of the others; each or none
            has one. Without weights each row is seen once an epoch.
        on_bad_record: "error" ends at a record that cannot be read; "skip" leaves it out and counts it.
    """

    path: str
    text_column: str = "text"
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    documents: str = "auto"
    streaming: bool = False
    weight: float | None = None
    on_bad_record: str = "error"

    def __post_init__(self) -> None:
        for key in ("path", "text_column", "config", "split", "revision"):
            value = getattr(self, key)
            if not (isinstance(value, str) or (value is None and key in ("config", "revision"))):
                raise SourceError(f"{self.path}: {key} is {shown(value)}, but must be text: put it in quotes")
        for key, choices in (("documents", get_args(DocumentMode)), ("on_bad_record", get_args(OnBadRecord))):
            value = getattr(self, key)
            if value not in choices:
                raise SourceError(f"{self.path}: {key} is {shown(value)}, but must be one of {quoted(choices)}")
        if not isinstance(self.streaming, bool):
            raise SourceError(f"{self.path}: streaming is {shown(self.streaming)}, but must be true or false")
        is_number = isinstance(self.weight, int | float) and not isinstance(self.weight, bool)
        if self.weight is not None and not (is_number and 0 < self.weight < math.inf):
            raise SourceError(f"{self.path}: weight is {shown(self.weight)}, but must be a number above 0, or null")


def text_row(value: object, place: str, file: str, column: str) -> Row | BadRecord:
    """The document in a value of the text column. Half surrogate pairs, which no encoding can write, become U+FFFD."""
    if value is None:
        return Row(place, None)
    if not isinstance(value, str):
        return BadRecord(
            file,
            "wrong type",
            f"{place}: the column {column!r} must hold text, but here it is {repr(value)[:80]} "
            f"({type(value).__name__})",
        )
    return Row(place, without_half_characters(value))


def missing_column(place: str, file: str, column: str, columns: Iterable[str]) -> BadRecord:
    """Names the columns there are, and the one that is most like the wanted one."""
    names = list(columns)
    nearest = difflib.get_close_matches(column, names, n=1, cutoff=0.5)
    suggestion = f"; did you mean {nearest[0]!r}?" if nearest else ""
    return BadRecord(
        file,
        "missing column",
        f"{place}: there is no column {column!r}, only {quoted(names)}. Set text_column to one of them{suggestion}",
    )


def repeated_column(place: str, file: str, column: str) -> BadRecord:
    """Of two columns of one name nobody can say which is meant."""
    message = f"{place}: there is more than one column {column!r}. Rename those that are not to be read"
    return BadRecord(file, "repeated column", message)


def too_long(place: str, file: str) -> BadRecord:
    return BadRecord(
        file,
        "too long",
        f"{place}: the record is longer than {MAX_RECORD_BYTES >> 20} MiB. Split it into several, or make its text "
        "a text file, where documents may have any length",
    )


def cut_place(data: bytes, limit: int) -> int:
    """Where to cut UTF-8 of more than `limit` bytes: at the last white space in the second half of the first `limit`
    bytes, or between two characters where there is none."""
    half = limit // 2
    for start in (max(limit - CUT_WINDOW_BYTES, half), half):
        place = max(data.rfind(space, start, limit) for space in (b" ", b"\n", b"\t"))
        if place > 0:
            return place
    place = limit
    while place > half and data[place] & 0xC0 == 0x80:
        place -= 1
    return place


def pieces_of(data: bytes, limit: int) -> Iterator[bytes]:
    """Cuts UTF-8 into pieces of at most `limit` bytes, which together are the whole."""
    start = 0
    while len(data) - start > limit:
        piece = data[start : start + limit + 1]
        place = cut_place(piece, limit)
        yield piece[:place]
        start += place
    yield data[start:]


def quoted(names: Iterable[str]) -> str:
    """The names in quotes, with commas between them."""
    return ", ".join(map(repr, names))
