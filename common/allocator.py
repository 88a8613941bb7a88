"""How the C library deals with the memory of tensors on a CPU."""

import ctypes
import os
import platform


# Of glibc's malloc.h.
M_TRIM_THRESHOLD = -1
M_TOP_PAD = -2
M_MMAP_MAX = -4
TOP_PAD = 64 * 2**20
ONEDNN_CAPACITY = "64"  # enough for a step with rows of one length


def keep_freed_memory():
    """Let freed memory stay with this process for the next tensors, where the C library is glibc.

    Without this, glibc gives large blocks back to the system at once, and gets them page by page, filled with zeros,
    for each tensor anew: a tenth of the time of a training step on long rows. The process holds its peak memory to its
    end.

    oneDNN, which keeps what it has prepared for the last 1,024 shapes, is asked to keep fewer: each of them lies
    somewhere between the tensors, so that with rows of ever other lengths the free memory is cut into pieces.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", ONEDNN_CAPACITY)  # read when oneDNN is first used
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, -1)  # the largest number
    mallopt(M_TOP_PAD, TOP_PAD)
