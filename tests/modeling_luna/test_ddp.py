# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""DistributedDataParallel waits for no parameter: two real processes, `find_unused_parameters` off."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


SCRIPT = Path(__file__).parent / "ddp_two_ranks.py"


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("masked_lm", {}),
        pytest.param("base", {}, marks=pytest.mark.slow),
        pytest.param("masked_lm", {"normalize_before": True, "sparse_prediction": True}, marks=pytest.mark.slow),
    ],
)
def test_two_ranks_agree(
    tiny_config: Callable, tmp_path: Path, subprocess_environment: dict[str, str], kind: str, fields: dict
):
    config = tiny_config(hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1, **fields).to_diff_dict()
    ranks = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(tmp_path / "meeting"), str(rank), kind, json.dumps(config)],
            env=subprocess_environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        streams = [rank.communicate(timeout=120) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    for rank, (_, errors) in zip(ranks, streams, strict=True):
        assert rank.returncode == 0, errors

    first, second = (json.loads(output.splitlines()[-1]) for output, _ in streams)
    assert first["losses"] != second["losses"], "each rank has its own rows"
    assert first["checksum"] == second["checksum"]
