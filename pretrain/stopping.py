"""The requests that end a run early, with a checkpoint: SIGTERM, SIGUSR1 and the limit of time."""

import signal
import time


class StopRequest:
    """Whether this process has been asked to stop since it was made.

    Args:
        max_seconds: after which it counts as asked.
    """

    def __init__(self, max_seconds: float):
        self.deadline = time.monotonic() + max_seconds
        self.signalled = False
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._note)

    def requested(self) -> bool:
        return self.signalled or time.monotonic() >= self.deadline

    def _note(self, number: int, frame: object):
        self.signalled = True
