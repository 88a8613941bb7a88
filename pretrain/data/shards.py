"""Shards: the tokens of some megabytes of documents, each followed by `</s>`, in one file (see
`pretrain.data.shard_file`).

What a shard holds stands in a record beside it, which is written when the shard is whole. A folder of shards is a part
of a corpus: the documents of one source.

This module is imported by the processes that tokenise, so it must be light.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from common.files import write_checked_json
from pretrain.data.sentences import sentence_starts
from pretrain.data.shard_file import SPLITS, SplitArrays, shard_path, write_shard


SHARD_BYTES = 16 * 2**20  # of text; a shard ends with the document that reaches it
BATCH_BYTES = 2**19  # of text that is tokenised at once
BATCH_DOCUMENTS = 1000
HASH_RANGE = 2**64


@dataclass(frozen=True)
class ShardSettings:
    """All that the bytes of a shard depend on besides its documents.

    Args:
        tokenizer: as JSON.
        token_type: NumPy type of ids.
        end: id of `</s>`.
        threshold: documents whose hash lies below are held out for validation.
        given_out: for each id of the JSON the one that the tokenizer gives out, where they differ.
    """

    tokenizer: str
    token_type: str
    end: int
    threshold: int
    given_out: tuple[int, ...] | None = None


class ShardTask(NamedTuple):
    """A shard to be written: its folder, its number, its documents in UTF-8, and what else its record shall hold."""

    folder: str
    number: int
    documents: list[bytes]
    facts: dict


class ShardWriter:
    """Tokenises documents and writes them as shards."""

    def __init__(self, settings: ShardSettings):
        self.settings = settings
        self.tokenizer = Tokenizer.from_str(settings.tokenizer)
        self.tokenizer.encode_special_tokens = True  # "<mask>" or "</s>" in the text are words like others
        self.token_bytes = bytes_of_tokens(self.tokenizer)

    def __call__(self, task: ShardTask) -> dict:
        """Write a shard and its record, and return the record."""
        parts: dict[str, list[SplitArrays]] = {split: [] for split in SPLITS}
        num_bytes = dict.fromkeys(SPLITS, 0)
        hashes: list[int] = []
        for texts in _batches(task.documents):
            arrays = self._tokenise(texts)
            of_batch = [document_hash(text) for text in texts]
            held_out = np.array([value < self.settings.threshold for value in of_batch])
            sizes = np.array([len(text) for text in texts])
            hashes += min(of_batch), max(of_batch)
            for split, chosen in zip(SPLITS, (~held_out, held_out), strict=True):
                parts[split].append(_chosen(arrays, chosen))
                num_bytes[split] += int(sizes[chosen].sum())
        joined = {split: _joined(parts[split], self.settings.token_type) for split in SPLITS}
        counts = {
            split: {
                "documents": len(joined[split].documents) - 1,
                "sentences": len(joined[split].sentences) - 1,
                "tokens": len(joined[split].tokens),
                "bytes": num_bytes[split],
            }
            for split in SPLITS
        }
        record = {
            "file": write_shard(shard_path(task.folder, task.number), joined),
            "splits": counts,
            "hashes": [min(hashes), max(hashes)] if hashes else None,
            **task.facts,
        }
        write_checked_json(record_path(task.folder, task.number), record)
        return record

    def _tokenise(self, texts: list[bytes]) -> SplitArrays:
        """The ids of some texts, each with `</s>` after it, and where texts and sentences begin among them."""
        decoded = [text.decode() for text in texts]
        encodings = self.tokenizer.encode_batch_fast(decoded, add_special_tokens=False)
        ids: list[int] = []
        documents = [0]
        for encoding in encodings:
            ids += encoding.ids
            ids.append(self.settings.end)
            documents.append(len(ids))
        tokens = np.array(ids, dtype=np.uint32)
        bounds = np.array(documents)
        found = self._places_by_bytes(tokens, bounds, texts, decoded)
        if found is None:
            found = self._places_by_offsets(bounds, decoded)
        if self.settings.given_out is not None:
            tokens = np.array(self.settings.given_out)[tokens]
        tokens = tokens.astype(self.settings.token_type)
        return SplitArrays(bounds, np.unique(np.concatenate([bounds, found])), tokens)

    def _places_by_bytes(
        self, tokens: np.ndarray, bounds: np.ndarray, texts: list[bytes], decoded: list[str]
    ) -> np.ndarray | None:
        """Where sentences begin, counted in bytes; None where the tokens are not the bytes of the texts."""
        if self.token_bytes is None:
            return None
        sizes = self.token_bytes[tokens]
        sizes[bounds[1:] - 1] = 0  # </s>
        ends = np.cumsum(sizes)
        text_ends = np.cumsum([len(text) for text in texts])
        if not np.array_equal(ends[bounds[1:] - 1], text_ends):
            return None
        places: list[int] = []
        for text, string, end in zip(texts, decoded, text_ends.tolist(), strict=True):
            starts = sentence_starts(string)
            if starts and len(string) < len(text):
                first_bytes = np.flatnonzero(np.frombuffer(text, dtype=np.uint8) & 0xC0 != 0x80)
                starts = first_bytes[starts].tolist()
            places += [end - len(text) + start for start in starts]
        return np.searchsorted(ends, places, side="right")

    def _places_by_offsets(self, bounds: np.ndarray, decoded: list[str]) -> np.ndarray:
        """Where sentences begin, as the tokenizer tells; that takes many times longer."""
        places = []
        encodings = self.tokenizer.encode_batch(decoded, add_special_tokens=False)
        for first, end, string, encoding in zip(bounds, bounds[1:] - 1, decoded, encodings, strict=False):
            ends = np.maximum.accumulate(np.array([last for _, last in encoding.offsets], dtype=np.int64))
            found = first + np.searchsorted(ends, sentence_starts(string), side="right")
            places.append(found[found < end])
        return np.concatenate(places)


def bytes_of_tokens(tokenizer: Tokenizer) -> np.ndarray | None:
    """The number of bytes of each id for a byte-level tokenizer, which writes each byte as one letter."""
    decoder = json.loads(tokenizer.to_str())["decoder"] or {}
    if decoder.get("type") != "ByteLevel":
        return None
    sizes = np.zeros(tokenizer.get_vocab_size(with_added_tokens=True), dtype=np.int64)
    for token, number in tokenizer.get_vocab(with_added_tokens=True).items():
        if number < len(sizes):
            sizes[number] = len(token)
    return sizes


def document_hash(text: bytes) -> int:
    """A number below `HASH_RANGE` by which documents are held out, so that each stays on its side when others come or
    go."""
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def _batches(documents: list[bytes]) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document)
        if size >= BATCH_BYTES or len(batch) == BATCH_DOCUMENTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _chosen(arrays: SplitArrays, chosen: np.ndarray) -> SplitArrays:
    """Some of the documents."""
    lengths = np.diff(arrays.documents)
    of_token = np.repeat(chosen, lengths)
    places = np.concatenate([[0], np.cumsum(of_token)])  # of each token among the chosen ones
    starts = arrays.sentences[:-1]
    return SplitArrays(
        np.concatenate([[0], np.cumsum(lengths[chosen])]),
        np.concatenate([places[starts[of_token[starts]]], places[-1:]]),
        arrays.tokens[of_token],
    )


def _joined(parts: list[SplitArrays], token_type: str) -> SplitArrays:
    """The documents of all parts."""
    first = np.cumsum([0, *(len(part.tokens) for part in parts)])
    documents = [part.documents[:-1] + start for part, start in zip(parts, first, strict=False)]
    sentences = [part.sentences[:-1] + start for part, start in zip(parts, first, strict=False)]
    return SplitArrays(
        np.concatenate([*documents, first[-1:]]).astype(np.uint32),
        np.concatenate([*sentences, first[-1:]]).astype(np.uint32),
        np.concatenate([np.array([], dtype=token_type), *(part.tokens for part in parts)]),
    )


def record_path(folder: str | Path, number: int) -> Path:
    return Path(folder) / f"{number:06}.json"
