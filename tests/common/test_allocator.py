"""Freed memory stays with the process for the next tensors."""

import platform
from collections.abc import Callable

import pytest

from common import allocator


COUNT_FAULTS = """
import resource, torch
from common.allocator import keep_freed_memory

if {keeps}:
    keep_freed_memory()
for number in range(20):
    if number == 4:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.zeros(16, 2**20) for _ in range(4)]
    del tensors
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone gives memory back at once")
@pytest.mark.slow
def test_pages_are_not_fetched_anew(python: Callable):
    """In processes of their own: for 256 MiB all rounds of the other one fetch all of them again."""
    faults = [int(python("-c", COUNT_FAULTS.format(keeps=keeps)).stdout) for keeps in (True, False)]
    assert 10 * faults[0] < faults[1]


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(allocator.ctypes, "CDLL", None)  # calling it would fail
    allocator.keep_freed_memory()
