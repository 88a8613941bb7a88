"""What each process computes at each step, by index arithmetic over (seed, step): which rows, under which masks."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch.utils.data import Dataset

from common.config.yaml_config import ConfigurationError
from common.labels import IGNORED
from pretrain.configuration import PretrainConfig
from pretrain.data.packed_data import PackedRows, RowBatch
from pretrain.steps.masking import EVALUATION, TRAINING, Masking


@dataclass(frozen=True)
class BatchSizes:
    """The number of rows of each step: constant, or rising from `start` to `batch_size` over `ramp_steps` by multiples
    of `start`."""

    batch_size: int
    start: int
    ramp_steps: int

    @classmethod
    def from_config(cls, config: PretrainConfig) -> "BatchSizes":
        return cls(config.batch_size, config.batch_size_start or config.batch_size, config.batch_size_ramp_steps)

    def rows(self, step: int) -> int:
        """The rows of a step."""
        if step >= self.ramp_steps:
            return self.batch_size
        return int(self._first_rows[step + 1] - self._first_rows[step])

    def rows_before(self, step: int) -> int:
        """The rows of all steps before this one."""
        ramped = min(step, self.ramp_steps)
        return int(self._first_rows[ramped]) + (step - ramped) * self.batch_size

    @cached_property
    def _first_rows(self) -> np.ndarray:
        steps = np.arange(self.ramp_steps)
        rise = self.start * ((self.batch_size - self.start) * steps // (self.start * max(1, self.ramp_steps)))
        return np.cumsum([0, *np.minimum(self.start + rise, self.batch_size)])


@dataclass(frozen=True)
class RowLengths:
    """The tokens of a row at each step: constant, or doubling from `start` to `max_length` in equally long stages of
    the first `ramp_steps` steps."""

    max_length: int
    start: int
    ramp_steps: int

    @classmethod
    def from_config(cls, config: PretrainConfig) -> "RowLengths":
        return cls(config.max_length, config.max_length_start or config.max_length, config.max_length_ramp_steps)

    def at(self, step: int) -> int:
        """The length of the rows of a step."""
        if step >= self.ramp_steps:
            return self.max_length
        doublings = (self.max_length // self.start).bit_length() - 1
        return self.start << (step * doublings // self.ramp_steps)


@dataclass(frozen=True)
class BatchPlan:
    """How the rows of a step are shared out: evenly over the processes, and in each over its micro-batches.

    Args:
        sizes: rows of each step over all processes and micro-batches.
        num_processes, process_index: of the run, and of this process.
        max_micro_batch: rows that a process takes at once, at most (one more where the rows of a step do not divide);
            None: all of its share.
    """

    sizes: BatchSizes
    num_processes: int = 1
    process_index: int = 0
    max_micro_batch: int | None = None

    def __post_init__(self):
        if self.sizes.start < self.num_processes:
            raise ConfigurationError(
                f"A step has {self.sizes.start} rows, too few for {self.num_processes} processes: raise "
                f"{'batch_size' if self.sizes.start == self.sizes.batch_size else 'batch_size_start'}."
            )

    def num_micro_batches(self, rows: int) -> int:
        """How many micro-batches each process makes of its share of so many rows; the same number on all."""
        share = -(-rows // self.num_processes)
        wanted = 1 if self.max_micro_batch is None else -(-share // self.max_micro_batch)
        return min(wanted, rows // self.num_processes)  # none is empty anywhere

    @property
    def micro_batch_size(self) -> int:
        """The rows of the largest micro-batch."""
        rows = self.sizes.batch_size
        return -(-rows // (self.num_processes * self.num_micro_batches(rows)))

    def places(self, step: int) -> list[np.ndarray]:
        """The places in the global batch of a step that are this process's, by micro-batch."""
        rows = self.sizes.rows(step)
        share = np.array_split(np.arange(rows), self.num_processes)[self.process_index]
        return np.array_split(share, self.num_micro_batches(rows))


class TrainingBatches(Dataset):
    """Item k is what this process needs for step k: a micro-batch after the other, as arguments of the model.

    Row and mask are functions of (seed, step, place in the global batch) alone.

    Args:
        rows: of the training data.
        masking: of the tokens.
        plan: which rows of a step are this process's.
        lengths: to which the rows are cut; None: they stay whole.
    """

    def __init__(self, rows: PackedRows, masking: Masking, plan: BatchPlan, lengths: RowLengths | None = None):
        self.rows = rows
        self.masking = masking
        self.plan = plan
        self.lengths = lengths

    def __getitem__(self, step: int) -> list[dict]:
        first = self.plan.sizes.rows_before(step)
        return [self._micro_batch(places, first, step) for places in self.plan.places(step)]

    def _micro_batch(self, places: np.ndarray, first: int, step: int) -> dict:
        batch = self.rows[self.rows.sample(first + places, self.masking.seed)]
        input_ids, labels = self.masking(batch.ids, places, step, TRAINING)
        arguments = model_arguments(input_ids, labels, batch, self.rows.pad_token_id)
        return arguments if self.lengths is None else cut_rows(arguments, self.lengths.at(step))


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

    def __getitem__(self, batch: int) -> dict:
        if not 0 <= batch < len(self):
            raise IndexError(batch)
        first = (batch * self.plan.num_processes + self.plan.process_index) * self.plan.micro_batch_size
        places = np.arange(first, first + self.plan.micro_batch_size)
        indices = np.minimum(places, self.num_rows - 1)
        rows = self.rows[indices]
        input_ids, labels = self.masking(rows.ids, indices, 0, EVALUATION)
        labels[places >= self.num_rows] = IGNORED
        return model_arguments(input_ids, labels, rows, self.rows.pad_token_id)


def model_arguments(input_ids: np.ndarray, labels: np.ndarray, rows: RowBatch, pad_token_id: int) -> dict:
    """The arguments of the model for some rows: `input_ids` and `labels` (rows, length); `attention_mask` where
    something is padding, since attention is faster without; the boundaries of documents where they are kept apart.
    """
    arguments: dict = {"input_ids": torch.from_numpy(input_ids), "labels": torch.from_numpy(labels)}
    mask = rows.ids != pad_token_id
    if not mask.all():
        arguments["attention_mask"] = torch.from_numpy(mask)
    if rows.document_starts is not None:
        starts = [*np.flatnonzero(rows.document_starts), rows.ids.size]
        arguments["cu_seq_lens_q"] = torch.tensor(starts, dtype=torch.int32)
        tokens_before = np.concatenate([[0], np.cumsum(mask)])
        arguments["max_length_q"] = int(np.diff(tokens_before[starts]).max())
    return arguments


def cut_rows(arguments: dict[str, torch.Tensor], length: int) -> dict[str, torch.Tensor]:
    """Rows in pieces of `length` tokens, which then are rows of their own.

    Each token keeps its position, and with it its slot where slots are positional, so that all of them are learnt
    while rows are short. Pieces of padding alone are left out.
    """
    num_rows, whole = arguments["input_ids"].shape
    if length == whole:
        return arguments
    arguments = arguments | {"position_ids": torch.arange(whole).expand(num_rows, whole)}
    arguments = {name: values.reshape(-1, length) for name, values in arguments.items()}
    if "attention_mask" in arguments:
        filled = arguments["attention_mask"].any(dim=1)
        arguments = {name: values[filled] for name, values in arguments.items()}
    return arguments
