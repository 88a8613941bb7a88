"""Where the text comes from: files, datasets of the Hub and the documentation of Python.

All become a stream of documents. Text, JSON lines and CSV are read line by line and Parquet by batches of one
column, so the memory is bounded by the longest document. Whatever is wrong with a source ends in a
`SourceError` that says what, where and what to do.
"""

import bz2
import csv
import glob
import gzip
import io
import json
import logging
import lzma
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Any

import pyarrow
import pyarrow.parquet
import zstandard

from pretrain.data.hub_source import find_on_hub, rows_of_hub_dataset
from pretrain.data.python_docs import python_docs_identity, read_python_docs
from pretrain.data.text_source import Row, Source, SourceError, checked_text, raise_missing_column


__all__ = ["PYTHON_DOCS", "Source", "SourceError", "read_documents", "source_identity"]

logger = logging.getLogger(__name__)

PYTHON_DOCS = "python-docs"

TEXT_SUFFIXES = (".txt", ".text", ".md")
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
CSV_DELIMITERS = {".csv": ",", ".tsv": "\t"}
PARQUET_SUFFIX = ".parquet"
LINE_SUFFIXES = (*TEXT_SUFFIXES, *JSON_SUFFIXES, *CSV_DELIMITERS)
SUPPORTED_SUFFIXES = (
    f"{', '.join([*LINE_SUFFIXES, PARQUET_SUFFIX])}; "
    f"all but {PARQUET_SUFFIX} also with .gz, .bz2, .xz or .zst after it"
)

HUB_ID = re.compile(r"[\w-][\w.-]*(?:/[\w-][\w.-]*)?")
BATCH_ROWS = 1000
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
LOOKAHEAD_BYTES = 2**20
ZSTANDARD_CHUNK_BYTES = 2**17


def source_identity(source: Source) -> dict[str, Any]:
    """Returns JSON-able values that change whenever the documents may have changed.

    Raises:
        SourceError: The source does not exist or the Hub cannot be reached.
    """
    if source.path == PYTHON_DOCS:
        return {"kind": PYTHON_DOCS, **python_docs_identity()}
    files = _local_files(source)
    if files is not None:
        status = [(os.path.abspath(file), os.stat(file)) for file in files]
        return {
            "kind": "files",
            "files": [[path, stat.st_size, stat.st_mtime_ns] for path, stat in status],
            "text_column": source.text_column,
            "documents": source.documents,
        }
    dataset = find_on_hub(source)
    return {
        "kind": "hub",
        "id": dataset.id,
        "commit": dataset.commit,
        "config": source.config,
        "split": source.split,
        "text_column": source.text_column,
    }


def read_documents(source: Source, num_proc: int) -> Iterator[dict[str, str]]:
    """Yields `{"name": ..., "text": ...}` for each document, in the same order each time.

    Documents without any text (nulls and white space) are left out, and their number is logged. Line ends
    become "\\n". `num_proc` processes read `python-docs` and prepare datasets of the Hub.

    Raises:
        SourceError: The source does not exist, cannot be reached or is not what its name says.
    """
    without_text = 0
    for name, text in _rows(source, num_proc):
        if text is None or not text.strip():
            without_text += 1
        else:
            yield {"name": name, "text": text.replace("\r\n", "\n")}
    if without_text:
        logger.warning("%s: skipped %d documents without text", source.path, without_text)


def _rows(source: Source, num_proc: int) -> Iterator[Row]:
    if source.path == PYTHON_DOCS:
        return ((document["name"], document["text"]) for document in read_python_docs(num_proc))
    files = _local_files(source)
    if files is None:
        return rows_of_hub_dataset(source, num_proc)
    return (row for file in files for row in _rows_of_file(file, source))


