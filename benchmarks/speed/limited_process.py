"""A process that may take so much time and memory, and is ended where it takes more."""

import os
import subprocess
import tempfile
import time
from pathlib import Path


OUT_OF_MEMORY = "out of memory"
OUT_OF_TIME = "out of time"
SECONDS_BETWEEN_LOOKS = 0.1  # a process takes a few hundred MiB in that time at most


def run_limited(command: list[str], seconds: float, memory: int | None) -> tuple[str | None, str]:
    """Run a command to its end.

    Args:
        seconds: that it may take.
        memory: bytes of its resident set, which Linux alone tells; None for no limit.

    Returns:
        What ended it too soon (`OUT_OF_MEMORY`, `OUT_OF_TIME`, or `failed: ` and its last words) or None, and what it
        has written to its standard output.
    """
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=output, stderr=errors)
        try:
            ended_by = _watch(process, seconds, memory)
        finally:
            process.kill()
            process.wait()
        output.seek(0)
        errors.seek(0)
        if ended_by is None and process.returncode:
            last = (errors.read().strip() or f"exit code {process.returncode}").splitlines()[-1]
            ended_by = f"failed: {last}"
        return ended_by, output.read()


def _watch(process: subprocess.Popen, seconds: float, memory: int | None) -> str | None:
    end = time.monotonic() + seconds
    while True:
        try:
            process.wait(SECONDS_BETWEEN_LOOKS)
            return None
        except subprocess.TimeoutExpired:
            if time.monotonic() > end:
                return OUT_OF_TIME
            if memory is not None and resident_memory(process.pid) > memory:
                return OUT_OF_MEMORY


def resident_memory(pid: int) -> int:
    """Bytes that a process holds now; 0 where that is not known."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (FileNotFoundError, ProcessLookupError):
        return 0


def available_memory() -> int | None:
    """Bytes that the machine could give now; None where that is not known."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return None
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024
