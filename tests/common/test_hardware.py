"""Memory and description of the hardware."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from common import hardware
from common.hardware import describe_hardware


@pytest.mark.parametrize(("text", "expected"), [("1048576\n", 2**20), ("max\n", None), ("9223372036854771712", None)])
def test_memory_of_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, expected: int | None):
    limit = tmp_path / "memory.max"
    limit.write_text(text)
    monkeypatch.setattr(hardware, "CONTAINER_LIMITS", (tmp_path / "none", limit))
    machine = hardware.total_memory(torch.device("cpu"))
    assert machine == expected if expected else machine > 2**28


def test_peak_memory_is_that_of_this_process(python: Callable):
    """In a process of its own: this one may have held more before."""
    finished = python(
        "-c",
        """
import torch
from common.hardware import peak_memory
before = peak_memory(torch.device("cpu"))
block = torch.ones(2**27, dtype=torch.uint8)
assert 2**26 < peak_memory(torch.device("cpu")) - before < 2**28
del block
assert peak_memory(torch.device("cpu")) > before
""",
    )
    assert finished.returncode == 0, finished.stderr


def test_description(monkeypatch: pytest.MonkeyPatch):
    torch_threads = torch.get_num_threads()
    accelerator = SimpleNamespace(device=torch.device("cpu"), num_processes=2)
    text = describe_hardware(accelerator)
    assert text.startswith(f"2 processes of {torch_threads} thread") and text.endswith(" cores)")

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    memory = SimpleNamespace(total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: memory)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    accelerator = SimpleNamespace(device=torch.device("cuda"), num_processes=16)
    assert describe_hardware(accelerator) == "16 x NVIDIA H100 80GB HBM3 (80 GiB) on 2 nodes"
