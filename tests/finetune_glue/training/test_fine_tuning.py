"""Cells that are fine-tuned one after the other share what is read and tokenised."""

from pathlib import Path

import pytest
from glue_folder import write_glue_folder

from common.errors import UserError
from finetune_glue.configuration import GlueConfig
from finetune_glue.data.task_data import TaskData
from finetune_glue.plan import GlueCell, planned_cells
from finetune_glue.training import fine_tuning
from finetune_glue.training.fine_tuning import FineTuning


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """What is given to each fine-tuning, which takes no time."""
    given: list[dict] = []

    def run_cell(cell: GlueCell, data: TaskData, **others) -> dict:
        given.append({"data": data} | others)
        return {}

    monkeypatch.setattr(fine_tuning, "run_cell", run_cell)
    return given


def test_data_are_read_once_and_what_is_tokenised_is_handed_on(given: list, tmp_path: Path):
    write_glue_folder(tmp_path / "glue", rows=8, only=["MNLI", "RTE"])
    config = GlueConfig(str(tmp_path / "run"), model="m", tasks="mnli,rte", data=str(tmp_path / "glue"), seeds=2)
    training, lines = FineTuning(config.data, save_models=False, mixed_precision="no"), []
    for cell in planned_cells(config):
        training(cell, None, lines.append, lambda *_: None)
    assert [call["data"].task.name for call in given] == ["mnli", "rte"] * 2
    assert given[0]["data"] is given[2]["data"] and given[0]["encoded"] is given[3]["encoded"]
    assert {(call["save_model"], call["mixed_precision"]) for call in given} == {(False, "no")}
    assert lines == ["    AX is left out: " + lines[0].partition(": ")[2]]  # once, for both cells of MNLI


def test_data_that_cannot_be_read_are_read_once_and_fail_each_of_their_cells(given: list, tmp_path: Path):
    write_glue_folder(tmp_path / "glue", rows=8, only=["RTE"])
    (tmp_path / "glue/RTE/train.tsv").write_text("index\tsentence1\tsentence2\tlabel\n0\ta\n", encoding="utf-8")
    config = GlueConfig(str(tmp_path / "run"), model="m", tasks="rte", data=str(tmp_path / "glue"), seeds=2)
    training = FineTuning(config.data)
    for cell in planned_cells(config):
        with pytest.raises(UserError, match="RTE/train.tsv, line 2: 2 columns instead of 4"):
            training(cell, None, print, lambda *_: None)
        (tmp_path / "glue/RTE/train.tsv").unlink(missing_ok=True)
    assert given == []
