"""A result counts as long as what it was made from is what it was: data, task, model and precision, by their content.

What a fine-tuning does is replaced here; the files that it would read are real.
"""

import gc
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from glue_folder import write_glue_folder
from hub_stand_in import hub_stand_in
from tiny_masked_models import build, save, train_bpe

from common.config.yaml_config import ConfigurationError
from experiments import report as experiments_report
from experiments.cell_folder import MODEL, read_result
from experiments.scheduler import run_cells
from finetune_glue import report
from finetune_glue.configuration import GlueConfig
from finetune_glue.plan import GlueCell, plan
from finetune_glue.training import fine_tuning
from finetune_glue.training.fine_tuning import FineTuning


DESCRIPTION = """\
problem: classification
text: text
labels: [bad, good]
metrics: {metrics}
files: {{train: [train.jsonl, more.csv], validation: dev.parquet.csv, test: test.csv}}
"""
MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "modeling_own.py")


class Run:
    """A task, a model, and a run into a folder; its cells give the accuracies `scores` in turn."""

    def __init__(self, folder: Path):
        self.folder, self.model, self.data = folder, folder / "model", folder / "data"
        self.ran: list[str] = []
        self.accuracy = 0.5
        self.write("data/own.yaml", DESCRIPTION.format(metrics="accuracy"))
        self.write("data/train.jsonl", "".join(json.dumps({"text": "a", "label": "good"}) + "\n" for _ in range(4)))
        for name in ("more.csv", "dev.parquet.csv", "test.csv"):
            self.write(f"data/{name}", "text,label\na,good\nb,bad\n")
        for name in MODEL_FILES:
            self.write(f"model/{name}", f"content of {name}")

    def write(self, name: str, content: str):
        """Write a file, and give it back the time that it had."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        before = path.stat().st_mtime_ns if path.exists() else None
        path.write_text(content, encoding="utf-8")
        if before is not None:
            os.utime(path, ns=(before, before))

    def config(self, **changes) -> GlueConfig:
        values = {
            "output_dir": str(self.folder / "run"),
            "model": f"m={self.model}",
            "tasks": str(self.data / "own.yaml"),
            "seeds": 1,
        }
        return GlueConfig(**(values | changes))

    def cells(self, **changes) -> list[GlueCell]:
        return plan(self.config(**changes))

    def __call__(self, **changes) -> list[str]:
        """What a call has run."""
        self.ran.clear()
        cells = self.cells(**changes)
        run_cells(cells, FineTuning(self.config(**changes).data))
        report.write_report(self.config(**changes), cells)
        return list(self.ran)

    def cell(self, cell: GlueCell, *_, **__) -> dict:
        self.ran.append(f"{cell.task.name} {cell.seed}")
        (cell.folder / MODEL).mkdir(parents=True, exist_ok=True)
        values = {"accuracy": self.accuracy, "f1": self.accuracy, "loss": 1.0}
        result = {
            "score": self.accuracy,
            "seconds": 2.0,
            "metrics": dict.fromkeys(cell.task.validation_splits, values),
        }
        cell.finish(result)
        return result


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    run = Run(tmp_path)
    monkeypatch.setattr(fine_tuning, "run_cell", run.cell)
    monkeypatch.setattr(experiments_report, "draw_results", lambda results, output: None)
    monkeypatch.setattr(gc, "collect", lambda: None)  # takes a second where so much is imported
    return run


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        (
            "data/train.jsonl",
            json.dumps({"text": "b", "label": "good"}) + "\n",
            "made from other data: own train",
        ),
        ("data/more.csv", "text,label\na,bad\nb,bad\n", "made from other data: own train"),
        ("data/dev.parquet.csv", "text,label\na,bad\nb,good\n", "made from other data: own validation"),
        ("data/test.csv", "text,label\nc,bad\nd,good\n", "made from other data: own test"),
        (
            "data/own.yaml",
            DESCRIPTION.format(metrics="f1"),
            "made from another description of the task: metrics",
        ),
        (
            "data/own.yaml",
            DESCRIPTION.format(metrics="accuracy").replace("bad, good", "good, bad"),
            "made from another description of the task: labels, label_names",
        ),
        (
            "model/model.safetensors",
            "content of model.safetensorS",
            "made from another model: model.safetensors",
        ),
        ("model/tokenizer.json", "content of tokenizer.jsoN", "made from another model: tokenizer.json"),
        ("model/config.json", "content of config.jsoN", "made from another model: config.json"),
        ("model/vocab.txt", "new", "made from another model: vocab.txt"),
    ],
)
def test_a_cell_is_run_again_where_what_it_was_made_from_has_changed(
    run: Run, capsys: pytest.CaptureFixture, name: str, content: str, reason: str
):
    """Under the same path and time, and in part of the same size."""
    assert run() == ["own 1"]
    assert run() == []
    assert "1 of 1 cells are finished already" in capsys.readouterr().out
    run.accuracy = 0.25
    run.write(name, content)
    assert run() == ["own 1"]
    out = capsys.readouterr().out
    assert f"own · m · seed 1: run again, since it was {reason}\n" in out and "finished already" not in out
    assert "25.0 (1)" in (run.folder / "run/results.md").read_text(encoding="utf-8")
    assert run() == []


def test_mixed_precision(run: Run, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    assert run() == ["own 1"] and run(mixed_precision="no") == []
    assert run(mixed_precision="bf16") == ["own 1"]
    assert (
        "own · m · seed 1: run again, since it was made with mixed_precision no, not bf16\n" in capsys.readouterr().out
    )
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")  # as `accelerate launch` says it
    assert run() == [] and run(mixed_precision="no") == ["own 1"]


def test_the_same_content_counts_wherever_and_whenever_it_was_written(run: Run):
    assert run() == ["own 1"]
    for path in [*run.model.iterdir(), *run.data.iterdir()]:
        os.utime(path, ns=(0, 0))
    shutil.move(run.model, run.folder / "moved")
    shutil.move(run.data, run.folder / "moved_data")
    run.model, run.data = run.folder / "moved", run.folder / "moved_data"
    (run.model / "README.md").write_text("A card.", encoding="utf-8")
    assert run() == []


def test_another_model_under_the_same_name_is_an_error_as_before(run: Run):
    run()
    shutil.copytree(run.model, run.folder / "other")
    run.model = run.folder / "other"
    run.write("other/model.safetensors", "other weights")
    with pytest.raises(ConfigurationError, match="was made with model '.*/model', not '.*/other': name another outp"):
        run()


def test_code_counts_where_it_may_run(run: Run):
    assert run() == ["own 1"]
    run.write("model/modeling_own.py", "other code")
    assert run() == []
    trusted = {"trust_remote_code": True}
    assert run(**trusted) == ["own 1"] and run(**trusted) == []
    run.write("model/modeling_own.py", "once more other code")
    assert run(**trusted) == ["own 1"]


def test_weights_of_an_untrained_model_do_not_count(run: Run):
    untrained = {"model": f"m=untrained:{run.model}"}
    assert run(**untrained) == ["own 1"]
    run.write("model/model.safetensors", "other weights")
    assert run(**untrained) == []
    run.write("model/tokenizer.json", "another tokenizer")
    assert run(**untrained) == ["own 1"]


def test_finished_cells_count_where_data_and_model_are_gone(run: Run, capsys: pytest.CaptureFixture):
    assert run() == ["own 1"]
    (run.data / "train.jsonl").unlink()
    shutil.rmtree(run.model)
    capsys.readouterr()
    assert run() == []
    out = capsys.readouterr().out
    kept = "finished cells cannot be compared with it, and count as they are."
    assert f"Data of own: {kept} There is no file {run.data}" in out and f"Model {run.model}: {kept}" in out
    assert "1 of 1 cells are finished already" in out


def test_cells_of_other_tasks_and_seeds_are_left_out_where_their_model_has_changed(run: Run, capsys):
    shutil.copy(run.data / "own.yaml", run.data / "second.yaml")
    both = f"{run.data / 'own.yaml'},{run.data / 'second.yaml'}"
    assert run(tasks=both, seeds=2) == ["own 1", "second 1", "own 2", "second 2"]
    assert run(seeds=1) == [] and "left out" not in capsys.readouterr().out.replace("are left out", "")
    run.write("model/model.safetensors", "other weights")
    run.accuracy = 0.25
    assert run(seeds=1) == ["own 1"]
    out = capsys.readouterr().out
    assert "seed-2 left out: it was made from another model: model.safetensors" in out
    assert "25.0 (1)" in (run.folder / "run/results.md").read_text(encoding="utf-8")
    assert run(tasks=both, seeds=2) == ["second 1", "own 2", "second 2"]


def test_an_edited_or_old_result_is_run_again_and_kept_beside(run: Run, capsys: pytest.CaptureFixture):
    assert run() == ["own 1"]
    (path,) = (run.folder / "run").rglob("result.json")
    edited = path.read_text(encoding="utf-8").replace('"score": 0.5', '"score": 0.9')
    path.write_text(edited, encoding="utf-8")
    assert run() == ["own 1"]
    assert (
        f"own · m · seed 1: run again, since {path} has been changed since it was written" in capsys.readouterr().out
    )
    assert (path.parent / "result.old.json").read_text(encoding="utf-8") == edited
    assert read_result(path.parent)["score"] == 0.5
    old = {key: value for key, value in json.loads(edited).items() if key not in ("xxh3", "made_from")}
    path.write_text(json.dumps(old), encoding="utf-8")
    assert run() == ["own 1"]
    assert f"since {path} has no checksum: an earlier version has written it" in capsys.readouterr().out


def test_data_that_change_while_a_call_is_running_fail_its_cells(run: Run, capsys: pytest.CaptureFixture):
    cells = run.cells(seeds=2)
    run.write("data/train.jsonl", json.dumps({"text": "b", "label": "good"}) + "\n")
    run_cells(cells, FineTuning("hub"))
    assert run.ran == []
    assert "failed: the data of own have changed while this call was running" in capsys.readouterr().out
    assert run(seeds=2) == ["own 1", "own 2"]


def test_transfer_is_run_again_where_the_model_that_it_starts_from_is_another(run: Run, monkeypatch, capsys):
    glue = run.folder / "glue"
    scores = {"mnli 1": 0.5, "mnli 2": 0.7, "rte 1": 0.6, "rte 2": 0.6}
    monkeypatch.setattr(fine_tuning, "run_cell", lambda cell, *a, **k: _scored(run, cell, scores))
    write_glue_folder(glue, rows=8, validation_rows=4, test_rows=3, only=["MNLI", "RTE"])
    transfer = {"tasks": "mnli,rte", "transfer": True, "data": str(glue), "seeds": 2}
    assert run(**transfer) == ["mnli 1", "mnli 2", "rte 1", "rte 2"]
    assert run(**transfer) == []
    path = glue / "MNLI/train.tsv"
    path.write_bytes(path.read_bytes().replace(b"the cat", b"our cat"))
    assert run(**transfer) == ["mnli 1", "mnli 2", "rte 1", "rte 2"]
    # A third seed of MNLI is the best: what started from the second is another model than in a serial run.
    scores |= {"mnli 3": 0.9, "rte 3": 0.6}
    assert run(**transfer | {"seeds": 3}) == ["mnli 3", "rte 1", "rte 2", "rte 3"]
    # With a fourth that is not, only its own is run.
    scores |= {"mnli 4": 0.1, "rte 4": 0.6}
    assert run(**transfer | {"seeds": 4}) == ["mnli 4", "rte 4"]


def _scored(run: Run, cell: GlueCell, scores: dict[str, float]) -> dict:
    run.accuracy = scores[f"{cell.task.name} {cell.seed}"]
    return run.cell(cell)


CONTENTS = """
import json, sys
from finetune_glue.training.starting_model import load_starting_model, loaded_content, model_content
from finetune_glue.data.tasks import TASKS
contents = []
for name in sys.argv[1:]:
    contents.append(model_content(name, False))
    assert loaded_content(load_starting_model(name, TASKS["rte"], {}, 1), name, False) == contents[-1]
print(json.dumps(contents))
"""


@pytest.mark.slow
def test_a_model_of_the_hub_is_told_by_its_commit(tmp_path: Path):
    published = tmp_path / "hub/models/tester/luna"
    tokenizer = train_bpe(["the cat sees a dog"] * 20)
    save(published, build("luna", tokenizer), tokenizer)

    def contents(*names: str) -> list[dict]:
        environment = hub.environment(tmp_path / "home") | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-c", CONTENTS, *names]
        return json.loads(subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout)

    with hub_stand_in(tmp_path / "hub") as hub:
        first = hub.repository("tester/luna").head().id
        assert contents("tester/luna") == [{"commit": first}]
        (published / "README.md").write_text("A card.", encoding="utf-8")
        second = hub.repository("tester/luna").head().id
        assert contents("tester/luna", "untrained:tester/luna", f"tester/luna@{first}") == [
            {"commit": commit} for commit in (second, second, first)
        ]