def _local_files(source: Source) -> list[str] | None:
    """Lists the files that a local path stands for, sorted; None if it can only be an id of the Hub."""
    path = os.path.expanduser(source.path)
    if os.path.isfile(path):
        if _format(path) is None:
            raise SourceError(f"{path}: this kind of file is not supported. Supported are {SUPPORTED_SUFFIXES}")
        return [path]
    if os.path.isdir(path):
        return _supported_files(_files_below(path), f"The folder {path}")
    if glob.has_magic(path):
        matches = glob.glob(path, recursive=True)
        return _supported_files(filter(os.path.isfile, matches), f"The pattern {path} (from {os.getcwd()})")
    if not HUB_ID.fullmatch(path) or _format(path) is not None:
        raise SourceError(f"{path}: no such file or folder (from {os.getcwd()})")
    return None


def _files_below(folder: str) -> Iterator[str]:
    """Yields the files that are not hidden, at all depths and through links, each folder once."""
    seen = set()
    for parent, subfolders, names in os.walk(folder, followlinks=True):
        if os.path.realpath(parent) in seen:
            subfolders.clear()
            continue
        seen.add(os.path.realpath(parent))
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield from (os.path.join(parent, name) for name in names if not name.startswith("."))


def _supported_files(files: Iterable[str], place: str) -> list[str]:
    supported = sorted(file for file in files if _format(file) is not None)
    if not supported:
        raise SourceError(f"{place} holds no file that can be read. Supported are {SUPPORTED_SUFFIXES}")
    return supported


def _format(file: str) -> str | None:
    """The suffix that says how a file is written, before that of the compression; None if unsupported."""
    name = file.lower()
    if name.endswith(PARQUET_SUFFIX):
        return PARQUET_SUFFIX
    stem, suffix = os.path.splitext(name)
    if suffix in DECOMPRESSORS:
        suffix = os.path.splitext(stem)[1]
    return suffix if suffix in LINE_SUFFIXES else None


def _rows_of_file(file: str, source: Source) -> Iterator[Row]:
    """Yields the rows of one file, which must hold some text."""
    suffix = _format(file)
    if suffix == PARQUET_SUFFIX:
        rows = _rows_of_parquet(file, source.text_column)
    elif suffix in JSON_SUFFIXES:
        rows = _rows_of_json_lines(file, source.text_column)
    elif suffix in CSV_DELIMITERS:
        rows = _rows_of_csv(file, source.text_column, CSV_DELIMITERS[suffix])
    else:
        rows = _rows_of_text(file, source.documents)
    empty = True
    for name, text in rows:
        empty = empty and not (text and text.strip())
        yield name, text
    if empty:
        raise SourceError(f"{file}: the file is empty or holds only white space. Remove it or put text into it")


def _rows_of_text(file: str, documents: str) -> Iterator[Row]:
    if documents == "auto":
        documents = "blank_line" if _has_blank_line(file) else "line"
    lines = ((number, line.rstrip("\r\n")) for number, line in _lines(file))
    if documents == "line":
        return ((f"{file}:{number}", line) for number, line in lines if line.strip())
    if documents == "file":
        return iter([(file, "\n".join(line for _, line in lines))])
    return _rows_between_blank_lines(file, lines)


def _rows_between_blank_lines(file: str, lines: Iterable[tuple[int, str]]) -> Iterator[Row]:
    document: list[str] = []
    first_number = 1
    for number, line in lines:
        if line.strip():
            first_number = first_number if document else number
            document.append(line)
        elif document:
            yield f"{file}:{first_number}", "\n".join(document)
            document = []
    if document:
        yield f"{file}:{first_number}", "\n".join(document)


def _has_blank_line(file: str) -> bool:
    """Whether a blank line separates text in the first MiB."""
    with _open(file) as stream, _decompression_errors(file):
        start = stream.read(LOOKAHEAD_BYTES)
    return re.search(rb"\n[ \t\r]*\n", start.strip()) is not None


def _rows_of_json_lines(file: str, column: str) -> Iterator[Row]:
    for number, line in _lines(file):
        if not line.strip():
            continue
        place = f"{file}:{number}"
        array_hint = ". A file that is one array becomes JSON lines by: jq -c '.[]' FILE" if line[0] == "[" else ""
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise SourceError(
                f"{place}: not JSON: {error.msg} at column {error.colno}. Each line must be one object{array_hint}"
            ) from error
        if not isinstance(value, dict):
            raise SourceError(f"{place}: each line must be a JSON object, but this is {_json_type(value)}{array_hint}")
        if column not in value:
            raise_missing_column(place, column, value)
        yield place, checked_text(value[column], place, column)


