"""The values that a number of a configuration may have, as part of its type: `Annotated[int, Range(1, 100)]`."""

import dataclasses
import typing
from typing import Any


@dataclasses.dataclass(frozen=True)
class Range:
    """From `low` to `high`, both included unless said otherwise. What is not a number lies in no range.

    Args:
        above: whether `low` itself is too low.
        below: whether `high` itself is too high.
    """

    low: float
    high: float
    above: bool = False
    below: bool = False

    def problem(self, value: float) -> str | None:
        """What a value must be, if it is not."""
        if not (value > self.low or (value == self.low and not self.above)):
            return f"must be {'above' if self.above else 'at least'} {_written(self.low)}"
        if not (value < self.high or (value == self.high and not self.below)):
            return f"must be {'below' if self.below else 'at most'} {_written(self.high)}"
        return None


def out_of_range(config: Any) -> tuple[str, str] | None:
    """The first field of a dataclass whose value is out of its range, and what it must be."""
    for key, hint in typing.get_type_hints(type(config), include_extras=True).items():
        value = getattr(config, key)
        for limits in typing.get_args(hint):
            if isinstance(limits, Range) and value is not None and (problem := limits.problem(value)):
                return key, problem + (", or null" if type(None) in typing.get_args(typing.get_args(hint)[0]) else "")
    return None


def _written(number: float) -> str:
    return f"{number:,}" if number < 1e15 else f"{number:g}"
