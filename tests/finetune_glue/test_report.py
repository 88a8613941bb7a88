"""What a run leaves beside its cells, where several calls write it at once and where the disk is full."""

import multiprocessing
import resource
import time
from pathlib import Path

import pytest
from cell_folders import write_cell

from common.errors import UserError
from experiments import report as experiments_report
from finetune_glue import report
from finetune_glue.configuration import GlueConfig


def test_calls_that_end_together_write_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_cell(tmp_path, "rte", 1, {"accuracy": 0.6})
    inside = tmp_path / "inside"

    def draw(results: object, output: Path):
        inside.touch(exist_ok=False)
        time.sleep(0.3)
        inside.unlink()

    monkeypatch.setattr(experiments_report, "draw_results", draw)
    config = GlueConfig(output_dir=str(tmp_path), model="a", tasks="rte")
    fork = multiprocessing.get_context("fork")
    calls = [fork.Process(target=report.write_report, args=(config, [])) for _ in range(3)]
    for call in calls:
        call.start()
    for call in calls:
        call.join()
    assert [call.exitcode for call in calls] == [0, 0, 0]


@pytest.mark.parametrize(("size", "name"), [(100, "results.json"), (8000, "results.png")])
def test_full_disk_is_said_and_the_cells_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture, size: int, name: str):
    """Files that cannot grow beyond a size end in the same way."""
    cell = write_cell(tmp_path, "rte", 1, {"accuracy": 0.6})
    before = (cell / "result.json").read_bytes()
    config = GlueConfig(output_dir=str(tmp_path), model="a", tasks="rte")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        with pytest.raises(
            UserError, match=rf"^The results cannot be written: .*{tmp_path / name}.*The cells are kept"
        ):
            report.write_report(config, [])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "60.0 (1)" in capsys.readouterr().out
    assert not (tmp_path / name).exists() and not list(tmp_path.glob("*.partial"))
    assert (cell / "result.json").read_bytes() == before
    report.write_report(config, [])
    assert (tmp_path / "results.png").stat().st_size > 8000
