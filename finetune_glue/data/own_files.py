"""One's own files, read as a task description says."""

from pathlib import Path

from common.errors import UserError
from finetune_glue.data.delimited import lines_of_csv, lines_of_tsv, read_delimited
from finetune_glue.data.folder_files import read_folder
from finetune_glue.data.json_files import read_json
from finetune_glue.data.lines import COMPRESSED
from finetune_glue.data.parquet_files import read_parquet
from finetune_glue.data.rows import Rows, joined
from finetune_glue.data.tasks import Task


FORMATS = {
    ".tsv": "tsv",
    ".txt": "tsv",
    ".csv": "csv",
    ".jsonl": "json",
    ".json": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
}


def read_split(task: Task, paths: list[Path]) -> Rows:
    """The rows of the files, or folders, of a split, one behind the other."""
    parts: list[Rows] = []
    for path in paths:
        parts += read_folder(task, path) if path.is_dir() else [read_file(task, path)]
    return joined(parts)


def read_file(task: Task, path: Path) -> Rows:
    """The rows of a file; its suffix says the format.

    A TSV file has one row in each line and no quoting, as GLUE's; a CSV file quotes fields that hold commas, quotes or
    line ends.

    Raises:
        UserError: naming file and line, for a file or column that is not there, another number of fields than in the
            header, what is not text, and what cannot be decoded.
    """
    form = file_format(path)
    columns = task.source.file_columns
    assert columns is not None
    if form == "json":
        return read_json(task, columns, path)
    if form == "parquet":
        return read_parquet(task, columns, path)
    return read_delimited(task, columns, path, lines_of_csv(path) if form == "csv" else lines_of_tsv(path))


def file_format(path: Path) -> str:
    """How a file is written: "tsv", "csv", "json" or "parquet"."""
    suffixes = [suffix for suffix in path.suffixes if suffix not in COMPRESSED]
    form = FORMATS.get(suffixes[-1].lower() if suffixes else "")
    if form is None:
        raise UserError(f"{path}: the name must end in one of {', '.join(FORMATS)}, which says how it is written.")
    return form
