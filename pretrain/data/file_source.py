"""Documents in local files: plain text, JSON lines, CSV and Parquet, the first three also compressed.

All are read piece by piece, so that the memory is bounded whatever the size of a file, a line or a document. What
cannot be read becomes a `BadRecord` between the documents, and reading goes on behind it.
"""

import codecs
import csv
import json
import re
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import pyarrow
import pyarrow.parquet

from common.encodings import SAMPLE_BYTES, conversion, wide_encoding
from pretrain.data.compression import DECOMPRESSION_ERRORS, open_bytes
from pretrain.data.local_files import CSV_DELIMITERS, JSON_SUFFIXES, PARQUET_SUFFIX, format_of
from pretrain.data.text_source import (
    MAX_DOCUMENT_BYTES,
    MAX_RECORD_BYTES,
    BadRecord,
    Row,
    Source,
    cut_place,
    missing_column,
    repeated_column,
    text_row,
    too_long,
)


BYTE_ORDER_MARK = codecs.BOM_UTF8
LOOKAHEAD_BYTES = 2**20
PARQUET_BATCH_ROWS = 1000
PARQUET_BATCH_BYTES = 8 * 2**20


def rows_of_file(file: str, source: Source) -> Iterator[Row | BadRecord]:
    """Yields the documents of one file, which must hold some text."""
    suffix = format_of(file)
    if suffix == PARQUET_SUFFIX:
        rows = _rows_of_parquet(file, source.text_column)
    elif suffix in JSON_SUFFIXES:
        rows = _rows_of_json_lines(file, source.text_column)
    elif suffix in CSV_DELIMITERS:
        rows = _rows_of_csv(file, source.text_column, CSV_DELIMITERS[suffix])
    else:
        rows = _rows_of_text(file, source.documents)
    nothing = True
    for row in rows:
        nothing = nothing and isinstance(row, Row) and not (row.text and row.text.strip())
        yield row
    if nothing:
        message = f"{file}: the file is empty or holds only white space. Remove it or put text into it"
        yield BadRecord(file, "empty file", message)


class _Line(NamedTuple):
    """A line with its end, or a piece of a long one, which `goes_on`."""

    number: int
    text: str
    goes_on: bool


def _lines(file: str, whole: bool) -> Iterator[_Line | BadRecord]:
    """Yields the lines of a file of UTF-8 with or without a byte order mark.

    Args:
        whole: whether a line must not be cut; longer ones than can be held are then bad records. Others are cut at
            white space.
    """
    limit = MAX_RECORD_BYTES if whole else MAX_DOCUMENT_BYTES
    number, rest, damage = 1, b"", None
    try:
        with open_bytes(file) as stream:
            encoding = wide_encoding(stream.peek(SAMPLE_BYTES)[:SAMPLE_BYTES])
            if encoding is not None:
                message = f"{file}: the text is {encoding}, not UTF-8. {conversion(file, encoding)}"
                yield BadRecord(file, "not UTF-8", message)
                return
            at_start = True
            while data := stream.readline(limit - len(rest)):
                goes_on = len(data) == limit - len(rest) and not data.endswith(b"\n")
                if at_start:
                    data, at_start = data.removeprefix(BYTE_ORDER_MARK), False
                if goes_on and whole:
                    while data and not data.endswith(b"\n"):
                        data = stream.readline(LOOKAHEAD_BYTES)
                    yield too_long(f"{file}:{number}", file)
                    number += 1
                    continue
                if rest:
                    data, rest = rest + data, b""
                if goes_on:
                    place = cut_place(data, len(data) - 1)
                    data, rest = data[:place], data[place:]
                yield _decoded(data, file, number, goes_on)
                number += not goes_on
    except DECOMPRESSION_ERRORS as error:
        damage = _damage(file, error)
    if rest:
        yield _decoded(rest, file, number, False)
    if damage is not None:
        yield damage


def _damage(file: str, error: Exception) -> BadRecord:
    """Explains why a file cannot be read further."""
    if isinstance(error, OSError) and error.errno is not None:
        return BadRecord(file, "unreadable file", f"{file}: cannot be read: {error.strerror}")
    message = f"{file}: cannot be decompressed, it is cut or corrupt: {error}"
    return BadRecord(file, "damaged file", message)


