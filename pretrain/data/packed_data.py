"""Prepared text as rows of tokens, any of them by index arithmetic over shards that are mapped into memory."""

from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Protocol

import numpy as np

from pretrain.data.manifest import read_manifest, shards_of
from pretrain.data.mixture import Mixture
from pretrain.data.row_index import RowIndex, ensure_index, open_index
from pretrain.data.shard_file import OpenShards, Shard


@dataclass(frozen=True)
class RowBatch:
    """Some rows.

    Args:
        ids: (rows, max_length), int64, filled up with padding.
        document_starts: (rows, max_length), bool, true at the first token of each document; None where the documents
            of a row are not kept apart.
    """

    ids: np.ndarray
    document_starts: np.ndarray | None = None


class ShardedArray:
    """One array out of those of all shards, of which `[index]` and `[first:last]` are read when asked for.

    Args:
        shards: that hold it.
        split, kind: which of their arrays.
        counts: the entries that are read of each shard.
        added: to the entries of each shard, where they are places in the tokens of all shards; the end of the last
            one then comes at the end.
    """

    def __init__(self, shards: OpenShards, split: str, kind: str, counts: np.ndarray, added: np.ndarray | None = None):
        self._shards, self._split, self._kind, self._added = shards, split, kind, added
        self._first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    def __len__(self) -> int:
        return int(self._first[-1]) + (self._added is not None)

    def __getitem__(self, index):
        if not isinstance(index, slice):
            index = range(len(self))[index]
            return self[index : index + 1][0]
        first, last, step = index.indices(len(self))
        if step != 1:
            raise ValueError(f"a step of {step}: only neighbours can be read together")
        pieces = [self._piece(shard, first, last) for shard in self._shards_between(first, last)]
        if self._added is not None and first <= self._first[-1] < last:
            pieces.append(self._added[-1:])
        return pieces[0] if len(pieces) == 1 else np.concatenate([np.array([], dtype=np.int64), *pieces])

    def _shards_between(self, first: int, last: int) -> range:
        last = min(last, int(self._first[-1]))
        if first >= last:
            return range(0)
        start, stop = np.searchsorted(self._first, [first, last - 1], side="right")
        return range(int(start) - 1, int(stop))

    def _piece(self, shard: int, first: int, last: int) -> np.ndarray:
        """What lies between two places, of one shard."""
        start, stop = int(self._first[shard]), int(self._first[shard + 1])
        piece = self._shards[shard].read(self._split, self._kind, max(first - start, 0), min(last, stop) - start)
        return piece if self._added is None else piece + self._added[shard]


class Rows(Protocol):
    """Rows of a packing.

    Args:
        sizes: how many there are of each source; those of a source follow each other.
        tokens: of all rows, `<s>` and `</s>` included but without padding.
    """

    sizes: list[int]
    tokens: int

    def pieces(self, row: int) -> list[np.ndarray]:
        """What stands in a row between `<s>` and `</s>`, for each such pair."""


