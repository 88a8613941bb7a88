"""Which rows share a batch, and batches as the model takes them."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from common.architectures import blocking_mask
from finetune_glue.data.encoding import Row


POOL = 50  # batches whose rows are sorted together


@dataclass(frozen=True)
class BatchPlan:
    """How the rows of a step are shared out.

    Args:
        batch_size: rows of a step, over all processes.
        num_processes, process_index: of the launch.
        accumulation: the parts that a process takes one after the other.
    """

    batch_size: int
    num_processes: int = 1
    process_index: int = 0
    accumulation: int = 1

    @classmethod
    def of(cls, batch_size: int, num_processes: int, process_index: int, limit: int | None) -> "BatchPlan":
        """A plan by which a process takes at most `limit` rows at once."""
        share = -(-batch_size // num_processes)
        return cls(batch_size, num_processes, process_index, -(-share // (limit or share)))

    @property
    def micro_batch_size(self) -> int:
        """Rows that a process takes at once, at most."""
        return -(-self.batch_size // (self.num_processes * self.accumulation))

    def parts(self, rows: np.ndarray) -> list[np.ndarray]:
        """The rows of a step in equal parts: the first of each process, the second of each, and so on.

        Where there are fewer rows than parts, one is repeated as `~row`, which stands for the row without its label:
        it counts for nothing.
        """
        count = self.num_processes * self.accumulation
        if len(rows) < count:
            rows = np.concatenate([rows, np.full(count - len(rows), ~rows[-1])])
        return np.array_split(rows, count)


class TrainingBatches(torch.utils.data.Sampler[list[int]]):
    """The rows of each batch of this process, epoch by epoch in another order.

    The rows of a step depend on the seed alone, not on the number of processes or on what else draws random numbers.

    Args:
        lengths: (rows,), the tokens of each.
        plan: how steps are shared out.
        seed: of the order.
        group_by_length: whether a step has rows of like length.
    """

    def __init__(self, lengths: np.ndarray, plan: BatchPlan, seed: int, group_by_length: bool):
        self.lengths, self.plan, self.group_by_length = lengths, plan, group_by_length
        self.generator = np.random.default_rng(seed)

    @property
    def steps(self) -> int:
        """Optimiser steps of an epoch."""
        return -(-len(self.lengths) // self.plan.batch_size)

    def __len__(self) -> int:
        return self.steps * self.plan.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        for rows in self.epoch():
            for part in self.plan.parts(rows)[self.plan.process_index :: self.plan.num_processes]:
                yield part.tolist()

    def epoch(self) -> list[np.ndarray]:
        """The rows of each step of the next epoch."""
        order = self.generator.permutation(len(self.lengths))
        size = self.plan.batch_size
        rest = len(order) % size
        # The incomplete batch is drawn from all rows: cut off after sorting, it would always have the shortest.
        batches = [order[:rest]] if rest else []
        pool_size = POOL * size if self.group_by_length else size
        for start in range(rest, len(order), pool_size):
            pool = order[start : start + pool_size]
            if self.group_by_length:
                pool = pool[np.argsort(-self.lengths[pool], kind="stable")]
            batches += [pool[begin : begin + size] for begin in range(0, len(pool), size)]
        return [batches[place] for place in self.generator.permutation(len(batches))]


def padding_share(lengths: np.ndarray, plan: BatchPlan, seed: int, group_by_length: bool, length: int | None) -> float:
    """The share of padding among the places of the first epoch's batches, on all processes.

    Args:
        length: that all batches are padded to; none: to their longest row.
    """
    steps = TrainingBatches(lengths, plan, seed, group_by_length).epoch()
    parts = [lengths[part[part >= 0]] for rows in steps for part in plan.parts(rows)]
    places = sum(len(part) * (length or int(part.max())) for part in parts if len(part))
    return 1 - int(lengths.sum()) / places


class Collator:
    """Makes the batches of a model.

    Args:
        padding: what each column of the rows is padded with.
        arguments: of the model; what is none of them is left out.
        length: that all batches are padded to; none: to their longest row.
    """

    def __init__(self, padding: dict[str, int], arguments: Collection[str], length: int | None):
        self.padding, self.arguments, self.length = padding, arguments, length

    def __call__(self, rows: list[Row]) -> dict[str, torch.Tensor]:
        """Columns and mask (rows, length), of multiple choice (rows, choices, length), and labels (rows,)."""
        inputs = {}
        for name in rows[0].columns:
            parts = [part for row in rows for part in row.columns[name]]
            lengths = [len(part) for part in parts]
            padded = np.full((len(parts), self.length or max(lengths)), self.padding[name], dtype=np.int64)
            for place, part in zip(padded, parts, strict=True):
                place[: len(part)] = part
            inputs[name] = torch.from_numpy(padded)
        mask = torch.arange(padded.shape[1]) < torch.tensor(lengths)[:, None]
        inputs["attention_mask"] = mask.long() if self.length is None else blocking_mask(mask)
        choices = len(parts) // len(rows)
        if choices > 1:
            inputs = {name: values.view(len(rows), choices, *values.shape[1:]) for name, values in inputs.items()}
        inputs = {name: values for name, values in inputs.items() if name in self.arguments}
        if rows[0].label is not None:
            inputs["labels"] = torch.from_numpy(np.array([row.label for row in rows]))
        return inputs
