"""Where the text comes from: files, datasets of the Hub and the documentation of Python.

All become a stream of documents in bounded memory, which can be resumed from any document. Whatever is wrong
with a source ends in a `SourceError` that says what, where and what to do, or is left out and counted.
"""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from common.errors import printable
from pretrain.data.file_source import rows_of_file
from pretrain.data.local_files import local_files, reading_of
from pretrain.data.python_docs import python_docs_identity, read_python_docs
from pretrain.data.source_hashes import hashes_of
from pretrain.data.text_source import (
    MAX_DOCUMENT_BYTES,
    BadRecord,
    Row,
    Source,
    SourceError,
    pieces_of,
)


__all__ = [
    "PYTHON_DOCS",
    "Counts",
    "Document",
    "DocumentReader",
    "Source",
    "SourceError",
    "check_source",
    "read_documents",
    "source_identity",
]

logger = logging.getLogger(__name__)

PYTHON_DOCS = "python-docs"


def source_identity(source: Source, memory: Path | None = None) -> dict[str, Any]:
    """Returns JSON-able values that change whenever the documents may have changed.

    Of files their order and their content count, not where they lie or when they were written.

    Args:
        source: what is read.
        memory: a folder in which the hashes of files are remembered.

    Raises:
        SourceError: The source does not exist or the Hub cannot be reached.
    """
    if source.path == PYTHON_DOCS:
        return {"kind": PYTHON_DOCS, **python_docs_identity()}
    files = local_files(source)
    if files is not None:
        return {
            "kind": "files",
            "files": [[*reading_of(file), hash] for file, hash in zip(files, hashes_of(files, memory), strict=True)],
            "text_column": source.text_column,
            "documents": source.documents,
        }
    from pretrain.data.hub_source import (
        find_on_hub,  # takes a second, which processes that only tokenise need not wait for
    )

    dataset = find_on_hub(source)
    return {
        "kind": "hub",
        "id": dataset.id,
        "commit": dataset.commit,
        "config": source.config,
        "split": source.split,
        "text_column": source.text_column,
        "streaming": source.streaming,
    }


def check_source(source: Source):
    """See that a source is there, without reading it.

    Raises:
        SourceError: where it does not exist or the Hub cannot be reached.
    """
    if source.path != PYTHON_DOCS and local_files(source) is None:
        from pretrain.data.hub_source import find_on_hub

        find_on_hub(source)


class Document(NamedTuple):
    """A document, or a piece of one that was too long: the name of its place, and its text in UTF-8."""

    name: str
    text: bytes


@dataclass
class Counts:
    """What was met between documents.

    Args:
        without_text: documents that were null or white space.
        cut: documents that were cut, as they were too long.
        bad: for each file and each kind of bad record, how many there were and the message of the first.
    """

    without_text: int = 0
    cut: int = 0
    bad: dict[str, dict[str, dict]] = field(default_factory=dict)

    def add_bad(self, file: str, kind: str, count: int, message: str):
        entry = self.bad.setdefault(file, {}).setdefault(kind, {"count": 0, "first": message})
        entry["count"] += count

    def add(self, other: "Counts"):
        """Add what was met later."""
        self.without_text += other.without_text
        self.cut += other.cut
        for file, kinds in other.bad.items():
            for kind, entry in kinds.items():
                self.add_bad(file, kind, entry["count"], entry["first"])

    @property
    def num_bad(self) -> int:
        return sum(entry["count"] for kinds in self.bad.values() for entry in kinds.values())


