"""Files and folders that are whole or not there."""

import errno
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock

from common.checksums import KEY, take_checksum, with_checksum
from common.errors import UserError, is_disk_full


PARTIAL = ".partial"  # suffix of what is still being written; nothing reads such a folder
FULL = 2**20  # bytes; a disk with less room counts as full
MODEL_SUFFIXES = (".json", ".safetensors", ".txt", ".model")
ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


class DamagedFile(UserError):
    """A file that is missing, or has other bytes than were written."""

    @classmethod
    def at(cls, path: Path, damage: str) -> "DamagedFile":
        """The error that says what is wrong with a file."""
        return cls(f"{path} is damaged: {damage}. Run the same command again: it makes what is damaged anew.")


@contextmanager
def read_back(path: Path) -> Iterator[None]:
    """Name the file that cannot be read back.

    Raises:
        DamagedFile: where it is not there.
        UserError: where reading it fails or is not allowed.
    """
    try:
        yield
    except IsADirectoryError as error:
        raise DamagedFile.at(path, "it is a folder") from error
    except OSError as error:
        if error.errno in ABSENT:
            raise DamagedFile.at(path, "it is missing") from error
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error


def is_file(path: str | Path) -> bool:
    """Whether a path is a file. Unlike `os.path.isfile`, this does not say no where the answer is forbidden.

    Raises:
        UserError: where a folder on the way to it, or the file itself, may not be read.
    """
    return stat.S_ISREG(_mode(path)) and _granted(path, os.R_OK)


def is_folder(path: str | Path) -> bool:
    """Whether a path is a folder. Unlike `os.path.isdir`, this does not say no where the answer is forbidden.

    Raises:
        UserError: where a folder on the way to it, or the folder itself, may not be read.
    """
    return stat.S_ISDIR(_mode(path)) and _granted(path, os.R_OK | os.X_OK)


def require_file(path: Path):
    """Raise a `UserError` where there is no such file; it names those beside it."""
    if is_file(path):
        return
    if path.is_symlink() or path.exists():
        what = "a folder" if path.is_dir() else "no file" if path.exists() else "a link to what is not there"
        raise UserError(f"{path} is {what}: put the file in its place.")
    beside = sorted(entry.name for entry in path.parent.iterdir()) if path.parent.is_dir() else []
    found = f"{path.parent} holds: {', '.join(beside[:10])}" if beside else f"there is no folder {path.parent}"
    raise UserError(
        f"There is no file {path}; {found if beside or not path.parent.is_dir() else 'its folder is empty'}."
    )


def check_places(files: Iterable[Path] = (), folders: Iterable[Path] = ()):
    """
    Raises:
        UserError: where a folder lies in the place of a file that is to be written, or a file in that of a folder.
    """
    for path in files:
        if path.is_dir():
            raise UserError(f"{path} is a folder, but a file is to be written there: move it away.")
    for path in folders:
        if path.exists() and not path.is_dir():
            raise UserError(f"{path} is a file, but a folder is to be written there: move it away.")


def check_model_files(folder: str | Path):
    """
    Raises:
        UserError: where the folder of a saved model, or a file of the model, may not be read.
    """
    if is_folder(folder):
        for path in sorted(Path(folder).iterdir()):
            if path.suffix in MODEL_SUFFIXES:
                is_file(path)


def _mode(path: str | Path) -> int:
    """The mode of a file or folder; 0 for what is not there."""
    try:
        return os.stat(path).st_mode
    except UnicodeEncodeError as error:
        raise UserError(f"{path} is no name of a file under this locale: set PYTHONUTF8=1.") from error
    except ValueError:  # a NUL byte
        return 0
    except OSError as error:
        if error.errno in ABSENT:
            return 0
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error


def _granted(path: str | Path, access: int) -> bool:
    if not os.access(path, access, effective_ids=os.access in os.supports_effective_ids):
        raise UserError(f"{path} cannot be read: {os.strerror(errno.EACCES)}.")
    return True


def make_folder(folder: Path, key: str):
    """Make a folder that a key of the configuration names.

    Raises:
        UserError: where it cannot be made or written.
    """
    try:
        str(folder).encode()
    except UnicodeEncodeError as error:  # libraries in Rust take no such path
        raise UserError(
            f"{key}: the name of the folder {folder} is not UTF-8, or not read as such under this locale: name "
            "another one, or set PYTHONUTF8=1."
        ) from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if is_disk_full(error):
            raise
        raise UserError(f"{key}: the folder {folder} cannot be made ({error.strerror}): name another one.") from error
    if not os.access(folder, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
        raise UserError(f"{key}: the folder {folder} cannot be written: name another one.")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one process at a time make a file or folder, which the lock lies beside; others wait.

    Raises:
        UserError: where the lock may not be made or opened.
    """
    lock = FileLock(f"{path}.lock")
    try:
        lock.acquire()
    except OSError as error:
        if is_disk_full(error):
            raise
        raise UserError(
            f"{path} has to be made, but {path}.lock cannot be written ({error.strerror}): have its owner make it, or "
            "name another folder."
        ) from error
    try:
        yield
    finally:
        lock.release()


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
    """Write a file beside its place and move it there. Bytes of names that are not UTF-8 are written as escapes."""
    with written_whole(path) as file:
        file.write(text.encode(errors="backslashreplace"))


def write_json(path: Path, value: object):
    """Write a value as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def parse_json(text: str | bytes) -> Any:
    """The value that a text in JSON stands for.

    Raises:
        ValueError: for every text that is no JSON or cannot be read as such; that of `json.loads` for deep nesting is
            none.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_json_back(path: Path) -> Any:
    """The value in a file that `write_json` wrote, unless it has been damaged since.

    Raises:
        DamagedFile: where the file is missing or is no JSON.
        UserError: where it cannot be read.
    """
    with read_back(path):
        content = path.read_bytes()
    try:
        return parse_json(content)
    except ValueError as error:
        raise DamagedFile.at(path, "it is not as it was written") from error


def write_checked_json(path: Path, value: dict[str, Any]):
    """Write a mapping as JSON together with its checksum, by which `read_checked_json` knows it again."""
    write_json(path, with_checksum(value))


def read_checked_json(path: Path) -> dict[str, Any]:
    """The mapping that `write_checked_json` wrote.

    Raises:
        DamagedFile: where the file is missing or holds something else.
        UserError: where it cannot be read.
    """
    value = read_json_back(path)
    if not (isinstance(value, dict) and KEY in value and take_checksum(value)):
        raise DamagedFile.at(path, "it is not as it was written")
    return value


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