def _decoded(line: bytes, file: str, number: int, goes_on: bool) -> _Line | BadRecord:
    try:
        return _Line(number, line.decode(), goes_on)
    except UnicodeDecodeError as error:
        return BadRecord(
            file,
            "not UTF-8",
            f"{file}:{number}: byte {error.start + 1} of the line (0x{line[error.start]:02x}) is not UTF-8. Mend the "
            "line, or, if all of the file has another encoding, which the command `file` may tell (WINDOWS-1252 is "
            f"frequent in the West): {conversion(file, 'ENCODING')}",
        )


def _rows_of_text(file: str, documents: str) -> Iterator[Row | BadRecord]:
    """Yields the documents of a text file. A line that is not UTF-8 is missing from its document."""
    if documents == "auto":
        documents = "blank_line" if _has_blank_line(file) else "line"
    lines = _lines(file, whole=False)
    if documents == "line":
        return _rows_by_line(file, lines)
    return _rows_of_lines(file, lines, documents)


def _has_blank_line(file: str) -> bool:
    """Whether a blank line separates text in the first MiB."""
    try:
        with open_bytes(file) as stream:
            start = stream.read(LOOKAHEAD_BYTES)
    except DECOMPRESSION_ERRORS:
        return True  # reading the lines will say what is wrong
    return re.search(rb"\n[ \t\r]*\n", start.strip()) is not None


def _rows_by_line(file: str, lines: Iterator[_Line | BadRecord]) -> Iterator[Row | BadRecord]:
    piece = 0
    for line in lines:
        if isinstance(line, BadRecord):
            yield line
            continue
        if line.text.strip():
            yield Row(f"{file}:{line.number}", line.text.rstrip("\r\n"), piece)
        piece = piece + 1 if line.goes_on else 0


def _rows_of_lines(file: str, lines: Iterator[_Line | BadRecord], documents: str) -> Iterator[Row | BadRecord]:
    """Joins the lines of a document, up to a "blank_line" or the end of the "file"."""
    name = file
    parts: list[str] = []
    length = piece = 0
    for line in lines:
        if isinstance(line, BadRecord):
            yield line
            continue
        text = line.text.rstrip("\r\n")
        if documents == "blank_line":
            if not text.strip() and not line.goes_on:
                if parts:
                    yield Row(name, "".join(parts).removesuffix("\n"), piece)
                parts, length, piece = [], 0, 0
                continue
            if not parts and not piece:
                name = f"{file}:{line.number}"
        size = len(text if text.isascii() else text.encode()) + 1
        if parts and length + size > MAX_DOCUMENT_BYTES:
            yield Row(name, "".join(parts).removesuffix("\n"), piece)
            parts, length, piece = [], 0, piece + 1
        parts.append(text if line.goes_on else f"{text}\n")
        length += size
    if parts:
        yield Row(name, "".join(parts).removesuffix("\n"), piece)


def _rows_of_json_lines(file: str, column: str) -> Iterator[Row | BadRecord]:
    for line in _lines(file, whole=True):
        if isinstance(line, BadRecord):
            yield line
            continue
        text = line.text
        if not text.strip():
            continue
        place = f"{file}:{line.number}"
        array_hint = ". A file that is one array becomes JSON lines by: jq -c '.[]' FILE" if text[0] == "[" else ""
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            wrong = f"not JSON: {error.msg} at column {error.colno}"
            yield BadRecord(file, "not JSON", f"{place}: {wrong}. Each line must be one object{array_hint}")
            continue
        except (ValueError, RecursionError) as error:
            yield BadRecord(file, "not JSON", f"{place}: not JSON that can be read: {error}")
            continue
        if not isinstance(value, dict):
            message = f"{place}: each line must be a JSON object, but this is {_json_type(value)}{array_hint}"
            yield BadRecord(file, "not an object", message)
        elif column not in value:
            yield missing_column(place, file, column, value)
        elif text.count(f'"{column}"') > 1 and _is_repeated(column, text):
            yield repeated_column(place, file, column)
        else:
            yield text_row(value[column], place, file, column)


def _is_repeated(key: str, text: str) -> bool:
    """Whether an object of JSON has a key twice, of which `json.loads` takes the last."""
    return sum(name == key for name, _ in json.loads(text, object_pairs_hook=list)) > 1


def _json_type(value: object) -> str:
    return {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}.get(type(value), "a number")


