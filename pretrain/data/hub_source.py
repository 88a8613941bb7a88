"""Text from the datasets of the Hugging Face Hub, or from what an earlier run left of them in the cache.

What `huggingface_hub` and `datasets` raise for a wrong name, revision, config or split, and where there is no
network, becomes a `SourceError` that says what to do.
"""

import gzip
import logging
import lzma
import os
import re
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import datasets
import pyarrow
from datasets.data_files import EmptyDatasetError
from datasets.exceptions import DataFilesNotFoundError, DatasetGenerationError
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import httpx, validate_repo_id

from common.config.yaml_config import shown
from pretrain.data.text_source import BadRecord, Row, Source, SourceError, missing_column, text_row


logger = logging.getLogger(__name__)

BATCH_ROWS = 1000
BATCH_CHARACTERS = 8 * 2**20
# The libraries themselves try again for some minutes; then a stream is opened anew after each of these waits.
RETRY_SECONDS = (5, 30, 120)
NETWORK_ERRORS = (OSError, HfHubHTTPError, httpx.HTTPError)
DAMAGE_ERRORS = (
    pyarrow.ArrowException, DatasetGenerationError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError,
    ValueError, TypeError,
)  # fmt: skip
HUB_TIMEOUT_SECONDS = 30


@dataclass(frozen=True)
class HubDataset:
    """A dataset of the Hub: its full id and the commit that the revision stands for."""

    id: str
    commit: str


