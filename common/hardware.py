"""What a run computes on: its name in words, and its memory."""

import os
import platform
import re
from pathlib import Path

import torch
from accelerate import Accelerator


GIB = 2**30

# Of control groups, version 2 and 1.
CONTAINER_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def describe_hardware(accelerator: Accelerator) -> str:
    """Devices and nodes of a run in a few words, such as `16 x NVIDIA H100 80GB HBM3 (80 GiB) on 2 nodes`."""
    processes = accelerator.num_processes
    nodes = max(1, processes // int(os.environ.get("LOCAL_WORLD_SIZE", processes)))
    where = f" on {nodes} nodes" if nodes > 1 else ""
    return describe_devices(accelerator.device, processes) + where


def describe_devices(device: torch.device, processes: int = 1) -> str:
    """The devices of that many processes, in words."""
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory / GIB
        return f"{processes} x {torch.cuda.get_device_name(device)} ({memory:.0f} GiB)"
    count = "1 process" if processes == 1 else f"{processes} processes"
    threads = torch.get_num_threads()
    return f"{count} of {threads} thread{'s' if threads > 1 else ''} on {_processor()}"


def _processor() -> str:
    """The name of the CPU and the number of its logical cores."""
    cpuinfo = Path("/proc/cpuinfo")
    match = None
    if cpuinfo.exists():
        match = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(encoding="utf-8"), re.MULTILINE)
    name = match[1].strip() if match else platform.processor() or platform.machine()
    return f"{name} ({os.cpu_count()} cores)"


def total_memory(device: torch.device) -> int:
    """Bytes of memory of a GPU, else of this machine, or of the container where that has less."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for file in CONTAINER_LIMITS:
        if file.exists() and (text := file.read_text(encoding="utf-8").strip()).isdigit():
            limits.append(int(text))
    return min(limits)


def peak_memory(device: torch.device) -> int:
    """Bytes that this process has held at most: on a GPU those of its tensors, else the resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # there `ru_maxrss` counts the process that started this one, too
        match = re.search(r"VmHWM:\s*(\d+) kB", status.read_text(encoding="utf-8"))
        if match:
            return int(match[1]) * 1024
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024
