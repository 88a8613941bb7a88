# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""DistributedDataParallel waits for no parameter: two real processes, `find_unused_parameters` off."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch


SCRIPT = Path(__file__).parent / "ddp_two_ranks.py"
specification = importlib.util.spec_from_file_location("ddp_two_ranks", SCRIPT)
ddp_two_ranks = importlib.util.module_from_spec(specification)
specification.loader.exec_module(ddp_two_ranks)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory, subprocess_environment: dict[str, str]) -> list[dict]:
    """What each of the two ranks found."""
    folder = tmp_path_factory.mktemp("ddp")
    path = os.pathsep.join((subprocess_environment["PYTHONPATH"], str(SCRIPT.parents[1])))
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder / "meeting"), str(rank), str(folder / f"rank{rank}.pt")],
            env=subprocess_environment | {"PYTHONPATH": path},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=240)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("run", ddp_two_ranks.runs())
def test_two_ranks_agree(ranks: list[dict], run: str):
    first, second = (rank[run] for rank in ranks)
    assert first["losses"] != second["losses"], "each rank has its own rows"
    torch.testing.assert_close(first["parameters"], second["parameters"], atol=0, rtol=0)


@pytest.mark.parametrize("run", [run for run in ddp_two_ranks.runs() if run != "dropout"])
def test_two_ranks_equal_one_process(ranks: list[dict], run: str):
    alone = ddp_two_ranks.train(run)
    losses = [sum(shares) for shares in zip(*(rank[run]["losses"] for rank in ranks), strict=True)]
    assert losses == pytest.approx(alone["losses"], rel=1e-5)
    for kind in ("gradients", "parameters"):
        torch.testing.assert_close(ranks[0][run][kind], alone[kind], atol=1e-5, rtol=1e-4)
