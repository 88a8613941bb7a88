"""The hashes of source files: each is taken once, and remembered for as long as the file is not changed."""

import os
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from common.checksums import hash_file
from common.errors import UserError
from common.files import locked, read_checked_json, write_checked_json


MEMORY = "sources.json"
ANNOUNCED_BYTES = 10**9  # that take some seconds to hash


def hashes_of(files: list[str], folder: Path | None) -> list[str | None]:
    """The hash of each file; None for one that cannot be read, of which the reading of its documents tells.

    Args:
        folder: where hashes are remembered, if it can be written, with the size and the times of each file. The time
            of the last change of the inode is one of them: tools that set the others cannot set it.
    """
    paths = [os.path.abspath(file) for file in files]
    states = {path: _state(path) for path in paths}
    with ExitStack() as stack:
        known = _remembered(folder)
        if folder is not None and _unknown(states, known):
            with suppress(OSError, UserError):  # then they are not remembered
                folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(locked(folder / MEMORY))
                known = _remembered(folder)  # by the process that had the lock
        unknown = _unknown(states, known)
        size = sum(states[path][0] for path in unknown)
        if size > ANNOUNCED_BYTES:
            print(f"Hashing {size / 1e9:.1f} GB of text, which is done once", flush=True)
        known |= {path: [*states[path], _hash(path)] for path in unknown}
        if folder is not None and unknown:
            with suppress(OSError):
                there = {path: entry for path, entry in known.items() if entry[-1] and os.path.exists(path)}
                write_checked_json(folder / MEMORY, {"hashes_of_files": there})
    return [known[path][-1] for path in paths]


def _state(path: str) -> list[int]:
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _unknown(states: dict[str, list[int]], known: dict[str, list]) -> list[str]:
    return [path for path, state in states.items() if known.get(path, [])[:-1] != state]


def _hash(path: str) -> str | None:
    try:
        return hash_file(Path(path))
    except OSError:
        return None


def _remembered(folder: Path | None) -> dict[str, Any]:
    if folder is None:
        return {}
    try:
        return read_checked_json(folder / MEMORY)["hashes_of_files"]
    except (UserError, KeyError):  # there are none yet, or the file is damaged
        return {}
