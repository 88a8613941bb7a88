"""Which row training sees as its sample of a number: index arithmetic over (seed, number), without any state."""

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from common.errors import UserError


SHORTEST_PERIOD = 1024  # samples; a batch then meets few periods, each of which has a permutation of its own
LONGEST_PERIOD = 2**16  # samples; the shares of weights that would need more are rounded to it
# What permutations of the same (seed, epoch) are for.
ROWS, PERIODS, ROWS_OF_FIRST_SOURCE = 0, 1, 2


class MixtureError(UserError):
    """Weights that cannot be used."""


@dataclass(frozen=True)
class Mixture:
    """How samples are shared out over the rows of several sources, which follow each other in one numbering.

    Without weights all rows are one set, each of them once an epoch. With weights, each period of samples holds
    exactly `period[i]` of source i, in an order of its own; and those of a source are its rows, each once in an epoch
    of that source.

    Args:
        sizes: rows of each source.
        period: samples of each source in a period; None without weights.
    """

    sizes: tuple[int, ...]
    period: tuple[int, ...] | None = None

    @classmethod
    def of(cls, sizes: list[int], weights: list[float | None]) -> "Mixture":
        """
        Raises:
            MixtureError: where a source with a weight has no rows.
        """
        if all(weight is None for weight in weights):
            return cls(tuple(sizes))
        for number, size in enumerate(sizes):
            if size == 0:
                raise MixtureError(f"data: source {number + 1} has a weight, but no rows for training.")
        return cls(tuple(sizes), period_of([weight for weight in weights if weight is not None]))

    def __call__(self, samples: np.ndarray, seed: int) -> np.ndarray:
        """The rows that samples of these numbers, counted over the whole run, are."""
        samples = np.asarray(samples)
        if self.period is None:
            return once_an_epoch(samples, sum(self.sizes), seed, ROWS)
        first_places, first_rows = np.cumsum([0, *self.period]), np.cumsum([0, *self.sizes])
        length = sum(self.period)
        periods, places = np.divmod(samples, length)
        places = _by_epoch(periods, places, length, seed, PERIODS)
        sources = np.searchsorted(first_places, places, side="right") - 1
        rows = np.empty_like(samples)
        for source in np.unique(sources):
            here = sources == source
            of_source = periods[here] * self.period[source] + places[here] - first_places[source]
            rows[here] = first_rows[source] + once_an_epoch(
                of_source, self.sizes[source], seed, ROWS_OF_FIRST_SOURCE + int(source)
            )
        return rows


def check_weights(weights: list[float | None]):
    """
    Raises:
        MixtureError: where only some sources have a weight.
    """
    if None in weights and any(weight is not None for weight in weights):
        raise MixtureError("data: give each source a weight, or none of them.")


def period_of(weights: list[float]) -> tuple[int, ...]:
    """Whole numbers in the ratio of the weights, as they were written."""
    fractions = [Fraction(str(weight)) for weight in weights]
    scale = math.lcm(*(fraction.denominator for fraction in fractions))
    counts = [int(fraction * scale) for fraction in fractions]
    divisor = math.gcd(*counts)
    counts = [count // divisor for count in counts]
    total = sum(counts)
    if total > LONGEST_PERIOD:
        exact = [Fraction(count * LONGEST_PERIOD, total) for count in counts]
        counts = [max(1, int(share)) for share in exact]
        by_remainder = sorted(range(len(counts)), key=lambda source: int(exact[source]) - exact[source])
        for source in by_remainder[: max(0, LONGEST_PERIOD - sum(counts))]:
            counts[source] += 1
        total = sum(counts)
    return tuple(count * -(-SHORTEST_PERIOD // total) for count in counts)


def once_an_epoch(samples: np.ndarray, size: int, seed: int, purpose: int) -> np.ndarray:
    """The items of `range(size)` that samples of these numbers are: each once an epoch, in another order each time."""
    epochs, places = np.divmod(samples, size)
    return _by_epoch(epochs, places, size, seed, purpose)


def _by_epoch(epochs: np.ndarray, places: np.ndarray, size: int, seed: int, purpose: int) -> np.ndarray:
    result = np.empty_like(places)
    for epoch in np.unique(epochs):
        of_epoch = epochs == epoch
        result[of_epoch] = permuted(places[of_epoch], size, seed, int(epoch), purpose)
    return result


def permuted(positions: np.ndarray, size: int, seed: int, epoch: int, purpose: int = ROWS) -> np.ndarray:
    """Where a random permutation of `range(size)`, one for each (seed, epoch, purpose), sends the positions.

    A Feistel network over the next even power of two, walked on until the result falls below `size`: constant memory
    and no state, whatever the size.
    """
    half_bits = max(1, -(-(size - 1).bit_length() // 2))
    mask = np.uint64(2**half_bits - 1)
    keys = np.random.Philox(key=[seed, epoch], counter=[0, 0, 0, purpose]).random_raw(4)
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
