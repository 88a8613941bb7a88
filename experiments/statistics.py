"""Figures over the seeds of a setting, and averages over tasks."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Statistics:
    """Of one figure over seeds; `std` is that of a sample (n - 1), which a single seed does not have."""

    median: float
    mean: float
    std: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Statistics | None":
        if not values:
            return None
        std = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.median(values), statistics.fmean(values), std, len(values))


@dataclass(frozen=True)
class Average:
    """The average of a model over some tasks.

    Args:
        tasks: their names.
        value: the mean of the tasks' median scores.
        by_seed: the mean of the scores of each seed that has finished all these tasks.
    """

    tasks: tuple[str, ...]
    value: float
    by_seed: dict[int, float]

    @property
    def over_seeds(self) -> Statistics | None:
        """Its standard deviation is the spread of the average."""
        return Statistics.of(list(self.by_seed.values()))
