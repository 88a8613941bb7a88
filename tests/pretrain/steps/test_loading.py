"""Batches from worker processes: in order, without shared memory, and with an end whatever happens to a worker."""

import errno
import json
import multiprocessing
import multiprocessing.synchronize
import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from processes import wait_until
from run_records import timeless
from training_runs import read_metrics

from common.errors import INTERRUPTED, STOPPED, LostProcess, UserError
from pretrain.building import PreparationError
from pretrain.data import workers
from pretrain.data.workers import shared_out
from pretrain.steps import loading
from pretrain.steps.batches import TrainingBatches
from pretrain.steps.loading import load_batches
from pretrain.watching.monitoring import Monitor


def stop(requested: bool = False) -> SimpleNamespace:
    return SimpleNamespace(requested=lambda: requested)


class Numbered:
    """Item k is k micro-batches full of k; some items first do something else, in the process that makes them."""

    def __init__(self, before: dict[int, Callable] | None = None):
        self.before = before or {}

    def __getitem__(self, step: int) -> list[dict]:
        self.before.get(step, lambda: None)()
        batch = {"input_ids": torch.full((2, 3), step), "mask": torch.ones(2, dtype=torch.bool), "length": step}
        return [batch] * step


@pytest.mark.parametrize("num_workers", [0, 1, 2, 9])
def test_items_come_in_order(num_workers: int):
    items = load_batches(Numbered(), range(3, 10), num_workers, stop())
    for step, batch in zip(range(3, 10), items, strict=True):
        assert len(batch) == batch[0]["length"] == step
        assert batch[0]["input_ids"].tolist() == [[step] * 3] * 2 and batch[0]["mask"].dtype == torch.bool
    assert not multiprocessing.active_children()


def test_many_micro_batches_take_no_file_descriptors():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, hard))
    try:
        assert [len(batch) for batch in load_batches(Numbered(), range(500, 503), 1, stop())] == [500, 501, 502]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def no_shared_memory(monkeypatch: pytest.MonkeyPatch):
    """Neither tensors nor locks find room in /dev/shm."""

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", full)
    monkeypatch.setattr(torch.UntypedStorage, "_share_filename_cpu_", full)
    monkeypatch.setattr(multiprocessing.synchronize.SemLock, "__init__", full)


@pytest.mark.slow
def test_training_needs_no_shared_memory(no_shared_memory, build_config: Callable, train: Callable, tmp_path: Path):
    expected = train(build_config(tmp_path / "alone", max_steps=5))
    assert timeless(train(build_config(tmp_path / "run", max_steps=5, dataloader_num_workers=2))) == timeless(expected)


def test_preparation_goes_on_alone_without_shared_memory(no_shared_memory, capsys: pytest.CaptureFixture):
    workers._say_alone.cache_clear()
    for _ in range(2):
        assert list(shared_out(lambda: abs, (), [-1, 2, -3], num_proc=2)) == [1, 2, 3]
    assert capsys.readouterr().out == (
        "/dev/shm has no room for the locks of processes (No space left on device): one does all, as with num_proc 1\n"
    )


@pytest.mark.slow
def test_run_on_little_shared_memory(
    small_disk: Callable, build_config: Callable, write_config: Callable, tmp_path: Path
):
    """As in a container, for the whole run."""
    changes = {"prepared_dir": str(tmp_path / "prepared"), "num_proc": 2, "dataloader_num_workers": 2, "max_steps": 5}
    config = write_config(build_config(tmp_path / "run", **changes), tmp_path / "run.yaml")
    finished, _ = small_disk(64, "pretrain/run_mlm.py", config, place=Path("/dev/shm"))
    assert finished.returncode == 0, finished.stderr
    assert [record["step"] for record in read_metrics(tmp_path / "run") if "loss" in record] == [1, 2, 3, 4, 5]


def kill_itself():
    os.kill(os.getpid(), signal.SIGKILL)


def test_killed_worker_is_a_loss():
    items = load_batches(Numbered({5: kill_itself}), range(3, 10), 2, stop())
    assert [next(items)[0]["length"], next(items)[0]["length"]] == [3, 4]
    with pytest.raises(LostProcess, match=r"was killed by SIGKILL, perhaps .* \(then lower dataloader_num_workers\)"):
        next(items)
    assert not multiprocessing.active_children()


def test_worker_that_ends_is_a_loss():
    with pytest.raises(LostProcess, match="has ended with exit code 3"):
        next(load_batches(Numbered({0: lambda: os._exit(3)}), range(9), 1, stop()))


