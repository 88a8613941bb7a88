"""Which cell is run when and by which process, until each is finished or has failed.

A cell that is being run is locked. One whose process was killed is lost: it is not locked, and neither finished nor
failed. Whichever process finds it runs it again.
"""

import dataclasses
import gc
import multiprocessing
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import median
from threading import Thread

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from filelock import FileLock

from common.durations import duration
from common.errors import UserError, is_disk_full, printable, report_user_errors
from experiments.cells import Cell, best_run, difference
from experiments.launch import set_up_process
from experiments.progress import Progress
from experiments.results import ERROR, MODEL
from finetune_glue.configuration import GlueConfig
from finetune_glue.data.task_data import TaskData, load_task
from finetune_glue.data.tasks import TASKS, Task
from finetune_glue.training.training import Split, run_cell


WAIT = 1.0  # seconds between two looks at what other processes are doing
MOST_LOSSES = 2  # processes of a call that a cell may cost, before it counts as failed


def run_cells(config: GlueConfig, cells: list[Cell]):
    """Run what is missing or has failed before, here or in processes side by side.

    Several calls with the same configuration share the cells out among themselves.
    """
    started = time.time()
    missing = _say_what_is_there(cells)
    if not missing:
        return
    workers = min(config.side_by_side, missing)
    if workers == 1:
        Worker(config, cells, started).work()
        return
    context = multiprocessing.get_context("spawn")
    processes = []
    for number in range(workers):
        with _environment(number, workers):
            process = context.Process(target=_work, args=(config, cells, started))
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
    judged = [cell.judged() for cell in cells]
    missing = sum(cell.result() is None for cell in cells)
    if PartialState(cpu=not torch.cuda.is_available()).is_main_process:
        if missing < len(cells):
            print(f"{len(cells) - missing} of {len(cells)} cells are finished already", flush=True)
        again: dict[str, list[Cell]] = {}
        for cell, (_, reason) in zip(cells, judged, strict=True):
            if reason:
                again.setdefault(reason, []).append(cell)
        for reason, of_reason in again.items():
            others = f" and {len(of_reason) - 1} more" if len(of_reason) > 1 else ""
            print(f"{of_reason[0]}{others}: run again, since {reason}", flush=True)
    return missing


def _work(config: GlueConfig, cells: list[Cell], started: float):
    Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the parent ends this process
    set_up_process()
    with report_user_errors():
        Worker(config, cells, started, bar=False).work()


