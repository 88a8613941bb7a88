"""Standard streams that may be closed, or go away: a program outlives what it was started from."""

import errno
import io
import os
import sys


GONE = (errno.EPIPE, errno.EIO)  # a pipe that nobody reads any more, a terminal that was closed


class _LastingFile(io.FileIO):
    """A file that swallows what nobody can read any more."""

    def write(self, data) -> int:
        left = memoryview(data).cast("B")
        size = len(left)
        try:
            while left:
                left = left[super().write(left) or 0 :]
        except OSError as error:
            if error.errno not in GONE:
                raise
        return size


def keep_streams():
    """Let the standard streams take what is written, whether they are closed or their reader ends (`| head`)."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # it is closed; no file that is opened later may become a standard stream
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (open to the end)
        elif stream is getattr(sys, f"__{name}__"):  # not one that a test or notebook has put there
            stream.flush()
            raw = _LastingFile(descriptor, "w", closefd=False)
            lasting = io.TextIOWrapper(
                raw if stream.write_through else io.BufferedWriter(raw),
                encoding=stream.encoding,
                errors=stream.errors,
                line_buffering=stream.line_buffering,
                write_through=stream.write_through,
            )
            setattr(sys, name, lasting)
