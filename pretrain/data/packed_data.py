"""Prepared text as rows of tokens, any of them by index arithmetic."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np


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


@dataclass(frozen=True)
class PackedRows:
    """Rows of one split: `<s>`, a piece of the stream of documents, `</s>`.

    In the stream each document is followed by `</s>`, and `documents` holds where each begins, so that the boundaries
    are known in every row. The last row is filled up with padding.

    Args:
        stream: ids of all documents one after the other, on disk.
        documents: (documents + 1,), where each document begins in the stream, and the end of the last.
        row_ends: ids of `<s>` and `</s>`.
        pad_token_id: fills the last row.
        max_length: tokens of a row.
    """

    stream: np.ndarray
    documents: np.ndarray
    row_ends: tuple[int, int]
    pad_token_id: int
    max_length: int

    @classmethod
    def open(cls, folder: Path, split: str, max_length: int) -> "PackedRows":
        """Map a split ("train" or "validation") of a prepared folder into memory."""
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        return cls(
            stream=np.memmap(folder / f"{split}.tokens", dtype=manifest["token_type"], mode="r"),
            documents=np.load(folder / f"{split}.documents.npy", mmap_mode="r"),
            row_ends=tuple(manifest["row_ends"]),
            pad_token_id=manifest["pad_token_id"],
            max_length=max_length,
        )

    def __len__(self) -> int:
        return -(-len(self.stream) // (self.max_length - 2))

    def sample(self, samples: np.ndarray, seed: int) -> np.ndarray:
        """The indices of the rows that training sees as its samples of these numbers, counted over the whole run:
        each row once an epoch, in another order each time."""
        epochs, positions = np.divmod(samples, len(self))
        indices = np.empty_like(samples)
        for epoch in np.unique(epochs):
            of_epoch = epochs == epoch
            indices[of_epoch] = permuted(positions[of_epoch], len(self), seed, int(epoch))
        return indices

    def __getitem__(self, indices: np.ndarray) -> RowBatch:
        """The rows of these indices."""
        body = self.max_length - 2
        rows = np.full((len(indices), self.max_length), self.pad_token_id, dtype=np.int64)
        rows[:, 0] = self.row_ends[0]
        for row, index in zip(rows, indices, strict=True):
            piece = self.stream[index * body : (index + 1) * body]
            row[1 : len(piece) + 1] = piece
            row[len(piece) + 1] = self.row_ends[1]
        return RowBatch(rows)


def permuted(positions: np.ndarray, size: int, seed: int, epoch: int) -> np.ndarray:
    """Where a random permutation of `range(size)`, one for each (seed, epoch), sends the positions.

    A Feistel network over the next even power of two, walked on until the result falls below `size`: constant memory
    and no state, whatever the size.
    """
    half_bits = max(1, -(-(size - 1).bit_length() // 2))
    mask = np.uint64(2**half_bits - 1)
    keys = np.random.Philox(key=[seed, epoch]).random_raw(4)
    result = np.asarray(positions).astype(np.uint64)
    outside = np.ones(result.shape, dtype=bool)
    while outside.any():
        left, right = result[outside] >> np.uint64(half_bits), result[outside] & mask
        for key in keys:
            left, right = right, left ^ (_mix(right + key) & mask)
        result[outside] = (left << np.uint64(half_bits)) | right
        outside = result >= size
    return result.astype(np.int64)


def _mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele et al., 2014): each bit of the result depends on all bits."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