class StreamRows:
    """Rows cut anywhere out of the stream of documents; the last one of a source is filled up with padding.

    Args:
        stream: all tokens.
        first_token: where those of each source begin, and the end of the last.
        max_length: tokens of a row.
    """

    def __init__(self, stream: ShardedArray, first_token: list[int], max_length: int):
        self.stream, self.first_token, self.body = stream, first_token, max_length - 2
        self.sizes = [-(-(last - first) // self.body) for first, last in pairwise(first_token)]
        self.tokens = len(stream) + 2 * sum(self.sizes)
        self._first_row = [0, *accumulate(self.sizes)]

    def pieces(self, row: int) -> list[np.ndarray]:
        source = bisect_right(self._first_row, row) - 1
        first = self.first_token[source] + (row - self._first_row[source]) * self.body
        return [self.stream[first : min(first + self.body, self.first_token[source + 1])]]


class IndexedRows:
    """Rows of whole sentences or documents, of which an index tells.

    Args:
        shards: with the tokens.
        split: of these.
        index: of the rows.
        shards_of_sources: how many shards there are of each source; they follow each other.
    """

    def __init__(self, shards: OpenShards, split: str, index: RowIndex, shards_of_sources: list[int]):
        self.shards, self.split, self.index = shards, split, index
        self.tokens = index.tokens
        self.first_row = np.concatenate([[0], np.cumsum(index.rows)])
        self.sizes = np.diff(self.first_row[np.cumsum([0, *shards_of_sources])]).tolist()

    def _find(self, row: int) -> tuple[int, int, np.ndarray, Shard]:
        """The number of the shard of a row, the row's number in it, the numbers of the shard in the index, and the
        shard."""
        number = int(np.searchsorted(self.first_row, row, side="right")) - 1
        numbers = self.index.numbers[self.index.first_number[number] :]
        return number, row - int(self.first_row[number]), numbers, self.shards[number]


class FullSentenceRows(IndexedRows):
    """Rows of whole sentences; the `</s>` of a document at the end of a row is the row's own."""

    def __init__(self, shards: OpenShards, split: str, index: RowIndex, shards_of_sources: list[int], end: int):
        super().__init__(shards, split, index, shards_of_sources)
        self.end = end

    def pieces(self, row: int) -> list[np.ndarray]:
        _, place, numbers, shard = self._find(row)
        piece = shard.read(self.split, "tokens", *numbers[place : place + 2].tolist())
        return [piece[:-1] if piece[-1] == self.end else piece]


class BestFitRows(IndexedRows):
    """Rows of whole documents."""

    def pieces(self, row: int) -> list[np.ndarray]:
        number, place, numbers, shard = self._find(row)
        starts = numbers[self.index.rows[number] + 1 :]
        lengths = starts[self.index.pieces[number] :]
        return [
            shard.read(self.split, "tokens", int(starts[piece]), int(starts[piece]) + int(lengths[piece]))
            for piece in range(numbers[place], numbers[place + 1])
        ]


@dataclass(frozen=True)
class PackedRows:
    """Rows of one split of all sources, one after the other.

    With "stream" packing a row is `<s>`, the next tokens of the stream of documents, each of which is followed by
    `</s>`, and `</s>`; the last row of a source is filled up with padding. For the others see `pretrain.data.packing`.

    Args:
        rows: in the packing of the run.
        mixture: which of them training sees.
        stream: the ids of all documents, each with `</s>` after it.
        documents: (documents + 1,), where each document begins in the stream, and the end of the last.
        row_ends: ids of `<s>` and `</s>`.
        pad_token_id: fills rows up.
        max_length: tokens of a row.
        separate_documents: whether each `<s>` begins a document that is kept apart from the others of its row.
    """

    rows: Rows
    mixture: Mixture
    stream: ShardedArray
    documents: ShardedArray
    row_ends: tuple[int, int]
    pad_token_id: int
    max_length: int
    separate_documents: bool

    @classmethod
    def open(cls, folder: Path, split: str, max_length: int, packing: str = "stream") -> "PackedRows":
        """Map a split ("train" or "validation") of a prepared folder into memory.

        Raises:
            DamagedFile: where a file of it is not as it was written; for a shard, when a row of it is read.
            MixtureError: where a source with a weight has no rows for training.
        """
        manifest = read_manifest(folder)
        parts, end = manifest["parts"], manifest["row_ends"][1]
        shards = OpenShards(list(shards_of(folder, manifest)), manifest["token_type"])
        counts = [counts[split] for part in parts for counts in part["shards"]]
        first_token = np.cumsum([0, *(count["tokens"] for count in counts)])
        stream = ShardedArray(shards, split, "tokens", np.diff(first_token))
        documents = ShardedArray(
            shards, split, "documents", np.array([count["documents"] for count in counts]), first_token
        )
        shards_of_sources = [len(part["shards"]) for part in parts]
        rows: Rows
        if packing == "stream":
            bounds = first_token[np.cumsum([0, *shards_of_sources])].tolist()
            rows = StreamRows(stream, bounds, max_length)
        else:
            index = open_index(ensure_index(folder, packing, max_length), split)
            if packing == "best_fit":
                rows = BestFitRows(shards, split, index, shards_of_sources)
            else:
                rows = FullSentenceRows(shards, split, index, shards_of_sources, end)
        weights = [part["weight"] if split == "train" else None for part in parts]
        return cls(
            rows=rows,
            mixture=Mixture.of(rows.sizes, weights),
            stream=stream,
            documents=documents,
            row_ends=tuple(manifest["row_ends"]),
            pad_token_id=manifest["pad_token_id"],
            max_length=max_length,
            separate_documents=packing == "best_fit",
        )

    def __len__(self) -> int:
        return sum(self.mixture.sizes)

    @property
    def padding_share(self) -> float:
        """The share of the places of all rows that is padding."""
        return 1 - self.rows.tokens / max(1, len(self) * self.max_length)

    def sample(self, samples: np.ndarray, seed: int) -> np.ndarray:
        """The indices of the rows that training sees as its samples of these numbers, counted over the whole run:
        each row once an epoch in another order each time, and with weights each source's rows once in its epochs."""
        return self.mixture(samples, seed)

    def __getitem__(self, indices: np.ndarray) -> RowBatch:
        """The rows of these indices."""
        ids = np.full((len(indices), self.max_length), self.pad_token_id, dtype=np.int64)
        starts = np.zeros(ids.shape, dtype=bool)
        for row, index in enumerate(np.asarray(indices).tolist()):
            if not 0 <= index < len(self):
                raise IndexError(f"row {index} of {len(self)}")
            place = 0
            for piece in self.rows.pieces(index):
                end = place + len(piece) + 1
                starts[row, place] = True
                ids[row, place] = self.row_ends[0]
                ids[row, place + 1 : end] = piece
                ids[row, end] = self.row_ends[1]
                place = end + 1
        return RowBatch(ids, starts if self.separate_documents else None)
