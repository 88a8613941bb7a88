"""The texts that the options of an evaluation name."""

import argparse
import itertools
import os
from collections.abc import Iterator
from typing import Any

from accelerate import PartialState

from common.config.yaml_config import parse
from pretrain.configuration import PretrainConfig
from pretrain.data.shards import HASH_RANGE, document_hash
from pretrain.data.sources import Source, read_documents


def read_sources(options: argparse.Namespace) -> list[tuple[str, Source]]:
    """The sources that `--data` names, with these names."""
    entries = []
    for name in options.data:
        entry: Any = parse("data", [name], dict) if name.startswith("{") else {"path": name}
        entries.append({"split": options.split, **entry})
    if not entries:
        return []
    config = PretrainConfig("", data=entries, text_column=options.text_column, documents=options.documents)
    return list(zip(options.data, config.sources(), strict=True))


def read_texts(source: Source, options: argparse.Namespace) -> Iterator[str]:
    """The texts of the documents of a source that are asked for."""
    num_proc = max(1, (os.cpu_count() or 1) // PartialState().num_processes)
    texts = (document["text"] for document in read_documents(source, num_proc))
    if options.held_out is not None:
        texts = (text for text in texts if document_hash(text.encode()) < options.held_out * HASH_RANGE)
    return itertools.islice(texts, options.max_documents)
