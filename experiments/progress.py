"""What is going on: a bar on a terminal, a line each half minute elsewhere, whatever takes the time."""

import time
from collections.abc import Callable
from threading import Event, Thread

from tqdm import tqdm

from common import signs_of_life
from common.durations import duration


def ignore(what: str, done: int, total: int):
    """Take what `Progress.at` takes, and show nothing."""


class Progress:
    """Shows what the block that it is used in is at, from a thread of its own.

    Args:
        say: takes the lines; none: a bar is shown instead.
    """

    def __init__(self, say: Callable[[str], object] | None):
        self.say = say
        self.what, self.done, self.total = "", 0, 0
        self.first, self.since = 0, 0.0  # what was done when it began, and when that was
        self.bar: tqdm | None = None
        self._ended = Event()
        self._thread = Thread(target=self._speak, daemon=True)

    def __enter__(self) -> "Progress":
        if self.say is not None:
            self._thread.start()
        return self

    def __exit__(self, *_):
        self.at("")
        self._ended.set()
        if self.say is not None:
            self._thread.join()

    def at(self, what: str, done: int = 0, total: int = 0):
        """Tell what is going on, and how much of it is done; '' for nothing that takes long."""
        if what != self.what or done < self.done:
            self.what, self.first, self.since = what, done, time.monotonic()
            if self.bar is not None:
                self.bar.close()
                self.bar = None
            if self.say is None and total:
                self.bar = tqdm(desc=what, total=total, initial=done, leave=False, dynamic_ncols=True)
        self.done, self.total = done, total
        if self.bar is not None:
            self.bar.update(done - self.bar.n)

    def _speak(self):
        while not self._ended.wait(signs_of_life.SECONDS_BETWEEN_LINES):
            if self.what and self.say is not None:
                self.say(self._line())

    def _line(self) -> str:
        seconds = time.monotonic() - self.since
        if self.done == self.first or not self.total:
            return f"    {self.what} ({duration(seconds)})"
        left = duration(seconds / (self.done - self.first) * (self.total - self.done))
        return f"    {self.what}: {self.done:,} of {self.total:,}, {left} left"
