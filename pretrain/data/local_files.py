"""Which files a local path stands for, and how each is written, as its name says."""

import glob
import os
import re
import shlex
from collections.abc import Iterable, Iterator

from common.errors import UserError
from common.files import is_file, is_folder
from pretrain.data.compression import DECOMPRESSORS
from pretrain.data.text_source import Source, SourceError


TEXT_SUFFIXES = (".txt", ".text", ".md")
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
CSV_DELIMITERS = {".csv": ",", ".tsv": "\t"}
PARQUET_SUFFIX = ".parquet"
LINE_SUFFIXES = (*TEXT_SUFFIXES, *JSON_SUFFIXES, *CSV_DELIMITERS)
SUPPORTED_SUFFIXES = (
    f"{', '.join([*LINE_SUFFIXES, PARQUET_SUFFIX])}; "
    f"all but {PARQUET_SUFFIX} also with .gz, .bz2, .xz or .zst after it"
)
HUB_ID = re.compile(r"[\w-][\w.-]*(?:/[\w-][\w.-]*)?")
# What `save_to_disk` of the library `datasets` writes beside its Arrow files, for a dataset and for several splits.
SAVED_DATASET, SAVED_SPLITS = "state.json", "dataset_dict.json"


def local_files(source: Source) -> list[str] | None:
    """Lists the files that a local path stands for, sorted; None if it can only be an id of the Hub.

    Raises:
        SourceError: There are none, or none that can be read.
    """
    path = os.path.expanduser(source.path)
    try:
        if is_file(path):
            if format_of(path) is None:
                raise SourceError(f"{path}: this kind of file is not supported. Supported are {SUPPORTED_SUFFIXES}")
            return [path]
        if is_folder(path):
            return _supported_files(_files_below(path), f"The folder {path}")
        if glob.has_magic(path):
            return _supported_files(_matches(path), f"The pattern {path} (from {os.getcwd()})")
    except SourceError:
        raise
    except UserError as error:
        raise SourceError(str(error)) from error
    if not HUB_ID.fullmatch(path) or format_of(path) is not None:
        raise SourceError(f"{path}: no such file or folder (from {os.getcwd()})")
    return None


def format_of(file: str) -> str | None:
    """The suffix that says how a file is written, before that of the compression; None if unsupported."""
    name = file.lower()
    if name.endswith(PARQUET_SUFFIX):
        return PARQUET_SUFFIX
    stem, suffix = os.path.splitext(name)
    if suffix in DECOMPRESSORS:
        suffix = os.path.splitext(stem)[1]
    return suffix if suffix in LINE_SUFFIXES else None


def reading_of(file: str) -> list[str | None]:
    """What decides how the bytes of a file are read: its format and its compression."""
    suffix = format_of(file)
    format = "text" if suffix in TEXT_SUFFIXES else "json" if suffix in JSON_SUFFIXES else suffix
    compression = os.path.splitext(file.lower())[1]
    return [format, compression if compression in DECOMPRESSORS else None]


def files_elsewhere(source: Source) -> list[str]:
    """The files of a folder or pattern that lie outside of it, where links in it lead to."""
    base = os.path.realpath(_base(os.path.expanduser(source.path)))
    inside = os.path.join(base, "")
    return [file for file in local_files(source) or [] if not f"{os.path.realpath(file)}/".startswith(inside)]


def _base(path: str) -> str:
    """A path up to its first part that is a pattern."""
    parts = path.split(os.sep)
    fixed = next((number for number, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    return path if fixed == len(parts) else os.sep.join(parts[:fixed]) or (os.sep if path[0] == os.sep else os.curdir)


def _matches(pattern: str) -> list[str]:
    """What a pattern stands for.

    Raises:
        SourceError: A folder that it looks into cannot be listed, which `glob` would pass over.
    """
    if is_folder(_base(pattern)) and "**" in pattern:
        for _ in _files_below(_base(pattern)):
            pass
    return glob.glob(pattern, recursive=True)


def _files_below(folder: str) -> Iterator[str]:
    """Yields the files that are not hidden, at all depths and through links, each folder once.

    Raises:
        SourceError: A folder cannot be listed.
    """

    def refuse(error: OSError):
        raise SourceError(f"{error.filename}: the folder cannot be read: {error.strerror}") from error

    seen = set()
    for parent, subfolders, names in os.walk(folder, followlinks=True, onerror=refuse):
        if os.path.realpath(parent) in seen:
            subfolders.clear()
            continue
        seen.add(os.path.realpath(parent))
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield from (os.path.join(parent, name) for name in names if not name.startswith("."))


def _supported_files(files: Iterable[str], place: str) -> list[str]:
    """Sorts out folders, pipes and the like, and files of other kinds."""
    supported = sorted(file for file in files if format_of(file) is not None)
    for file in supported:
        try:
            os.stat(file)
        except FileNotFoundError as error:
            raise SourceError(f"{file}: what this link stands for is not there. Mend or remove the link") from error
        except OSError as error:
            raise SourceError(f"{file}: cannot be read: {error.strerror}") from error
    supported = [file for file in supported if os.path.isfile(file)]
    if not supported:
        raise SourceError(f"{place} holds no file that can be read. Supported are {SUPPORTED_SUFFIXES}")
    _refuse_saved_datasets(supported)
    return supported


def _refuse_saved_datasets(files: list[str]):
    for folder, name in map(os.path.split, files):
        of_splits = name == SAVED_SPLITS
        if of_splits or (name == SAVED_DATASET and os.path.exists(os.path.join(folder, "dataset_info.json"))):
            split = "['train']" if of_splits else ""
            code = f"from datasets import load_from_disk; load_from_disk({folder!r}){split}.to_parquet('text.parquet')"
            raise SourceError(
                f"{folder}: this is a dataset that `save_to_disk` wrote, whose Arrow files are not read. Make a "
                f"Parquet file of it: python -c {shlex.quote(code)}"
            )
