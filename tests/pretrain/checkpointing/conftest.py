"""What the tests of checkpoints share."""

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def run(build_config: Callable, tmp_path: Path) -> Callable:
    """The configuration of a run of twelve steps with a checkpoint at every fourth."""
    values = {"output_dir": tmp_path, "max_steps": 12, "save_steps": 4, "eval_steps": 4}
    return lambda **changes: build_config(**values | changes)
