"""The processes of `accelerate launch` and the launcher itself."""

import ctypes
import os
import signal
import sys
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