class DocumentReader:
    """The documents of a source, in the same order each time, whose reading can be resumed.

    Documents without any text are left out. Line ends become "\\n". Documents of more than `MAX_DOCUMENT_BYTES` come
    in pieces.

    Args:
        source: what to read.
        num_proc: processes that read `python-docs` and store datasets of the Hub.
        position: of an earlier reader, from which to go on.
    """

    def __init__(self, source: Source, num_proc: int, position: dict | None = None):
        self.source = source
        self.num_proc = num_proc
        self._counts = Counts()
        start = position or {"group": None, "row": 0, "piece": 0}
        self._group, self._row, self._piece = start["group"], start["row"], start["piece"]

    @property
    def position(self) -> dict:
        """Where the next document begins, as JSON."""
        return {"group": self._group, "row": self._row, "piece": self._piece}

    def take_counts(self) -> Counts:
        """What was met since the start or since this was called last."""
        counts, self._counts = self._counts, Counts()
        return counts

    def __iter__(self) -> Iterator[Document]:
        """
        Raises:
            SourceError: The source does not exist, cannot be reached or is not what its name says.
        """
        first_row = self._row
        for group, rows in _groups(self.source, self.num_proc, self._group):
            if group != self._group:
                self._group, first_row, self._piece = group, 0, 0
            self._row = first_row
            for row in islice(rows, first_row, None):
                if isinstance(row, BadRecord):
                    self._meet(row)
                    self._row += 1
                else:
                    yield from self._pieces(row)

    def _meet(self, record: BadRecord):
        if self.source.on_bad_record == "error":
            raise SourceError(record.message)
        self._counts.add_bad(record.file, record.kind, 1, record.message)

    def _pieces(self, row: Row) -> Iterator[Document]:
        """Yields the pieces of a row that are still to come, keeping the position up to date."""
        if row.text is None or not row.text.strip():
            self._counts.without_text += row.piece == 0
            self._row += 1
            return
        text = row.text.replace("\r\n", "\n").encode()
        done = self._piece
        pieces = list(pieces_of(text, MAX_DOCUMENT_BYTES)) if len(text) > MAX_DOCUMENT_BYTES else [text]
        for number, piece in enumerate(pieces[done:], start=done):
            self._counts.cut += row.piece + number == 1
            if number + 1 < len(pieces):
                self._piece = number + 1
            else:
                self._row, self._piece = self._row + 1, 0
            if piece.strip():
                count = row.piece + number
                yield Document(f"{row.name}, piece {count + 1}" if count else row.name, piece)


def read_documents(source: Source, num_proc: int) -> Iterator[dict[str, str]]:
    """Yields `{"name": ..., "text": ...}` for each document, as `DocumentReader` does, and logs what was left out."""
    reader = DocumentReader(source, num_proc)
    for document in reader:
        yield {"name": document.name, "text": document.text.decode()}
    counts = reader.take_counts()
    if counts.without_text:
        logger.warning("%s: skipped %d documents without text", printable(source.path), counts.without_text)
    for file, kinds in counts.bad.items():
        for kind, entry in kinds.items():
            first = printable(f"{kind}. The first: {entry['first']}")
            logger.warning("%s: skipped %d records: %s", printable(file), entry["count"], first)


# What can be read anew by itself: its name, as JSON, and its rows.
Group = tuple[Any, Iterator[Row | BadRecord]]


def _groups(source: Source, num_proc: int, first: Any) -> Iterator[Group]:
    """Yields the parts of a source, such as its files, from the one named `first` on; from the start for None."""
    if source.path == PYTHON_DOCS:
        yield 0, _python_docs(num_proc)
        return
    files = local_files(source)
    if files is None:
        from pretrain.data.hub_source import groups_of_hub_dataset

        yield from groups_of_hub_dataset(source, num_proc, first)
        return
    start = first or 0
    for number, file in enumerate(files[start:], start=start):
        yield number, rows_of_file(file, source)


def _python_docs(num_proc: int) -> Iterator[Row]:
    """The corpus, which stays in memory: parsing takes long, it is read for the tokenizer and for its tokens, and it
    is small."""
    rows, unread = _python_docs_in_memory(num_proc, json.dumps(python_docs_identity()))
    yield from rows
    for row in unread:
        rows.append(row)
        yield row


@lru_cache(maxsize=1)
def _python_docs_in_memory(num_proc: int, identity: str) -> tuple[list[Row], Iterator[Row]]:
    """What was read of the corpus with this identity, and what was not yet."""
    return [], (Row(document["name"], document["text"]) for document in read_python_docs(num_proc))
