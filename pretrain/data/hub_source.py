"""Text from the datasets of the Hugging Face Hub, or from what an earlier run left of them in the cache.

What `huggingface_hub` and `datasets` raise for a wrong name, revision, config or split, and where there is no
network, becomes a `SourceError` that says what to do.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import datasets
from datasets.data_files import EmptyDatasetError
from datasets.exceptions import DataFilesNotFoundError
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import httpx

from pretrain.data.text_source import Row, Source, SourceError, checked_text, raise_missing_column


BATCH_ROWS = 1000
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


def rows_of_hub_dataset(source: Source, num_proc: int) -> Iterator[Row]:
    """Yields the rows of the text column; `num_proc` processes prepare a dataset that is not in the cache yet.

    Raises:
        SourceError: There is no such dataset, revision, config, split or column, or the Hub cannot be reached.
    """
    dataset = _load_from_hub(source, find_on_hub(source), num_proc)
    if source.text_column not in dataset.column_names:
        raise_missing_column(f"{source.path} ({source.split})", source.text_column, dataset.column_names)
    row = 0
    for batch in dataset.select_columns(source.text_column).iter(BATCH_ROWS):
        for value in batch[source.text_column]:
            row += 1
            place = f"{source.path} ({source.split}), row {row}"
            yield place, checked_text(value, place, source.text_column)


def _load_from_hub(source: Source, found: HubDataset, num_proc: int) -> datasets.Dataset:
    try:
        return datasets.load_dataset(
            found.id,
            source.config,
            split=source.split,
            revision=found.commit,
            num_proc=num_proc if num_proc > 1 else None,
        )
    except (DataFilesNotFoundError, EmptyDatasetError) as error:
        raise SourceError(f"The dataset {source.path!r} of the Hub holds no data files that can be read") from error
    except ConnectionError as error:
        raise SourceError(f"The Hub cannot be reached for the dataset {source.path!r}: {error}") from error
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
