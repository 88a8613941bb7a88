"""The programs that measure: they run to their end and print a figure."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest


pytestmark = pytest.mark.slow


@pytest.fixture
def config(build_config: Callable, write_config: Callable, tmp_path: Path) -> Path:
    return write_config(build_config(tmp_path / "run"), tmp_path / "run.yaml")


def printed(result, pattern: str) -> float:
    assert result.returncode == 0, result.stderr
    (figure,) = re.findall(pattern, result.stdout)
    return float(figure)


def test_share_of_a_step_outside_the_model(python: Callable, config: Path):
    result = python("benchmarks/pretraining/measure_step.py", config, "--steps", 30)
    assert 0 < printed(result, r"outside +([\d.]+)%") < 100


def test_time_until_a_resumed_run_trains(python: Callable, config: Path):
    result = python("benchmarks/pretraining/measure_resume.py", config, "--steps", 10, "--repeats", 1)
    assert printed(result, r"([\d.]+) s") > 0


def test_time_of_a_checkpoint(python: Callable, build_config: Callable, tmp_path: Path):
    model = tmp_path / "model.json"
    model.write_text(json.dumps(build_config(tmp_path).model | {"max_position_embeddings": 512}))
    result = python("benchmarks/pretraining/measure_checkpoint.py", model, "--folder", tmp_path, "--repeats", 1)
    assert printed(result, r"million parameters: ([\d.]+) s") >= 0


def test_memory_of_the_preparation(python: Callable, tmp_path: Path):
    result = python(
        "benchmarks/pretraining/measure_preparation.py", "--gigabytes", 0.005, "--num_proc", 1, "--folder", tmp_path
    )
    assert printed(result, r"resumed: .*?([\d.]+) GiB") > 0
