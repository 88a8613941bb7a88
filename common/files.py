"""Files and folders that are whole or not there."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from common.errors import UserError, is_disk_full


PARTIAL = ".partial"  # suffix of what is still being written; nothing reads such a folder
FULL = 2**20  # bytes; a disk with less room counts as full


def make_folder(folder: Path, key: str):
    """Make a folder that a key of the configuration names.

    Raises:
        UserError: where it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if is_disk_full(error):
            raise
        raise UserError(f"{key}: the folder {folder} cannot be made ({error.strerror}): name another one.") from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"{key}: the folder {folder} cannot be written: name another one.")


@contextmanager
def written_whole(path: Path, suffix: str = PARTIAL) -> Iterator[BinaryIO]:
    """A file beside `path` to write to, which takes its place once all its bytes are on the disk."""
    partial = path.with_name(path.name + suffix)
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException as error:
        if isinstance(error, OSError) and error.errno and error.filename is None:
            error.filename = str(path)  # writing does not say where the disk is full
        partial.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str):
    """Write a file beside its place and move it there."""
    with written_whole(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: object):
    """Write a value as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_folder(folder: Path, fill: Callable[[Path], object]):
    """Let `fill` write into a folder beside `folder`, which then takes its place, replacing an older one."""
    partial = folder.with_name(folder.name + PARTIAL)
    remove_folder(partial)
    partial.mkdir(parents=True)
    with removed_on_error(partial):
        fill(partial)
        publish_folder(partial, folder)


@contextmanager
def removed_on_error(partial: Path) -> Iterator[None]:
    """Delete a folder that is being written where that fails.

    Raises:
        OSError: with ENOSPC where the disk is full; `torch.save` ends in an error that does not say so.
    """
    try:
        yield
    except BaseException as error:
        full = isinstance(error, RuntimeError) and partial.exists() and shutil.disk_usage(partial).free < FULL
        remove_folder(partial)
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(partial)) from error
        raise


def publish_folder(partial: Path, folder: Path):
    """Give a filled folder its name once all its bytes are on the disk.

    The umask decides who may read its files; safetensors writes them for their owner alone.
    """
    mode = partial.stat().st_mode & 0o666
    for path in [*partial.rglob("*"), partial]:
        if path.is_file() and path.stat().st_mode & 0o777 != mode:
            path.chmod(mode)
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
