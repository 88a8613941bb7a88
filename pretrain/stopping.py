"""The requests that end a run early, with a checkpoint: SIGTERM, SIGUSR1, the limit of time."""

import signal
import time


class StopRequest:
    """Whether this process has been asked to stop since training began.

    Made after the preparation of the data, which a signal ends at once as it does other programs: it goes on from
    nothing, and the processes that it starts must not inherit these handlers.

    Args:
        deadline: on the clock of `time.monotonic`; from then on it counts as asked.
    """

    def __init__(self, deadline: float):
        self.deadline = deadline
        self.signalled = False
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._note)

    def requested(self) -> bool:
        return self.signalled or time.monotonic() >= self.deadline

    def _note(self, number: int, frame: object):
        self.signalled = True
