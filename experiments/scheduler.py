"""Which cell is run when and by which process, until each is finished or has failed.

A cell that is being run is locked. One whose process was killed is lost: it is not locked, and neither finished nor
failed. Whichever process finds it runs it again.
"""

import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

import torch
from accelerate import PartialState

from common.errors import report_user_errors
from experiments.cells import Cell, Notes
from experiments.launch import set_up_process
from experiments.planning import run_again
from experiments.worker import Train, Worker


def run_cells(cells: list[Cell], train: Train, side_by_side: int = 1, save_models: str = "best"):
    """Run what is missing or has failed before, here or in processes side by side.

    Several calls with the same cells share them out among themselves.

    Args:
        train: how a cell is trained.
        side_by_side: number of processes.
        save_models: "best": of a setting only the best seed's model stays.
    """
    earlier = Notes(cells)
    missing = _say_what_is_there(cells)
    if not missing:
        return
    workers = min(side_by_side, missing)
    if workers == 1:
        Worker(cells, train, earlier, side_by_side, save_models).work()
        return
    context = multiprocessing.get_context("spawn")
    processes = []
    for number in range(workers):
        with _environment(number, workers):
            process = context.Process(target=_work, args=(cells, train, earlier, side_by_side, save_models))
            process.start()
        processes.append(process)
    try:
        for process in processes:
            process.join()
    finally:
        for process in processes:
            process.terminate()
    lost = [process.exitcode for process in processes if process.exitcode]
    if lost:
        print(f"{len(lost)} of {workers} processes ended early, with the exit codes {lost}", flush=True)


def _say_what_is_there(cells: list[Cell]) -> int:
    """Say how many cells are finished, and which are to be run again and why; the number of those to be run."""
    missing = sum(cell.result() is None for cell in cells)
    again = run_again(cells)
    if PartialState(cpu=not torch.cuda.is_available()).is_main_process:
        if missing < len(cells):
            print(f"{len(cells) - missing} of {len(cells)} cells are finished already", flush=True)
        for line in again:
            print(line, flush=True)
    return missing


def _work(cells: list[Cell], train: Train, earlier: Notes, side_by_side: int, save_models: str):
    Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the parent ends this process
    set_up_process()
    with report_user_errors():
        Worker(cells, train, earlier, side_by_side, save_models, bar=False).work()


def _end_with_parent():
    """End this process where the one that started it is killed: it would train on, unseen."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextmanager
def _environment(number: int, workers: int) -> Iterator[None]:
    """What a process that is started now inherits: a device of its own if there are several, or a share of cores."""
    before = dict(os.environ)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",") if visible else [str(device) for device in range(torch.cuda.device_count())]
    if devices:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]
    else:
        os.environ["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // workers))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