def _json_type(value: object) -> str:
    return {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}.get(type(value), "a number")


def _rows_of_csv(file: str, column: str, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader((line for _, line in _lines(file)), delimiter=delimiter, strict=True)
    start = 1
    header: list[str] | None = None
    try:
        for fields in reader:
            place, start = f"{file}:{start}", reader.line_num + 1
            if not fields:
                continue
            if header is None:
                header = fields
                if column not in header:
                    raise_missing_column(place, column, header)
                continue
            if len(fields) != len(header):
                raise SourceError(
                    f"{place}: the row has {len(fields)} fields, but the header has {len(header)}. "
                    "Quote fields that contain the delimiter, a quote or a line end"
                )
            yield place, fields[header.index(column)]
    except csv.Error as error:
        raise SourceError(f"{file}:{start}: broken row: {error}. Check the quotes of this row") from error


def _rows_of_parquet(file: str, column: str) -> Iterator[Row]:
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            if column not in table.schema_arrow.names:
                raise_missing_column(file, column, table.schema_arrow.names)
            row = 0
            for batch in table.iter_batches(batch_size=BATCH_ROWS, columns=[column]):
                for value in batch.column(0).to_pylist():
                    row += 1
                    place = f"{file}, row {row}"
                    yield place, checked_text(value, place, column)
    except pyarrow.ArrowInvalid as error:
        raise SourceError(f"{file}: not a whole Parquet file: {error}") from error


def _lines(file: str) -> Iterator[tuple[int, str]]:
    """Yields the numbered lines with their ends, from UTF-8 with or without a byte order mark."""
    with _open(file) as stream, _decompression_errors(file):
        for number, line in enumerate(stream, start=1):
            if number == 1:
                line = line.removeprefix(BYTE_ORDER_MARK)
            yield number, _decoded(line, f"{file}:{number}")


def _decoded(line: bytes, place: str) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise SourceError(
            f"{place}: byte {error.start + 1} of the line (0x{line[error.start]:02x}) is not UTF-8. "
            "Convert the file, for example by: iconv -f WINDOWS-1252 -t UTF-8 FILE"
        ) from error


class _ZstandardFile(io.RawIOBase):
    """Reads every frame of a Zstandard file and raises if one is cut; the library's reader does not."""

    def __init__(self, file: str):
        self._compressed = open(file, "rb")  # noqa: SIM115
        self._frame: Any = None
        self._input = b""
        self._output = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._output:
            self._input = self._input or self._compressed.read(ZSTANDARD_CHUNK_BYTES)
            if not self._input and self._frame is not None:
                raise EOFError("Compressed file ended before the end-of-stream marker was reached")
            if not self._input:
                return 0
            self._frame = self._frame or zstandard.ZstdDecompressor().decompressobj()
            self._output = memoryview(self._frame.decompress(self._input))
            self._input = self._frame.unused_data
            if self._frame.eof:
                self._frame = None
        size = min(len(buffer), len(self._output))
        buffer[:size] = self._output[:size]
        self._output = self._output[size:]
        return size

    def close(self) -> None:
        self._compressed.close()
        super().close()


DECOMPRESSORS: dict[str, Callable[[str], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": lambda file: io.BufferedReader(_ZstandardFile(file), ZSTANDARD_CHUNK_BYTES),
}


def _open(file: str) -> IO[bytes]:
    """Opens a file of bytes, decompressed if its last suffix says so."""
    decompress = DECOMPRESSORS.get(os.path.splitext(file.lower())[1])
    return decompress(file) if decompress else open(file, "rb")


@contextmanager
def _decompression_errors(file: str) -> Iterator[None]:
    """Explains what the decompressors raise for corrupt and cut files."""
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise SourceError(f"{file}: cannot be decompressed, it is cut or corrupt: {error}") from error
