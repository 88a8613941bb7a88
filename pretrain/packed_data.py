"""Prepared text as rows of tokens, and the rows of each step by index arithmetic over (seed, step)."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from pretrain.masking import EVALUATION, IGNORED, TRAINING, Masking


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

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        """The rows of these indices, (indices, max_length), as int64."""
        body = self.max_length - 2
        rows = np.full((len(indices), self.max_length), self.pad_token_id, dtype=np.int64)
        rows[:, 0] = self.row_ends[0]
        for row, index in zip(rows, indices, strict=True):
            piece = self.stream[index * body : (index + 1) * body]
            row[1 : len(piece) + 1] = piece
            row[len(piece) + 1] = self.row_ends[1]
        return rows


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


@dataclass(frozen=True)
class BatchPlan:
    """How the rows of a global batch are shared out over processes and accumulation steps.

    Args:
        batch_size: rows of an optimiser step over all processes and accumulation steps.
        accumulation: micro-batches that a process runs for one optimiser step.
        num_processes, process_index: of the run, and of this process.
    """

    batch_size: int
    accumulation: int
    num_processes: int
    process_index: int

    @property
    def micro_batch_size(self) -> int:
        return self.batch_size // (self.accumulation * self.num_processes)

    def places(self) -> np.ndarray:
        """The places in the global batch that are this process's: (accumulation, micro_batch_size)."""
        places = np.arange(self.batch_size).reshape(self.accumulation, self.num_processes, self.micro_batch_size)
        return places[:, self.process_index]


class TrainingBatches(Dataset):
    """Item k is what this process needs for step k: `input_ids`, `labels`, `attention_mask`, each
    (accumulation, micro_batch_size, max_length). Row and mask are functions of (seed, step, place) alone."""

    def __init__(self, rows: PackedRows, masking: Masking, plan: BatchPlan):
        self.rows = rows
        self.masking = masking
        self.plan = plan

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        places = self.plan.places()
        samples = step * self.plan.batch_size + places.reshape(-1)  # counted over the whole run
        epochs, positions = np.divmod(samples, len(self.rows))
        indices = np.empty_like(samples)
        for epoch in np.unique(epochs):
            of_epoch = epochs == epoch
            indices[of_epoch] = permuted(positions[of_epoch], len(self.rows), self.masking.seed, int(epoch))
        rows = self.rows[indices]
        input_ids, labels = self.masking(rows, places.reshape(-1), step, TRAINING)
        shape = (*places.shape, self.rows.max_length)
        return {
            "input_ids": torch.from_numpy(input_ids).view(shape),
            "labels": torch.from_numpy(labels).view(shape),
            "attention_mask": torch.from_numpy(rows != self.rows.pad_token_id).view(shape),
        }


class EvaluationBatches(Dataset):
    """The validation rows of this process in batches; their masks are the same at each evaluation.

    Every process has equally many batches, since sharded models need all of them in each forward pass; places past
    the last row repeat it without labels.
    """

    def __init__(self, rows: PackedRows, masking: Masking, plan: BatchPlan, max_rows: int | None):
        self.rows = rows
        self.masking = masking
        self.plan = plan
        self.num_rows = len(rows) if max_rows is None else min(max_rows, len(rows))

    def __len__(self) -> int:
        return -(-self.num_rows // (self.plan.micro_batch_size * self.plan.num_processes))

    def __getitem__(self, batch: int) -> dict[str, torch.Tensor]:
        if not 0 <= batch < len(self):
            raise IndexError(batch)
        first = (batch * self.plan.num_processes + self.plan.process_index) * self.plan.micro_batch_size
        places = np.arange(first, first + self.plan.micro_batch_size)
        indices = np.minimum(places, self.num_rows - 1)
        rows = self.rows[indices]
        input_ids, labels = self.masking(rows, indices, 0, EVALUATION)
        labels[places >= self.num_rows] = IGNORED
        return {
            "input_ids": torch.from_numpy(input_ids),
            "labels": torch.from_numpy(labels),
            "attention_mask": torch.from_numpy(rows != self.rows.pad_token_id),
        }
