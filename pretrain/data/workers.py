"""Work shared out over processes, with a bounded number of tasks on their way."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from itertools import chain, islice
from multiprocessing.connection import Connection, wait
from typing import Any

from common.errors import UserError


SPAWN = multiprocessing.get_context("spawn")
TASKS_AHEAD = 2  # that wait for a process, besides those that are worked on

_work: Callable | None = None  # of this process, if it is a worker


class WorkersDied(UserError):
    """A worker was killed."""


def shared_out(
    make_work: Callable[..., Callable], arguments: tuple, tasks: Iterable[Any], num_proc: int
) -> Iterator[Any]:
    """Yields the results of tasks in their order.

    Each process makes the function that does them once. Processes are spawned, not forked, as this one may have
    threads; they end with this one, however it ends. A single task is done in this process, and so are all where there
    can be no others (see `process_pool`).

    Args:
        make_work: gives the function that does a task.
        arguments: of `make_work`.
        tasks: are taken as they are needed.
        num_proc: processes besides this one; with one there are none.

    Raises:
        WorkersDied: where a process was killed.
    """
    tasks = iter(tasks)
    first = list(islice(tasks, 2))
    tasks = chain(_taken_from(first), tasks)
    stopped, stop = SPAWN.Pipe(duplex=False)
    alone = num_proc == 1 or len(first) < 2
    pool = None if alone else process_pool(num_proc, _start, (stopped, make_work, arguments))
    if pool is None:
        yield from map(make_work(*arguments), tasks)
        return
    pending: deque[Future] = deque()
    try:
        for task in tasks:
            pending.append(pool.submit(_do, task))
            if len(pending) >= num_proc + TASKS_AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool as error:
        raise WorkersDied(
            "A process that prepares data was killed, perhaps because the memory was full (then lower num_proc)."
        ) from error
    finally:
        if pending:
            stop.close()  # ends them in the middle of their tasks
        pool.shutdown(cancel_futures=True)
        stop.close()
        stopped.close()


def process_pool(num_proc: int, initializer: Callable, arguments: tuple = ()) -> ProcessPoolExecutor | None:
    """A pool of spawned processes. None, with a line that says so, where there is no shared memory for their locks."""
    try:
        return ProcessPoolExecutor(num_proc, SPAWN, initializer, arguments)
    except OSError as error:  # that names no file
        _say_alone(error.strerror)
        return None


@cache
def _say_alone(reason: str):
    print(f"/dev/shm has no room for the locks of processes ({reason}): one does all, as with num_proc 1", flush=True)


def _taken_from(first: list) -> Iterator[Any]:
    """Yields items that shall not stay in memory."""
    while first:
        yield first.pop(0)


def _start(stopped: Connection, make_work: Callable[..., Callable], arguments: tuple):
    global _work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the work
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is a process for each core
    threading.Thread(target=_end_with_parent, args=(stopped,), daemon=True).start()
    _work = make_work(*arguments)


def _end_with_parent(stopped: Connection):
    """A killed parent cannot end its pool, whose processes would wait for tasks for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel, stopped])
    os._exit(1)


def _do(task: Any) -> Any:
    assert _work is not None
    return _work(task)
