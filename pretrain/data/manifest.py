"""What a folder of prepared data holds, and whether it is as it was written."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from common.checksums import hash_file
from common.errors import UserError
from common.files import (
    DamagedFile,
    read_back,
    read_checked_json,
    read_json_back,
    write_checked_json,
    write_json,
)
from pretrain.data.shard_file import shard_path


MANIFEST = "manifest.json"
CHECKED = "checked.json"  # for each file the time of its last change when its bytes were found to be right
PART = "part-"  # how the names of folders of shards begin


def write_manifest(folder: Path, manifest: dict):
    """Write what a folder holds, whose files are whole."""
    write_checked_json(folder / MANIFEST, manifest)
    write_json(folder / CHECKED, {name: (folder / name).stat().st_mtime_ns for name in manifest["files"]})


def read_manifest(folder: Path) -> dict:
    """What a prepared folder holds.

    Raises:
        DamagedFile: where the manifest is missing or not as it was written.
    """
    try:
        return read_checked_json(folder / MANIFEST)
    except DamagedFile:
        former = _former_manifest(folder / MANIFEST)
        if former is None:
            raise
        return former


def _former_manifest(path: Path) -> dict | None:
    """What the former format wrote, which had another kind of checksum; None for anything else."""
    try:
        manifest = read_json_back(path)
    except DamagedFile:
        return None
    if not isinstance(manifest, dict) or "sha256" not in manifest:
        return None
    digest = manifest.pop("sha256")
    return manifest if digest == hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest() else None


def shards_of(folder: Path, manifest: dict) -> Iterator[tuple[Path, dict, dict]]:
    """The shards of all parts, one after the other: path, counts and facts of each, as `Shard` takes them."""
    for part in manifest["parts"]:
        for number, counts in enumerate(part["shards"]):
            path = shard_path(folder / part["folder"], number)
            yield path, counts, manifest["files"][str(path.relative_to(folder))]


def damaged_files(folder: Path, fingerprint: str, all_bytes: bool = False) -> list[str]:
    """The files of a prepared folder that are missing or have other bytes than were written.

    What is read as a whole is hashed each time; shards, whose blocks are checked when they are first read, where they
    were changed since they were found to be right.

    Args:
        fingerprint: of what the folder should hold.
        all_bytes: whether all are hashed.

    Raises:
        UserError: where a file may not be read.
    """
    try:
        manifest = read_manifest(folder)
    except DamagedFile:
        return [MANIFEST]
    if manifest["fingerprint"] != fingerprint:
        return [MANIFEST]
    checked = {} if all_bytes else _checked(folder)
    damaged, times = [], {}
    for name, facts in manifest["files"].items():
        path = folder / name
        try:
            with read_back(path):
                status = path.stat()
                times[name] = status.st_mtime_ns
                known = name.startswith(PART) and times[name] == checked.get(name)
                right = status.st_size == facts["size"] and (known or hash_file(path) == facts["xxh3"])
        except DamagedFile:
            right = False
        if not right:
            damaged.append(name)
    if not damaged and times != checked:
        with suppress(OSError):  # not in folders that are only read
            write_json(folder / CHECKED, times)
    return damaged


def _checked(folder: Path) -> dict:
    try:
        checked = read_json_back(folder / CHECKED)
    except UserError:
        return {}
    return checked if isinstance(checked, dict) else {}
