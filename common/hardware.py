"""What a run computes on, in words."""

import os
import platform
import re
from pathlib import Path

import torch
from accelerate import Accelerator


GIB = 2**30


def describe_hardware(accelerator: Accelerator) -> str:
    """Devices and nodes of a run in a few words, such as `16 x NVIDIA H100 80GB HBM3 (80 GiB) on 2 nodes`."""
    processes = accelerator.num_processes
    nodes = max(1, processes // int(os.environ.get("LOCAL_WORLD_SIZE", processes)))
    where = f" on {nodes} nodes" if nodes > 1 else ""
    if accelerator.device.type == "cuda":
        memory = torch.cuda.get_device_properties(accelerator.device).total_memory / GIB
        return f"{processes} x {torch.cuda.get_device_name(accelerator.device)} ({memory:.0f} GiB){where}"
    count = "1 process" if processes == 1 else f"{processes} processes"
    threads = torch.get_num_threads()
    return f"{count} of {threads} thread{'s' if threads > 1 else ''} on {_processor()}{where}"


def _processor() -> str:
    """The name of the CPU and the number of its logical cores."""
    cpuinfo = Path("/proc/cpuinfo")
    match = None
    if cpuinfo.exists():
        match = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(encoding="utf-8"), re.MULTILINE)
    name = match[1].strip() if match else platform.processor() or platform.machine()
    return f"{name} ({os.cpu_count()} cores)"
