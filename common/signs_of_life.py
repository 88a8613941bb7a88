"""What long work shows while it goes on: a progress bar on a terminal, a line each half minute elsewhere."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from common.durations import duration


T = TypeVar("T")
SECONDS_BETWEEN_LINES = 30


def to_stderr(line: str):
    """Print a line where it does not mix with results."""
    print(line, file=sys.stderr, flush=True)


def with_progress(
    items: Iterable[T],
    title: str,
    unit: str,
    total: int | None = None,
    size: Callable[[T], float] = lambda item: 1,
    say: Callable[[str], object] = to_stderr,
) -> Iterator[T]:
    """Yield items and show how many of them are done.

    Args:
        title: of the work.
        unit: of what is counted.
        total: the sum of the sizes, if it is known.
        size: of an item, in units.
        say: takes the lines.
    """
    if sys.stderr.isatty():
        with tqdm(desc=title, total=total, unit=unit, leave=False, dynamic_ncols=True) as bar:
            for item in items:
                yield item
                bar.update(round(size(item)))
        return
    started = last = time.monotonic()
    done = 0.0
    for item in items:
        yield item
        done += size(item)
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES:
            last = now
            say(f"{title}: {_state(done, total, unit, now - started)}")


def _state(done: float, total: int | None, unit: str, seconds: float) -> str:
    if total is None:
        return f"{done:,.0f} {unit} in {duration(seconds)}"
    return f"{done:,.0f} of {total:,} {unit}, {duration(seconds / done * (total - done))} left"
