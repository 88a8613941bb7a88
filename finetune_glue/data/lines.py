"""The lines of text files, compressed or not, read in bounded memory."""

import bz2
import codecs
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from common.encodings import SAMPLE_BYTES, conversion, wide_encoding
from common.errors import UserError


COMPRESSED: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
LONGEST_LINE = 2**26  # bytes
PIECE = 2**20  # bytes of a line that are read at once
# Text is compressed to a quarter or a tenth. What grows by more than MOST_EXPANDED, beyond so many bytes, is made to
# fill the memory.
MOST_EXPANDED = 50
UNCHECKED = 2**25


def lines_of(path: Path, longest: int | None = LONGEST_LINE) -> Iterator[tuple[int, str]]:
    """The number and the text of each line.

    Args:
        longest: bytes of a line, at most; none: as many as the file has.

    Raises:
        UserError: for what cannot be read, is not UTF-8, or has longer lines; and for a compressed file that grows to
            more than fifty times its size.
    """
    try:
        with path.open("rb") as raw, COMPRESSED.get(path.suffix, nullcontext)(raw) as file:
            encoding = wide_encoding(file.peek(SAMPLE_BYTES)[:SAMPLE_BYTES])
            if encoding is not None:
                raise UserError(f"{path}: the text is {encoding}, not UTF-8. {conversion(str(path), encoding)}")
            number, pieces, size, total = 1, [], 0, 0
            while piece := file.readline(PIECE):
                pieces.append(piece)
                size += len(piece)
                total += len(piece)
                if file is not raw:
                    check_expansion(path, raw.tell(), total)
                if longest is not None and size > longest:
                    raise UserError(f"{path}, line {number} has more than {longest:,} bytes: it is no table of texts.")
                if piece.endswith(b"\n"):
                    yield number, _text(pieces, path, number)
                    number, pieces, size = number + 1, [], 0
            if pieces:
                yield number, _text(pieces, path, number)
    except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error


def check_expansion(path: Path, compressed: int, size: int):
    """Raise a `UserError` where `compressed` bytes of a file have become so many that no table can be in it."""
    if size > max(UNCHECKED, MOST_EXPANDED * compressed):
        raise UserError(
            f"{path} grows to more than {MOST_EXPANDED} times its size when it is decompressed, as no table of texts "
            "does. Decompress it yourself if it is meant to be read."
        )


def _text(pieces: list[bytes], path: Path, number: int) -> str:
    line = b"".join(pieces)
    if number == 1:
        line = line.removeprefix(codecs.BOM_UTF8)
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}, line {number}: byte {error.start + 1} (0x{line[error.start]:02x}) is not UTF-8. Convert the "
            "file, for example by: iconv -f WINDOWS-1252 -t UTF-8 FILE"
        ) from error
