"""What this machine cannot hold is refused before it is tried, and before data are prepared."""

import re
import resource
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from common.config.yaml_config import ConfigurationError
from common.hardware import GIB
from pretrain import feasibility


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model": {"hidden_size": 2**16, "intermediate_size": 2**18, "num_hidden_layers": 1000}},
            "The weights of the model need more than the 4 GiB of memory of this machine: lower vocab_size or the ",
        ),
        ({"vocab_size": 2**24, "model": {"hidden_size": 128}}, "The weights of the model need more than the 4 GiB"),
        ({"model": {"projection_length": 2**24, "hidden_size": 128}}, "The weights of the model need more than the "),
        (
            {"model": {"hidden_size": 1024, "intermediate_size": 2**12, "num_hidden_layers": 40}},
            "The model has 547,423,632 parameters. Training takes at least 8 GiB, but this machine has 4 GiB: lower ",
        ),
        ({"model": {"num_hidden_layers": 10_000}}, "The model has more than 30,000 tensors: give it fewer layers."),
        (
            {"batch_size": 2**22},
            "A process takes 4,194,304 rows of 32 tokens at once, whose hidden states need at least 34 GiB, but this "
            "machine has 4 GiB: give a smaller per_device_train_batch_size.",
        ),
    ],
)
def test_models_and_batches_that_do_not_fit(
    build_config: Callable,
    train: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict,
    message: str,
):
    monkeypatch.setattr(feasibility, "total_memory", lambda device: 4 * GIB)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    config = build_config(tmp_path / "run", prepared_dir=str(tmp_path / "prepared"), **changes)
    with pytest.raises(ConfigurationError, match=f"^{re.escape(message)}"):
        train(config)
    assert not (tmp_path / "prepared").exists()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB
    assert time.perf_counter() - started < 60


def test_smaller_micro_batches_fit(build_config: Callable, train: Callable, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(feasibility, "total_memory", lambda device: GIB // 1024)
    config = build_config(tmp_path / "run", max_steps=1, warmup_steps=1, batch_size=256)
    with pytest.raises(ConfigurationError, match="give a smaller per_device_train_batch_size"):
        train(config)
    config.per_device_train_batch_size = 8
    assert [record["step"] for record in train(config) if "loss" in record] == [1]
