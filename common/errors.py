"""What the user can mend: shown as one message without a traceback."""

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from textwrap import shorten
from typing import TextIO

from common.streams import keep_streams


EXIT_CODE = 2
INTERRUPTED = 130  # as shells have it for an interrupt from the keyboard
STOPPED = 75  # EX_TEMPFAIL of sysexits.h: run the same command again
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
ADVICE = {  # for errors of the system
    errno.EMFILE: "Raise the limit, for instance by `ulimit -n 1024`.",
    errno.ENAMETOOLONG: "Give a shorter one.",
}
LONGEST_REASON = 300  # characters
LOST_PROCESS = ("gloo/transport", "NCCL error", "Connection closed by peer")  # in the errors of torch.distributed


class Stopped(Exception):
    """The end of a run that was asked to stop, with a checkpoint; the message says at which step."""


class LostProcess(Exception):
    """The loss of a process, after which the same command goes on; the message says of which."""


class UserError(ValueError):
    """Wrong input or configuration; the message says what is wrong, where, and what to do."""

    def __init__(self, message: str):
        name = type(self).__name__
        if message.startswith(f"Caught {name} in DataLoader worker"):  # behind it comes the traceback of the worker
            message = message.rpartition(f"{name}: ")[2].strip()
        super().__init__(message)


def say(message: object, file: TextIO | None = None):
    """Print a message that may hold names or text of the user's, to the standard output if nothing else is named."""
    print(printable(str(message)), file=file, flush=True)


def printable(text: str) -> str:
    """Text with escapes in place of what a terminal would obey or cannot show; lines and tabs stay."""
    return "".join(
        letter if letter.isprintable() or letter in "\n\t" else letter.encode("unicode_escape").decode()
        for letter in text
    )


@contextmanager
def report_user_errors(kept: str = "The same command goes on from the last checkpoint.") -> Iterator[None]:
    """End the program with the message of a `UserError`, or of a full disk, and exit code 2; where a process was lost,
    which the same command mends, with exit code 75.

    Args:
        kept: what is said of the work so far where something from outside ends the program.
    """
    keep_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as the standard error has it, for names that are not UTF-8
    try:
        yield
    except UserError as error:
        _end(str(error))
    except Stopped:
        sys.exit(STOPPED)
    except KeyboardInterrupt:
        print(f"\nStopped. {kept}", file=sys.stderr, flush=True)
        sys.exit(INTERRUPTED)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in FORBIDDEN and error.filename:
            _end(f"{error.filename} cannot be used: {error.strerror}. Ask its owner, or name another place.")
        if isinstance(error, OSError) and error.errno in ADVICE:
            _end(f"{error.strerror}{f': {error.filename}' if error.filename else ''}. {ADVICE[error.errno]}")
        if is_disk_full(error):
            _end(
                f"the disk is full: {error}. Nothing half-written was "
                "kept. Make room, or name another place with --prepared_dir, --output_dir or --output."
            )
        if isinstance(error, LostProcess):
            _end(f"{error} {kept}", STOPPED)
        if is_lost_process(error):
            _end(
                "another process of the run has ended or cannot be reached; what it said stands above or in the log "
                f"of its machine. {kept} ({str(error).splitlines()[0]})",
                STOPPED,
            )
        raise


def reason_of(error: BaseException) -> str:
    """What an error of a library says, in a line; its type, too, where that is not for wrong values."""
    text = shorten(next(iter(str(error).strip().splitlines()), ""), LONGEST_REASON) or "no reason is given"
    advice = ADVICE.get(error.errno or 0) if isinstance(error, OSError) else None
    if advice:
        return f"{text}. {advice}"
    return text if isinstance(error, ValueError) else f"{text.removesuffix('.')} ({type(error).__name__})"


def is_lost_process(error: BaseException) -> bool:
    """Whether an error, also of torch.distributed, means that another process is gone."""
    return isinstance(error, LostProcess) or any(words in str(error) for words in LOST_PROCESS)


def is_disk_full(error: Exception) -> bool:
    """Whether an error means that there is no space (or quota) left; Arrow and libraries in Rust give words alone."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or os.strerror(errno.ENOSPC) in str(error)


def _end(message: str, code: int = EXIT_CODE):
    say(f"\nerror: {message}", file=sys.stderr)
    sys.exit(code)
