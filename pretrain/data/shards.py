"""Shards: the tokens of some megabytes of documents, in one file that is mapped into memory.

A shard holds, for "train" and then for "validation", where each document begins and where each sentence begins
(uint32, with the end of the last), and then for both the ids, where each document is followed by `</s>`. What it
holds stands in a record beside it, which is written when the shard is whole. A folder of shards is a part of a
corpus: the documents of one source.

This module is imported by the processes that tokenise, so it must be light.
"""

import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
from tokenizers import Tokenizer

from common.files import PARTIAL, write_text, written_whole
from pretrain.data.sentences import sentence_starts


SPLITS = ("train", "validation")
SHARD_BYTES = 16 * 2**20  # of text; a shard ends with the document that reaches it
BATCH_BYTES = 2**19  # of text that is tokenised at once
BATCH_DOCUMENTS = 1000
OPEN_SHARDS = 128  # maps of a process, each of which holds a file descriptor
HASH_CHUNK_BYTES = 2**22
HASH_RANGE = 2**64


class SplitArrays(NamedTuple):
    """What a shard holds of one split.

    Args:
        documents: (documents + 1,), where each document begins in `tokens`, and the end of the last.
        sentences: (sentences + 1,), likewise for sentences; each document begins one.
        tokens: ids.
    """

    documents: np.ndarray
    sentences: np.ndarray
    tokens: np.ndarray


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
        write_text(record_path(task.folder, task.number), json.dumps(record) + "\n")
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


def shard_path(folder: str | Path, number: int) -> Path:
    return Path(folder) / f"{number:06}.shard"


def record_path(folder: str | Path, number: int) -> Path:
    return Path(folder) / f"{number:06}.json"


def write_shard(path: Path, arrays: dict[str, SplitArrays]) -> dict[str, Any]:
    """Write a shard beside its place and move it there; return its size and hash."""
    ordered = [array for split in SPLITS for array in (arrays[split].documents, arrays[split].sentences)]
    ordered += [arrays[split].tokens for split in SPLITS]
    digest = xxhash.xxh3_128()
    # A worker that outlived a killed preparation may be writing the same shard.
    with written_whole(path, f".{os.getpid()}{PARTIAL}") as file:
        for array in ordered:
            data = np.ascontiguousarray(array).view(np.uint8).data
            digest.update(data)
            file.write(data)
        size = file.tell()
    return {"size": size, "xxh3": digest.hexdigest()}


def map_shard(path: Path, counts: dict[str, dict[str, int]], token_type: str) -> dict[str, SplitArrays]:
    """The arrays of a shard, mapped into memory.

    Args:
        path: of the shard.
        counts: the "documents", "sentences" and "tokens" of each split.
        token_type: NumPy type of ids.
    """
    kinds = [(split, kind) for split in SPLITS for kind in ("documents", "sentences")]
    kinds += [(split, "tokens") for split in SPLITS]
    data = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))  # slices of a plain array cost less
    arrays: dict[str, dict[str, np.ndarray]] = {split: {} for split in SPLITS}
    first = 0
    for split, kind in kinds:
        dtype = np.dtype(token_type if kind == "tokens" else np.uint32)
        length = counts[split][kind] + (kind != "tokens")
        arrays[split][kind] = data[first : first + length * dtype.itemsize].view(dtype)
        first += length * dtype.itemsize
    return {split: SplitArrays(**arrays[split]) for split in SPLITS}


class OpenShards:
    """Maps shards when they are asked for, and keeps those used last."""

    def __init__(self, shards: list[tuple[Path, dict]], token_type: str):
        self._shards = shards
        self._token_type = token_type
        self._open: OrderedDict[int, dict[str, SplitArrays]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(self, shard: int) -> dict[str, SplitArrays]:
        if shard in self._open:
            self._open.move_to_end(shard)
        else:
            path, counts = self._shards[shard]
            self._open[shard] = map_shard(path, counts, self._token_type)
            if len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)
        return self._open[shard]

    def __getstate__(self) -> dict:
        """Another process maps them by itself."""
        return {**self.__dict__, "_open": OrderedDict()}


def hash_file(path: Path) -> str:
    """The hash of a file, in bounded memory."""
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while chunk := file.read(HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
