"""The length of a run and its learning rate, as functions of the step and of the time spent."""

import math
from bisect import bisect_left
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from common.config.yaml_config import ConfigurationError
from pretrain.configuration import LENGTH_KEYS, PretrainConfig


if TYPE_CHECKING:
    from pretrain.steps.batches import BatchSizes

WARMUP_SHARE = 0.06  # of the run, where the configuration gives no warm-up
DECAY_SHARE = 0.1  # of the run, where the trapezoidal schedule has no decay
FIRST_RATE = 0.01  # of the peak, where the length of a first step is not known


@dataclass(frozen=True)
class Schedule:
    """Warm-up in a straight line, then what `kind` names; there is no state to resume.

    The run's place is measured in `unit`: steps, tokens (places of rows, padding included) or hours of training. The
    warm-up counts the step that is being done, so that the first one moves the weights; what follows counts those
    before it, so that the last one does, too: `minimum` would be reached at the step after the last.

    Args:
        kind: "linear" or "cosine", which fall from the peak to `minimum` over the rest of the run; or "trapezoidal",
            which stays at the peak and falls over the last `decay` as 1 - sqrt(the share of the decay done)
            (Hägele et al., 2024, https://arxiv.org/abs/2405.18392).
        unit: "steps", "tokens" or "hours".
        length, warmup, decay: in that unit.
        peak, minimum: learning rates.
        sizes: rows of each step.
        max_length: places of a row.
    """

    kind: str
    unit: str
    length: float
    warmup: float
    decay: float
    peak: float
    minimum: float
    sizes: "BatchSizes"
    max_length: int

    @classmethod
    def from_config(cls, config: PretrainConfig, sizes: "BatchSizes") -> "Schedule":
        """The schedule of a run.

        Raises:
            ConfigurationError: where warm-up and decay together are longer than the run.
        """
        unit, keys = next(item for item in LENGTH_KEYS.items() if getattr(config, item[1][0]) is not None)
        length, warmup, decay = (getattr(config, key) for key in keys)
        warmup = _share(length, WARMUP_SHARE, unit) if warmup is None else warmup
        decay = _share(length, DECAY_SHARE, unit) if decay is None else decay
        if config.lr_scheduler_type == "trapezoidal" and warmup + decay > length:
            raise ConfigurationError(
                f"{keys[1]} ({warmup}) and {keys[2]} ({decay}) together exceed {keys[0]} ({length})."
            )
        return cls(
            kind=config.lr_scheduler_type,
            unit=unit,
            length=length,
            warmup=warmup,
            decay=decay,
            peak=config.learning_rate,
            minimum=config.min_learning_rate,
            sizes=sizes,
            max_length=config.max_length,
        )

    @cached_property
    def total_steps(self) -> int | None:
        """The number of steps of the run; None where its length is in hours."""
        if self.unit == "hours":
            return None
        if self.unit == "steps":
            return int(self.length)
        most = math.ceil(self.length / (self.sizes.start * self.max_length))
        return bisect_left(range(most), self.length, key=lambda step: self._begin(step, seconds=0.0))

    def learning_rate(self, step: int, seconds: float) -> float:
        """The rate of a step.

        Args:
            step: from 0.
            seconds: of training before it.
        """
        begin = self._begin(step, seconds)
        rise = 1.0
        if self.warmup > 0:
            end = begin if self.unit == "hours" else self._begin(step + 1, seconds)
            rise = min(1.0, max(end / self.warmup, FIRST_RATE if self.unit == "hours" else 0.0))
        return rise * (self.minimum + (self.peak - self.minimum) * self._height(begin))

    def finished(self, step: int, seconds: float) -> bool:
        """Whether the run ends before this step."""
        return self._begin(step, seconds) >= self.length

    def place(self, step: int) -> str:
        """A step as a person reads it: '1,200 of 5,000', or without the second number where it is not known."""
        return f"{step:,}" + (f" of {self.total_steps:,}" if self.total_steps else "")

    def share(self, step: int, seconds: float) -> float:
        """The share of the run that lies before this step."""
        return min(1.0, self._begin(step, seconds) / self.length)

    def _begin(self, step: int, seconds: float) -> float:
        """Where a step begins, in the unit."""
        if self.unit == "hours":
            return seconds / 3600
        return step if self.unit == "steps" else self.sizes.rows_before(step) * self.max_length

    def _height(self, begin: float) -> float:
        """The rate after the warm-up: 1 at the peak, 0 at the minimum."""
        fall = self.decay if self.kind == "trapezoidal" else self.length - self.warmup
        if fall == 0 or begin <= self.length - fall:
            return 1.0
        left = max(0.0, (self.length - begin) / fall)
        if self.kind == "cosine":
            return (1 - math.cos(math.pi * left)) / 2
        return left if self.kind == "linear" else 1 - math.sqrt(1 - left)


def _share(length: float, share: float, unit: str) -> float:
    return length * share if unit == "hours" else round(length * share)
