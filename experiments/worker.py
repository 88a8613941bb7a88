"""A process that runs one cell after the other, beside others that may do so, too."""

import gc
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from filelock import FileLock

from common.checksums import find_change
from common.durations import duration
from common.errors import UserError, is_disk_full, printable
from experiments.cell_folder import ERROR, MODEL
from experiments.cells import BEGUN, Cell, Notes
from experiments.kept_models import keep_best_of_setting
from experiments.progress import Progress


WAIT = 1.0  # seconds between two looks at what other processes are doing
MOST_LOSSES = 2  # processes of a call that a cell may cost, before it counts as failed
OnProgress = Callable[[str, int, int], object]  # is told what is going on, and how much of how much of it is done


class Train(Protocol):
    """How a cell is trained; it is pickled for processes that run side by side."""

    def __call__(
        self, cell: Any, init_from: Path | None, say: Callable[[str], object], on_progress: OnProgress, /
    ) -> dict:
        """Train a cell with all processes of the launch, write its result, and return it.

        Args:
            init_from: folder of the model that it starts from, where that is another cell's.
            say: prints a line.
            on_progress: is told how far it is.
        """


class Worker:
    """A process, or all processes of one launch together, that runs one cell after the other.

    Args:
        earlier: the notes that there were when the call began; what has failed since then is not run again.
        side_by_side: number of such processes of the call.
        save_models: "best": of a setting only the best seed's model stays.
        bar: whether it may show its progress in the terminal.
    """

    def __init__(
        self,
        cells: list[Cell],
        train: Train,
        earlier: Notes,
        side_by_side: int = 1,
        save_models: str = "best",
        bar: bool = True,
    ):
        self.cells, self.train, self.earlier = cells, train, earlier
        self.side_by_side, self.save_models = side_by_side, save_models
        self.state = PartialState(cpu=not torch.cuda.is_available())
        shown = bar and self.state.is_main_process and sys.stdout.isatty()
        self.progress = Progress(None if shown else self.say)
        self.tried: set[Path] = set()

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
        return cell.folder in self.tried or self.earlier.have_grown(cell, ERROR) or cell.result() is not None

    def _is_given_up(self, cell: Cell) -> bool:
        """Whether a cell that is taken has cost this call too many processes; one that was lost is said."""
        loss = cell.loss()
        if loss is None:
            return False
        if loss:
            began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(loss["time"]))
            self.say(
                f"{cell} was lost: process {loss['process']} on {loss['host']} began it at {began} and was killed"
            )
        else:
            self.say(f"{cell} was lost: the process that ran it was killed")
        if self._losses(cell) < MOST_LOSSES:
            return False
        cell.fail("two processes that ran it were killed; perhaps the memory did not suffice.")
        self.say(f"    failed: it has cost {MOST_LOSSES} processes")
        return True

    def _losses(self, cell: Cell) -> int:
        """The number of processes that a cell, which is taken, has cost since this call began."""
        loss = cell.loss()
        return loss.get("losses", 0) + 1 if loss is not None and self.earlier.have_grown(cell, BEGUN) else 0

    def _is_ready(self, cell: Cell) -> bool:
        """Whether the models that a cell may start from are there."""
        return all(self._has_ended(source) for source in cell.sources)

    def _run(self, cell: Cell):
        ended = sum(self._has_ended(other) for other in self.cells)
        self.say(f"cell {ended + 1} of {len(self.cells)}: {cell}{self._time_left()}")
        self.tried.add(cell.folder)
        main = self.state.is_main_process
        with cell.running(self._losses(cell)) if main else nullcontext():
            try:
                result = self._trained(cell)
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
                    if self.save_models == "best":
                        keep_best_of_setting(cell, self.cells)
                    self.say(
                        f"    {cell.task.score_name} {100 * result['score']:.1f} in {duration(result['seconds'])}"
                    )
            finally:
                gc.collect()
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()

    def _trained(self, cell: Cell) -> dict:
        """The result of running a cell."""
        try:
            return self.train(
                cell,
                self._start(cell),
                self.say,
                lambda what, done, total: self.progress.at(f"{cell}: {what}", done, total),
            )
        finally:
            self.progress.at("")

    def _start(self, cell: Cell) -> Path | None:
        """The folder of another cell's model that a cell starts from, if it does."""
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
        assert best.result is not None
        change = find_change(best.folder / MODEL, best.result.get("weights", {}))  # none in those of earlier versions
        if change:
            raise UserError(
                f"the {cell.init_from_task} model to start from, {best.folder / MODEL}, is another one than was "
                f"trained: {change}. Delete {best.folder} to make it again."
            )
        return best.folder / MODEL

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
        return f" (about {duration(left / self.side_by_side)} left)"

    def _agreed(self, number: int | None) -> int | None:
        """The main process's number, in all of them."""
        return broadcast_object_list([number])[0] if self.state.num_processes > 1 else number