def find_on_hub(source: Source) -> HubDataset:
    """Asks the Hub for a dataset, or the local cache if HF_HUB_OFFLINE is set.

    Raises:
        SourceError: There is no such dataset or revision, or the Hub cannot be reached.
    """
    name = f"dataset {source.path!r}"
    try:
        validate_repo_id(source.path)
    except HFValidationError as error:
        raise SourceError(
            f"{shown(source.path)} is neither a file or folder (from {os.getcwd()}) nor a name of the Hub's datasets"
        ) from error
    try:
        found = HfApi().dataset_info(source.path, revision=source.revision, timeout=HUB_TIMEOUT_SECONDS)
    except GatedRepoError as error:
        raise SourceError(
            f"The {name} is gated: accept its terms on its page on the Hub and log in with `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise SourceError(
            f"{source.path!r} is neither a file or folder (from {os.getcwd()}) nor a dataset of the Hub that "
            "you can see. Check the spelling; for a private dataset log in with `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise SourceError(f"The {name} of the Hub has no revision {source.revision!r}") from error
    except OfflineModeIsEnabled:
        if source.streaming:
            raise SourceError(f"The {name} cannot be streamed, since HF_HUB_OFFLINE is set") from None
        return _find_in_cache(source)
    except httpx.TransportError as error:
        raise SourceError(
            f"The Hub cannot be reached to look for the {name} ({error}), and there is no file or folder "
            f"of that name (from {os.getcwd()}). "
            "To use what an earlier run left in the cache, set HF_HUB_OFFLINE=1"
        ) from error
    return HubDataset(found.id, cast(str, found.sha))


def _find_in_cache(source: Source) -> HubDataset:
    """Finds the version of a dataset that was prepared last."""
    name = f"dataset {source.path!r}"
    try:
        commit = datasets.load_dataset_builder(source.path, source.config).hash
    except (ConnectionError, FileNotFoundError) as error:
        raise SourceError(
            f"The {name} is not in the cache, and HF_HUB_OFFLINE forbids to ask the Hub for it. "
            f"There is no file or folder of that name either (from {os.getcwd()})"
        ) from error
    except ValueError as error:
        if not re.match(r"Couldn't find cache for|There are multiple .* in the cache", str(error)):
            raise
        raise SourceError(f"HF_HUB_OFFLINE is set. {error}") from error
    if source.revision not in (None, commit):
        raise SourceError(
            f"HF_HUB_OFFLINE is set, so nobody knows what revision {source.revision!r} of the {name} is. "
            f"In the cache is the commit {commit}"
        )
    return HubDataset(source.path, commit)


def groups_of_hub_dataset(
    source: Source, num_proc: int, first: Any
) -> Iterator[tuple[Any, Iterator[Row | BadRecord]]]:
    """Yields batches of rows of the text column, each with what names it.

    Args:
        source: a dataset of the Hub.
        num_proc: processes that store a dataset that is not in the cache yet.
        first: the name of the batch to begin with; None for the first one.

    Raises:
        SourceError: There is no such dataset, revision, config, split or column, or the Hub cannot be reached.
    """
    if source.streaming:
        return _streamed_groups(source, first or {"row": 0, "state": None})
    return _stored_groups(source, num_proc, first or 0)


def _stored_groups(source: Source, num_proc: int, first_row: int) -> Iterator[tuple[int, Iterator[Row | BadRecord]]]:
    dataset = _load_from_hub(source, find_on_hub(source), num_proc=num_proc if num_proc > 1 else None)
    if source.text_column not in dataset.column_names:
        raise _no_column(source, dataset.column_names)
    texts = dataset.select_columns(source.text_column)
    for row in range(first_row, len(texts), BATCH_ROWS):
        yield row, _rows(source, texts[row : row + BATCH_ROWS][source.text_column], row)


def _streamed_groups(source: Source, start: dict) -> Iterator[tuple[dict, Iterator[Row | BadRecord]]]:
    """Names a batch by the number of its first row and the state of the stream there."""
    dataset = _load_from_hub(source, find_on_hub(source), streaming=True)
    if dataset.column_names is not None and source.text_column in dataset.column_names:
        dataset = dataset.select_columns(source.text_column)
    if start["state"] is not None:
        dataset.load_state_dict(start["state"])
    examples = iter(dataset)
    failures = 0
    while True:
        try:
            batch = _next_batch(examples, source)
        except DAMAGE_ERRORS as error:
            if isinstance(error, SourceError):
                raise
            raise SourceError(
                f"The dataset {source.path!r} cannot be read further than row {start['row']:,} "
                f"or some rows later: {error}"
            ) from error
        except NETWORK_ERRORS as error:
            if failures == len(RETRY_SECONDS):
                raise SourceError(
                    f"The Hub cannot be reached any more for the dataset {source.path!r}, after {start['row']:,} rows "
                    f"and {failures + 1} attempts: {error or type(error).__name__}"
                ) from error
            logger.warning("%s: %s; trying again in %d s", source.path, error, RETRY_SECONDS[failures])
            time.sleep(RETRY_SECONDS[failures])
            failures += 1
            dataset.load_state_dict(start["state"])
            examples = iter(dataset)
            continue
        if not batch:
            return
        failures = 0
        yield start, _rows(source, batch, start["row"])
        start = {"row": start["row"] + len(batch), "state": dataset.state_dict()}


def _next_batch(examples: Iterator[dict], source: Source) -> list:
    """The texts of the next rows, fewer where they are long."""
    batch: list = []
    length = 0
    while len(batch) < BATCH_ROWS and length < BATCH_CHARACTERS:
        example = next(examples, None)
        if example is None:
            break
        if source.text_column not in example:
            raise _no_column(source, list(example))
        text = example[source.text_column]
        batch.append(text)
        length += len(text) if isinstance(text, str) else 0
    return batch


def _rows(source: Source, texts: list, first_row: int) -> Iterator[Row | BadRecord]:
    place = f"{source.path} ({source.split})"
    for row, text in enumerate(texts, start=first_row + 1):
        yield text_row(text, f"{place}, row {row}", place, source.text_column)


def _no_column(source: Source, columns: list[str]) -> SourceError:
    place = f"{source.path} ({source.split})"
    return SourceError(missing_column(place, place, source.text_column, columns).message)


def _load_from_hub(source: Source, found: HubDataset, **options: Any) -> Any:
    """Load the dataset, to the disk or as a stream."""
    try:
        return datasets.load_dataset(found.id, source.config, split=source.split, revision=found.commit, **options)
    except (DataFilesNotFoundError, EmptyDatasetError) as error:
        raise SourceError(f"The dataset {source.path!r} of the Hub holds no data files that can be read") from error
    except ConnectionError as error:
        raise SourceError(f"The Hub cannot be reached for the dataset {source.path!r}: {error}") from error
    except DatasetGenerationError as error:
        cause = error.__cause__ or error
        raise SourceError(f"The dataset {source.path!r} cannot be read: {cause}") from error
    except RuntimeError as error:
        if "Dataset scripts are no longer supported" not in str(error):
            raise
        raise SourceError(
            f"The dataset {source.path!r} of the Hub is a Python script, which is not supported. "
            "Its Parquet files may be there: set revision to refs/convert/parquet"
        ) from error
    except ValueError as error:
        choices = re.search(r"\[.*\]", str(error))
        if choices and re.match(r"Config name is missing|BuilderConfig .* not found", str(error)):
            wrong = f"no config {source.config!r}" if source.config else "several configs"
            raise SourceError(
                f"The dataset {source.path!r} of the Hub has {wrong}. Set config to one of {choices[0][1:-1]}"
            ) from error
        if choices and re.match(r"Unknown split|Bad split", str(error)):
            raise SourceError(
                f"The dataset {source.path!r} of the Hub has no split {source.split!r}. "
                f"Set split to one of {choices[0][1:-1]}"
            ) from error
        raise
