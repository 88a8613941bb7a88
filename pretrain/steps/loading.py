"""How batches reach the training loop: made ahead by worker processes, each of which answers through a pipe.

The workers of torch's DataLoader hand tensors over in shared memory, a file descriptor for each; where one of them is
short, as in containers, the loop waits for ever. A pipe needs neither, and closes with the process at its other end.
"""

import multiprocessing
import signal
import traceback
from collections.abc import Callable, Generator
from contextlib import suppress
from multiprocessing.connection import Connection

import numpy as np
import torch

from common.errors import LostProcess, UserError
from pretrain.steps.batches import TrainingBatches
from pretrain.stopping import StopRequest


POLL_SECONDS = 1.0
PATIENCE = 20  # polls that a worker still has to answer in once the run is to stop


def load_batches(
    batches: TrainingBatches, steps: range, num_workers: int, stop: StopRequest
) -> Generator[list[dict], None, None]:
    """Yield the items of `steps`, each made by the next of the workers while the loop is at earlier ones.

    Args:
        num_workers: processes; with none this one makes each item when it is asked for.

    Raises:
        UserError: where the system does not start so many.
        LostProcess: where a worker was killed, or does not answer though the run is to stop.
        Exception: what making an item has raised.
    """
    if not num_workers:
        yield from map(batches.__getitem__, steps)
        return
    workers: list[_Worker] = []
    try:
        for step in steps[:num_workers]:
            try:
                workers.append(_Worker(batches))
            except OSError as error:
                raise UserError(
                    f"dataloader_num_workers is {num_workers}, but the system starts only {len(workers)} "
                    f"({error.strerror}): lower it."
                ) from error
            workers[-1].ask(step)
        for number, step in enumerate(steps):
            worker = workers[number % num_workers]
            batch = worker.answer(stop)
            if step + num_workers in steps:
                worker.ask(step + num_workers)
            yield batch
    finally:
        for worker in workers:
            worker.end()


class _Worker:
    """A process that makes items, one for each question."""

    def __init__(self, batches: TrainingBatches):
        context = multiprocessing.get_context("fork")  # shares the memory of this process, and starts at once
        self.connection, other_end = context.Pipe()
        self.process = context.Process(target=_work, args=(batches, self.connection, other_end), daemon=True)
        self.process.start()
        other_end.close()  # or it would stay open when the worker has ended

    def ask(self, step: int):
        with suppress(OSError):  # it has ended, which its answer will tell
            self.connection.send(step)

    def answer(self, stop: StopRequest) -> list[dict]:
        patience = PATIENCE
        while not self.connection.poll(POLL_SECONDS):
            patience -= stop.requested()
            if patience < 0:
                raise LostProcess("A worker that makes batches does not answer, and the run is to stop.")
        try:
            answer = self.connection.recv()
        except (EOFError, OSError) as error:
            raise LostProcess(f"A worker that makes batches {self._end_in_words()}.") from error
        if isinstance(answer, Exception):
            raise answer
        return [_converted(batch, np.ndarray, torch.from_numpy) for batch in answer]

    def _end_in_words(self) -> str:
        self.process.join(POLL_SECONDS)
        code = self.process.exitcode
        if code is None or code >= 0:
            return f"has ended with exit code {code}"
        return (
            f"was killed by {signal.Signals(-code).name}, perhaps because memory was full (then lower "
            "dataloader_num_workers)"
        )

    def end(self):
        self.process.kill()  # it has nothing to lose, and may be stuck
        self.process.join()
        self.connection.close()


def _work(batches: TrainingBatches, parents_end: Connection, connection: Connection):
    parents_end.close()  # or it would stay open when the parent has ended
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to the whole group; the last steps still need their batches
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    with suppress(EOFError, OSError):  # the parent has ended
        while True:
            step = connection.recv()
            answer: list[dict] | Exception
            try:
                answer = [_converted(batch, torch.Tensor, torch.Tensor.numpy) for batch in batches[step]]
            except Exception as error:
                error.add_note(f"In a worker:\n{traceback.format_exc()}")  # of which the pipe takes none
                answer = error
            connection.send(answer)


def _converted(batch: dict, kind: type, convert: Callable) -> dict:
    """A batch with its values of a kind converted: arrays are sent as bytes, tensors would be in shared memory."""
    return {name: convert(value) if isinstance(value, kind) else value for name, value in batch.items()}
