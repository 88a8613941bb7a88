"""How the C library deals with the memory of tensors on a CPU."""

import ctypes
import platform


# Of glibc's malloc.h.
M_TRIM_THRESHOLD = -1
M_TOP_PAD = -2
M_MMAP_MAX = -4
TOP_PAD = 64 * 2**20


def keep_freed_memory():
    """Let freed memory stay with this process for the next tensors, where the C library is glibc.

    Without this, glibc gives large blocks back to the system at once, and gets them page by page, filled with zeros,
    for each tensor anew: a tenth of the time of a training step on long rows. The process holds its peak memory to its
    end.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, -1)  # the largest number
    mallopt(M_TOP_PAD, TOP_PAD)
