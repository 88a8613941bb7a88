"""The requests that end a run early, with a checkpoint: SIGTERM, SIGUSR1, the limit of time, a dead launcher."""

import ctypes
import os
import signal
import sys
import time
from pathlib import Path


PR_SET_PDEATHSIG = 1  # of prctl(2)


def end_with_launcher():
    """Have this process get SIGTERM when the launcher that started it dies, so that none is left behind.

    Linux alone has this. A process started by hand outlives its shell.
    """
    if sys.platform != "linux" or "ACCELERATE_MIXED_PRECISION" not in os.environ:  # set by `accelerate launch`
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    arguments_of_init = Path("/proc/1/cmdline").read_bytes()  # in a container this may be the launcher
    if os.getppid() == 1 and sys.argv[0].encode() not in arguments_of_init:  # it has died already
        os.kill(os.getpid(), signal.SIGTERM)


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