def _end_with_parent():
    """End this process where the one that started it is killed: it would train on, unseen."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


class Worker:
    """A process, or all processes of one launch together, that runs one cell after the other.

    Args:
        started: when the call began (`time.time`); what has failed since then is not run again.
        bar: whether it may show its progress in the terminal.
    """

    def __init__(self, config: GlueConfig, cells: list[Cell], started: float, bar: bool = True):
        self.config, self.cells, self.started = config, cells, started
        self.state = PartialState(cpu=not torch.cuda.is_available())
        shown = bar and self.state.is_main_process and sys.stdout.isatty()
        self.progress = Progress(None if shown else self.say)
        self.tried: set[Path] = set()
        self.loaded: dict[str, TaskData | UserError] = {}
        self.encoded: dict[tuple, dict[str, Split]] = {}

    def say(self, line: str):
        if self.state.is_main_process:
            print(printable(line), flush=True)

    def work(self):
        """Run cells until each has ended here or elsewhere."""
        with self.progress:
            self._work()

    def _work(self):
        while True:
            taken = self._take() if self.state.is_main_process else None
            number = self._agreed(self.cells.index(taken[0]) if taken else None)
            if number is None:
                return
            try:
                self._run(self.cells[number])
            finally:
                if taken:
                    taken[1].release()

    def _take(self) -> tuple[Cell, FileLock] | None:
        """The next cell to run, locked; waits while others run those that are left."""
        while True:
            elsewhere = []
            for cell in self.cells:
                if self._has_ended(cell):
                    continue
                lock = cell.take() if self._is_ready(cell) else None
                if lock is None:
                    elsewhere.append(cell)
                elif self._has_ended(cell) or self._is_given_up(cell):  # meanwhile, elsewhere
                    lock.release()
                else:
                    return cell, lock
            if not elsewhere:
                return None
            self.progress.at(f"waiting for other processes, which are to end {elsewhere[0]} first")
            time.sleep(WAIT)

    def _has_ended(self, cell: Cell) -> bool:
        """Whether a cell is finished, or has failed since this call began."""
        return cell.folder in self.tried or cell.failed_after(self.started) or cell.result() is not None

    def _is_given_up(self, cell: Cell) -> bool:
        """Whether a cell that is taken has cost this call too many processes; one that was lost is said."""
        loss = cell.loss()
        if loss is None:
            return False
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(loss["time"]))
        self.say(f"{cell} was lost: process {loss['process']} on {loss['host']} began it at {began} and was killed")
        if self._losses(loss) < MOST_LOSSES:
            return False
        cell.fail("two processes that ran it were killed; perhaps the memory did not suffice.")
        self.say(f"    failed: it has cost {MOST_LOSSES} processes")
        return True

    def _losses(self, loss: dict | None) -> int:
        """The number of processes that a cell has cost since this call began."""
        return loss["losses"] + 1 if loss and loss["time"] >= self.started else 0

    def _is_ready(self, cell: Cell) -> bool:
        """Whether the models that a cell may start from are there."""
        return all(self._has_ended(source) for source in cell.sources)

    def _run(self, cell: Cell):
        ended = sum(self._has_ended(other) for other in self.cells)
        self.say(f"cell {ended + 1} of {len(self.cells)}: {cell}{self._time_left()}")
        self.tried.add(cell.folder)
        main = self.state.is_main_process
        with cell.running(self._losses(cell.loss())) if main else nullcontext():
            try:
                result = self._fine_tuned(cell)
            except Exception as error:
                message = str(error) or repr(error)
                if main:
                    cell.fail(message, traceback.format_exc())
                self.say(f"    failed: {message}\n    {cell.folder / ERROR} has the details")
                # With several processes the others may wait for this one in a collective: only what all of them
                # see alike can be gone on from. On a full disk they would train for nothing.
                if is_disk_full(error) or (self.state.num_processes > 1 and not isinstance(error, UserError)):
                    raise
            else:
                if main:
                    self._prune(cell)
                    self.say(
                        f"    {cell.task.score_name} {100 * result['score']:.1f} in {duration(result['seconds'])}"
                    )
            finally:
                gc.collect()
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()

    def _fine_tuned(self, cell: Cell) -> dict:
        """The result of running a cell."""
        self.progress.at(f"{cell}: reading the data")
        cell = self._read(cell)
        try:
            return run_cell(
                cell,
                self._load(cell.task),
                diagnostics=self._diagnostics(cell.task),
                save_model=self.config.save_models != "none",
                init_from=self._start(cell),
                trust_remote_code=self.config.trust_remote_code,
                per_device_train_batch_size=self.config.per_device_train_batch_size,
                mixed_precision=self.config.mixed_precision,
                on_progress=lambda what, done, total: self.progress.at(f"{cell}: {what}", done, total),
                encoded=self.encoded,
            )
        finally:
            self.progress.at("")

    def _read(self, cell: Cell) -> Cell:
        """The cell with the content of the data that were read.

        Raises:
            UserError: where they are not those that it was to be made from.
        """
        read: dict[str, list[str]] = {}
        for data in [self._load(cell.task), *self._diagnostics(cell.task)]:
            read |= data.content
        wanted = cell.made_from.get("data") or {}
        if difference({"data": {name: wanted[name] for name in wanted.keys() & read.keys()}}, {"data": read}):
            raise UserError(
                f"the data of {cell.task.name} have changed while this call was running: it must be started again."
            )
        return dataclasses.replace(cell, made_from=cell.inputs() | {"data": wanted | read})

    def _load(self, task: Task) -> TaskData:
        """The data of a task, read once."""
        if task.name not in self.loaded:
            try:
                data = self.loaded[task.name] = load_task(task, self.config.data)
                for note in data.notes:
                    self.say(f"    {note}")
            except UserError as error:
                self.loaded[task.name] = error
        loaded = self.loaded[task.name]
        if isinstance(loaded, UserError):
            raise loaded
        return loaded

    def _diagnostics(self, task: Task) -> list[TaskData]:
        """The data of tasks that models of this one are judged on, as far as they are there."""
        found = []
        for other in TASKS.values():
            if other.training_task == task.name:
                first = other.name not in self.loaded
                try:
                    found.append(self._load(other))
                except UserError as error:
                    if first:
                        self.say(f"    {other.title} is left out: {error}")
        return found

    def _start(self, cell: Cell) -> Path | None:
        """The folder of the fine-tuned model that a cell starts from, if it does."""
        if cell.init_from_task is None:
            return None
        best = cell.start()
        if best is None:
            raise UserError(
                f"there is no {cell.init_from_task} model of {cell.model_name} to start from: its cells have failed."
            )
        if not (best.folder / MODEL).is_dir():
            raise UserError(
                f"the {cell.init_from_task} model to start from was not kept: delete {best.folder} to make it again."
            )
        return best.folder / MODEL

    def _prune(self, cell: Cell):
        """Of a setting only the best seed's model may stay."""
        if self.config.save_models == "best":
            key = (cell.task, cell.model_name, cell.setting)
            rivals = [other for other in self.cells if (other.task, other.model_name, other.setting) == key]
            ended = [rival for rival in rivals if rival.result() is not None]
            _keep_best_model(ended, ended)

    def _time_left(self) -> str:
        """' (about 12 min left)', by the cells of the same task and model, or of the same task, or any."""
        seconds: dict[tuple, list[float]] = {}
        for cell in self.cells:
            if (result := cell.result()) is not None and "seconds" in result:
                for key in ((cell.task.name, cell.model_name), (cell.task.name,), ()):
                    seconds.setdefault(key, []).append(result["seconds"])
        if not seconds:
            return ""
        left = 0.0
        for cell in self.cells:
            if not self._has_ended(cell):
                keys = ((cell.task.name, cell.model_name), (cell.task.name,), ())
                left += median(next(seconds[key] for key in keys if key in seconds))
        return f" (about {duration(left / self.config.side_by_side)} left)"

    def _agreed(self, number: int | None) -> int | None:
        """The main process's number, in all of them."""
        return broadcast_object_list([number])[0] if self.state.num_processes > 1 else number


def delete_unwanted_models(config: GlueConfig, cells: list[Cell]):
    """Keep the fine-tuned models that `save_models` asks for, once all cells have ended."""
    if config.save_models == "all":
        return
    for task, model_name in {(cell.task, cell.model_name): None for cell in cells}:
        rivals = [cell for cell in cells if (cell.task, cell.model_name) == (task, model_name)]
        _keep_best_model(rivals if config.save_models == "best" else [], rivals)


def _keep_best_model(candidates: list[Cell], cells: list[Cell]):
    best = best_run(candidates)
    for cell in cells:
        if best is None or cell.folder != best.folder:
            shutil.rmtree(cell.folder / MODEL, ignore_errors=True)


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