def test_stuck_worker_does_not_hold_up_a_stop(monkeypatch: pytest.MonkeyPatch):
    """Once the run is to stop, a worker has a while to answer; one that is slow is waited for."""
    monkeypatch.setattr(loading, "POLL_SECONDS", 0.05)
    slow = Numbered({0: lambda: time.sleep(0.3)})
    assert [len(batch) for batch in load_batches(slow, range(3), 1, stop(requested=True))] == [0, 1, 2]
    with pytest.raises(LostProcess, match="does not answer, and the run is to stop"):
        next(load_batches(Numbered({0: signal.pause}), range(9), 1, stop(requested=True)))
    assert not multiprocessing.active_children()


def test_error_in_a_worker_is_that_of_the_run():
    def fail():
        raise PreparationError("shard 3 is damaged")

    with pytest.raises(PreparationError) as error:
        next(load_batches(Numbered({0: fail}), range(9), 1, stop()))
    assert str(error.value) == "shard 3 is damaged"
    assert "in fail" in error.value.__notes__[0]  # the traceback in the worker


def test_system_that_starts_no_more_processes(monkeypatch: pytest.MonkeyPatch):
    def fork():
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", fork)
    with pytest.raises(UserError, match=r"dataloader_num_workers is 2, but the system starts only 0 \(Resource temp"):
        next(load_batches(Numbered(), range(9), 2, stop()))


PARENT = """
import multiprocessing
from pretrain.steps.loading import load_batches
from pretrain.stopping import StopRequest

items = load_batches([[{}]] * 2000, range(2000), 3, StopRequest(float("inf")))
next(items)
print(*(process.pid for process in multiprocessing.active_children()), flush=True)
input()
"""


@pytest.mark.slow
def test_workers_end_with_a_killed_parent(start: Callable):
    with start("-c", PARENT) as process:
        children = [int(pid) for pid in process.stdout.readline().split()]
        assert len(children) == 3
        process.kill()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), 20)


@pytest.fixture
def run(build_config: Callable, write_config: Callable, tmp_path: Path) -> Callable:
    """Write the configuration of a run with one worker, and a checkpoint at every fourth step."""
    values = {"max_steps": 12, "save_steps": 4, "eval_steps": 4, "dataloader_num_workers": 1}

    def write(name: str) -> Path:
        return write_config(build_config(tmp_path / name, **values), tmp_path / f"{name}.yaml")

    return write


def status(run: Path) -> dict:
    return json.loads((run / "status.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_run_that_loses_a_worker_goes_on(
    run: Callable, script: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert script("pretrain/run_mlm.py", run("whole"))[0] == 0
    make = TrainingBatches.__getitem__
    with monkeypatch.context() as patch:
        patch.setattr(
            TrainingBatches, "__getitem__", lambda self, step: kill_itself() if step == 6 else make(self, step)
        )
        code, _, errors = script("pretrain/run_mlm.py", run("run"))
    assert code == STOPPED and "Traceback" not in errors
    assert "error: A worker that makes batches was killed by SIGKILL" in errors
    assert "The same command goes on from the last checkpoint." in errors
    assert status(tmp_path / "run")["state"] == "stopped"
    assert "SIGKILL" in status(tmp_path / "run")["message"]

    code, output, errors = script("pretrain/run_mlm.py", run("run"))
    assert code == 0 and "Going on from step 4 of 12" in output, errors
    assert timeless(read_metrics(tmp_path / "run")) == timeless(read_metrics(tmp_path / "whole"))
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("run", "whole")]
    assert weights[0] == weights[1]


def test_error_in_a_worker_is_one_message(
    run: Callable, script: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    make = TrainingBatches.__getitem__

    def fail_at_step_6(self, step: int):
        if step == 6:
            raise PreparationError("shard 3 is damaged")
        return make(self, step)

    monkeypatch.setattr(TrainingBatches, "__getitem__", fail_at_step_6)
    code, _, errors = script("pretrain/run_mlm.py", run("run"))
    assert (code, errors.strip().splitlines()[-1]) == (2, "error: shard 3 is damaged") and "Traceback" not in errors
    assert status(tmp_path / "run") | {"time": ""} == {"state": "failed", "message": "shard 3 is damaged", "time": ""}


def test_interrupt_from_the_keyboard_stops_the_run(
    run: Callable, script: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    step_done = Monitor.step_done

    def interrupt_at_step_6(self, progress, *arguments):
        step_done(self, progress, *arguments)
        if progress.step == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr(Monitor, "step_done", interrupt_at_step_6)
    code, _, errors = script("pretrain/run_mlm.py", run("run"))
    assert code == INTERRUPTED and "Stopped. The same command goes on from the last checkpoint." in errors
    assert status(tmp_path / "run")["state"] == "stopped"
    assert not multiprocessing.active_children()
