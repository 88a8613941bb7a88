"""The processes of a launch, as /proc knows them, and waiting for what they do."""

import time
from collections.abc import Callable
from pathlib import Path


def processes_of(marker: str) -> list[int]:
    """The processes whose arguments hold a text."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if marker in (folder / "cmdline").read_text() and "State:\tZ" not in (folder / "status").read_text():
                found.append(int(folder.name))
        except OSError:  # it has ended
            continue
    return sorted(found)


def wait_until(condition: Callable[[], object], seconds: float):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)
