"""Compressed files as streams of bytes."""

import bz2
import gzip
import io
import lzma
import os
import zlib
from collections.abc import Callable
from typing import Any

import zstandard


CHUNK_BYTES = 2**17
COMPRESSED_CHUNK_BYTES = 2**13  # small, since it may become a thousand times as much

# What is raised for files that are cut or corrupt; an OSError of this kind has no errno.
DECOMPRESSION_ERRORS = (EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError, OSError)


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
            self._input = self._input or self._compressed.read(COMPRESSED_CHUNK_BYTES)
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
    ".zst": lambda file: io.BufferedReader(_ZstandardFile(file), CHUNK_BYTES),
}


def open_bytes(file: str) -> io.BufferedReader:
    """Opens a file of bytes, decompressed if its last suffix says so."""
    decompress = DECOMPRESSORS.get(os.path.splitext(file.lower())[1])
    return decompress(file) if decompress else open(file, "rb")
