"""A run that loses one of its processes ends soon, says so, leaves none behind, and goes on from its checkpoint."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import processes_of, wait_until

from pretrain.checkpointing.folders import find_checkpoints, find_damage
from pretrain.watching.metrics import read_metrics


LAUNCHER = ("-m", "accelerate.commands.launch", "--config_file")
SECONDS = 60  # within which all is over
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc"),
]


@pytest.mark.parametrize("victim", ["launcher", "process 0", "process 1"])
def test_lost_process_ends_the_run(
    start: Callable, build_config: Callable, write_config: Callable, tmp_path: Path, victim: str
):
    run = tmp_path / "run"
    changes = {"max_steps": 100_000, "save_steps": 20, "eval_steps": 0, "logging_steps": 10}
    config = write_config(build_config(run, **changes), tmp_path / "run.yaml")
    launcher = start(*LAUNCHER, "configs/accelerate/cpu_2_processes.yaml", "pretrain/run_mlm.py", config)
    try:
        wait_until(lambda: find_checkpoints(run) or launcher.poll() is not None, 120)
        ids = [launcher.pid, *(pid for pid in processes_of(str(config)) if pid != launcher.pid)]
        assert len(ids) == 3
        os.kill(ids[["launcher", "process 0", "process 1"].index(victim)], signal.SIGKILL)
        output, errors = launcher.communicate(timeout=SECONDS)  # until the last one has closed its output
        wait_until(lambda: not processes_of(str(config)), 5)
    finally:
        for pid in processes_of(str(config)):
            os.kill(pid, signal.SIGKILL)
    assert launcher.returncode != 0
    status = json.loads((run / "status.json").read_text())
    last = find_checkpoints(run)[-1]
    assert find_damage(last) is None
    assert all(record["step"] % 10 == 0 for record in read_metrics(run / "metrics.jsonl"))
    if victim == "launcher":
        assert status["state"] == "stopped" and last.name.removeprefix("checkpoint-") in status["message"]
        assert output.count("with a checkpoint. The same command goes on from it.") == 1
    else:
        assert "error: another process of the run has ended" in errors
        assert status["state"] == ("running" if victim == "process 0" else "stopped")


def test_port_in_use_ends_the_run(start: Callable, build_config: Callable, write_config: Callable, tmp_path: Path):
    config = write_config(build_config(tmp_path / "run"), tmp_path / "run.yaml")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        many_nodes = ("configs/accelerate/many_nodes.yaml", "--main_process_port", port)
        with start(*LAUNCHER, *many_nodes, "pretrain/run_mlm.py", config) as launcher:
            try:
                _, errors = launcher.communicate(timeout=SECONDS)
            except subprocess.TimeoutExpired:
                launcher.kill()
                raise
    assert launcher.returncode != 0 and not processes_of(str(config))
    assert f"port `{port}`, but another process" in errors