class _CsvLines:
    """Gives lines to a CSV reader and keeps those of the row that is being read."""

    def __init__(self, lines: Iterator[_Line | BadRecord]):
        self._lines = lines
        self._again: deque[_Line] = deque()
        self.row: list[_Line] = []
        self.bad: list[BadRecord] = []
        self.broken = False  # a line of the row is missing

    def __iter__(self) -> "_CsvLines":
        return self

    def __next__(self) -> str:
        while True:
            line = self._again.popleft() if self._again else next(self._lines)
            if isinstance(line, _Line):
                self.row.append(line)
                return line.text
            self.bad.append(line)
            self.broken = self.broken or bool(self.row)

    def end_row(self, read_again: int = 0):
        """Forget the lines of the row but for its last ones, which are given out again."""
        self._again.extendleft(reversed(self.row[len(self.row) - read_again :]))
        self.row, self.bad, self.broken = [], [], False


def _rows_of_csv(file: str, column: str, delimiter: str) -> Iterator[Row | BadRecord]:
    """Yields the rows of a table. Behind a row with broken quotes reading goes on at its second line."""
    csv.field_size_limit(MAX_RECORD_BYTES)
    lines = _CsvLines(_lines(file, whole=True))
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        try:
            fields = next(reader, None)
        except csv.Error as error:
            yield from lines.bad
            if not lines.broken:
                message = f"{file}:{lines.row[0].number}: broken row: {error}. Check the quotes of this row"
                yield BadRecord(file, "broken row", message)
            lines.end_row(read_again=len(lines.row) - 1)
            reader = csv.reader(lines, delimiter=delimiter, strict=True)
            continue
        yield from lines.bad
        if fields is None:
            return
        place, broken = f"{file}:{lines.row[0].number}", lines.broken
        lines.end_row()
        if not fields or broken:
            continue
        if header is None:
            header = fields
            if header.count(column) != 1:
                yield _no_such_column(place, file, column, header)
                return
        elif len(fields) != len(header):
            message = (
                f"{place}: the row has {len(fields)} fields, but the header has {len(header)}. "
                "Quote fields that contain the delimiter, a quote or a line end"
            )
            yield BadRecord(file, "broken row", message)
        else:
            yield Row(place, fields[header.index(column)])


def _no_such_column(place: str, file: str, column: str, names: list[str]) -> BadRecord:
    """Of a table that does not have just one column of this name."""
    if column not in names:
        return missing_column(place, file, column, names)
    return repeated_column(place, file, column)


def _rows_of_parquet(file: str, column: str) -> Iterator[Row | BadRecord]:
    """Yields the rows of a table; of a damaged row group those before the damage, and then the next groups."""
    try:
        with pyarrow.parquet.ParquetFile(file, buffer_size=LOOKAHEAD_BYTES, pre_buffer=False) as table:
            names = table.schema_arrow.names
            if names.count(column) != 1:
                yield _no_such_column(file, file, column, names)
                return
            first_row = 1
            for group in range(table.num_row_groups):
                size = table.metadata.row_group(group)
                batch_rows = PARQUET_BATCH_BYTES * size.num_rows // max(1, size.total_byte_size)
                batch_rows = min(max(1, batch_rows), PARQUET_BATCH_ROWS)
                batches = table.iter_batches(batch_rows, row_groups=[group], columns=[column])
                yield from _rows_of_group(file, column, batches, first_row)
                first_row += size.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        yield _parquet_damage(file, error)


def _rows_of_group(
    file: str, column: str, batches: Iterator[pyarrow.RecordBatch], first_row: int
) -> Iterator[Row | BadRecord]:
    row = first_row
    try:
        for batch in batches:
            for value in batch.column(0):
                place = f"{file}, row {row}"
                row += 1
                if hasattr(value, "as_buffer") and value.is_valid and value.as_buffer().size > MAX_RECORD_BYTES:
                    yield too_long(place, file)
                    continue
                try:
                    text = value.as_py()
                except UnicodeDecodeError:
                    yield BadRecord(file, "not UTF-8", f"{place}: the text is not UTF-8")
                    continue
                yield text_row(text, place, file, column)
    except (pyarrow.ArrowException, OSError) as error:
        yield _parquet_damage(file, error)


def _parquet_damage(file: str, error: Exception) -> BadRecord:
    if isinstance(error, OSError) and error.errno is not None:
        return BadRecord(file, "unreadable file", f"{file}: cannot be read: {error.strerror}")
    return BadRecord(file, "damaged file", f"{file}: not a whole Parquet file: {error}")
