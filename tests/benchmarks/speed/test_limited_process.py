"""Processes that take too much are ended, and what ended them is said."""

import os
import sys
from pathlib import Path

import pytest

from benchmarks.speed.limited_process import OUT_OF_MEMORY, OUT_OF_TIME, available_memory, resident_memory, run_limited


def python(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", code]


def is_running(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


WAIT = "import os, sys, time; print(os.getpid(), flush=True); time.sleep(600)"


def test_the_output_of_a_process_that_ends_by_itself():
    assert run_limited(python("print('a line')"), 60, 2**30) == (None, "a line\n")


def test_time():
    ended_by, output = run_limited(python(WAIT), 0.5, None)
    assert ended_by == OUT_OF_TIME
    assert output == "" or not is_running(int(output))


@pytest.mark.skipif(sys.platform != "linux", reason="others do not tell the memory of a process")
def test_memory():
    block = f"block = b'x' * 2**28; {WAIT}"
    ended_by, output = run_limited(python(block), 60, 2**27)
    assert ended_by == OUT_OF_MEMORY
    assert output == "" or not is_running(int(output))
    assert 2**20 < resident_memory(os.getpid()) < available_memory() + 2**34
    assert resident_memory(2**22 + 1) == 0


def test_failures():
    ended_by, _ = run_limited(python("raise ValueError('no such thing')"), 60, None)
    assert ended_by == "failed: ValueError: no such thing"
    ended_by, _ = run_limited(python("import sys; sys.exit(3)"), 60, None)
    assert ended_by == "failed: exit code 3"
