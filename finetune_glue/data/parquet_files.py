"""Parquet files, read in bounded memory."""

from collections.abc import Iterator
from pathlib import Path

import datasets
import pyarrow
from pyarrow import parquet

from common.errors import UserError
from finetune_glue.data.lines import check_expansion
from finetune_glue.data.records import label_names_of, roots_of, rows_of_records
from finetune_glue.data.rows import Rows
from finetune_glue.data.tasks import Columns, Task


BATCH = 1024  # rows that are read at once


def read_parquet(task: Task, columns: Columns, path: Path) -> Rows:
    """The rows of a file; not by `datasets.load_dataset`, whose cache tells files by their path and time alone."""
    try:
        with parquet.ParquetFile(path) as file:
            known = file.schema_arrow.names
            names = label_names_of(datasets.Features.from_arrow_schema(file.schema_arrow), columns)
            records = _records(file, path, roots_of(columns, known))
            return rows_of_records(task, columns, known, records, str(path), names)
    except UserError:
        raise
    except (pyarrow.ArrowException, ValueError, TypeError, OSError) as error:
        raise UserError(f"{path} cannot be read as parquet: {str(error).splitlines()[0]}") from error


def _records(file: parquet.ParquetFile, path: Path, columns: list[str]) -> Iterator[dict]:
    size = 0
    for batch in file.iter_batches(batch_size=BATCH, columns=columns):
        size += batch.nbytes
        check_expansion(path, path.stat().st_size, size)
        yield from batch.to_pylist()
