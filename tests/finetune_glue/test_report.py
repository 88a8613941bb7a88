"""What a run leaves beside its cells, where several calls write it at once."""

import multiprocessing
import time
from pathlib import Path

import pytest
from cell_folders import write_cell

from finetune_glue import report
from finetune_glue.configuration import GlueConfig


def test_calls_that_end_together_write_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_cell(tmp_path, "rte", 1, {"accuracy": 0.6})
    inside = tmp_path / "inside"

    def draw(results: object, output: Path):
        inside.touch(exist_ok=False)
        time.sleep(0.3)
        inside.unlink()

    monkeypatch.setattr(report, "draw_results", draw)
    config = GlueConfig(output_dir=str(tmp_path), model="a", tasks="rte")
    fork = multiprocessing.get_context("fork")
    calls = [fork.Process(target=report.write_report, args=(config, [])) for _ in range(3)]
    for call in calls:
        call.start()
    for call in calls:
        call.join()
    assert [call.exitcode for call in calls] == [0, 0, 0]
