"""Checksums of what is written and read back: what has changed since is not believed.

JSON holds that of its other values under `xxh3`; a text has it in a first line of its own. What earlier releases wrote
has none.
"""

import json
from pathlib import Path

import xxhash


BLOCK = 2**24  # bytes read at once
KEY = "xxh3"
FIRST_LINE = f"# {KEY} of the lines below: "


def with_checksum(values: dict) -> dict:
    """Values of JSON and their checksum."""
    return values | {KEY: _checksum(json.dumps(values, sort_keys=True))}


def take_checksum(values: dict) -> bool:
    """Take the checksum out of values that were read. Whether it is theirs; true, too, where there is none."""
    try:
        return KEY not in values or values.pop(KEY) == _checksum(json.dumps(values, sort_keys=True))
    except RecursionError:  # nested about as deeply as can be read
        return False


def with_first_line(text: str) -> str:
    """A text below the line with its checksum, a comment in YAML."""
    return f"{FIRST_LINE}{_checksum(text)}\n{text}"


def is_as_written(text: str) -> bool:
    """Whether a text that was read has its own checksum in its first line, or none."""
    return not text.startswith(FIRST_LINE) or text == with_first_line(text.partition("\n")[2])


def hash_file(path: Path) -> str:
    """The hash of a file, in bounded memory."""
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def digests(folder: Path) -> dict[str, str]:
    """A hash of each file of a folder, by its place in there."""
    return {str(path.relative_to(folder)): hash_file(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def find_change(folder: Path, written: dict[str, str]) -> str | None:
    """What differs in a folder from the `digests` of its files when they were written, or None."""
    found = digests(folder)
    for name, digest in written.items():
        if name not in found:
            return f"{name} is missing"
        if found[name] != digest:
            return f"{name} is not as it was written"
    return None


def _checksum(text: str) -> str:
    return xxhash.xxh3_128(text.encode()).hexdigest()
