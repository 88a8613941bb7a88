"""Files and folders that are whole or not there."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path


PARTIAL = ".partial"  # suffix of what is still being written; nothing reads such a folder


def write_text(path: Path, text: str):
    """Write a file beside its place and move it there."""
    partial = path.with_name(path.name + PARTIAL)
    try:
        with open(partial, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: object):
    """Write a value as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_folder(folder: Path, fill: Callable[[Path], None]):
    """Let `fill` write into a folder beside `folder`, which then takes its place, replacing an older one."""
    partial = folder.with_name(folder.name + PARTIAL)
    remove_folder(partial)
    partial.mkdir(parents=True)
    try:
        fill(partial)
        publish_folder(partial, folder)
    except BaseException:
        remove_folder(partial)
        raise


def publish_folder(partial: Path, folder: Path):
    """Give a filled folder its name once all its bytes are on the disk."""
    for path in [*partial.rglob("*"), partial]:
        _fsync(path)
    if folder.exists():
        remove_folder(folder)
    partial.rename(folder)
    _fsync(folder.parent)


def remove_folder(folder: Path):
    """Delete a folder; it loses its name first, so that a deletion cut short leaves nothing that looks whole."""
    if not folder.exists():
        return
    doomed = folder if folder.name.endswith(PARTIAL) else folder.with_name(f"{folder.name}.deleted{PARTIAL}")
    if doomed != folder:
        shutil.rmtree(doomed, ignore_errors=True)
        folder.rename(doomed)
    shutil.rmtree(doomed)


def _fsync(path: Path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
