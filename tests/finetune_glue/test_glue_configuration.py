"""The configuration of fine-tuning: files, the command line, tasks and models, and every mistake in them."""

import dataclasses
import re
import runpy
import sys
from pathlib import Path

import pytest

from common.config.keys import keys_of
from common.config.yaml_config import ConfigurationError
from finetune_glue.configuration import GlueConfig, load_config
from finetune_glue.data.tasks import GLUE
from finetune_glue.training.settings import Hyperparameters


CONFIGS = sorted((Path(__file__).parents[2] / "configs/glue").glob("*.yaml"))
OWN_TASK = """
problem: classification
text: sentence
labels: [a, b]
files: {train: train.csv, validation: validation.csv}
"""


@pytest.fixture
def load(tmp_path: Path):
    """Load a configuration with these lines and arguments."""

    def load(lines: str = "", *arguments: str) -> GlueConfig:
        file = tmp_path / "glue.yaml"
        file.write_text(f"output_dir: runs/x\nmodel: m\n{lines}", encoding="utf-8")
        return load_config([str(file), *arguments])

    return load


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_each_file_is_loaded(path: Path, tmp_path: Path):
    (tmp_path / "libraries.yaml").write_text(OWN_TASK, encoding="utf-8")
    own = ["--tasks", str(tmp_path / "libraries.yaml")] if path.stem == "demo" else []
    config = load_config([str(path), "--model", "runs/demo/model", *own])
    assert config.task_list()


def test_settings_of_the_authors():
    config = load_config(["configs/glue/luna-base.yaml", "--model", "m"])
    assert config.hyperparameters["lr_scheduler_type"] == "polynomial"
    expected = {"qnli": (65520, 2000, 0.1), "qqp": (228000, 6850, 0.1), "sst2": (21050, 1263, None)}
    for task, (steps, warmup, dropout) in expected.items():
        own = config.per_task[task]
        assert (own["max_steps"], own["warmup_steps"], own["batch_size"]) == (steps, warmup, 32)
        assert own.get("model", {}).get("activation_dropout") == dropout


def test_tasks_are_in_the_order_of_the_table_and_own_ones_after_them(load, tmp_path: Path):
    (tmp_path / "mine.yaml").write_text(OWN_TASK, encoding="utf-8")
    assert [task.name for task in load().task_list()] == list(GLUE)
    config = load("", "--tasks", f"{tmp_path}/mine.yaml,rte,cola")
    assert [task.name for task in config.task_list()] == ["cola", "rte", "mine"]
    assert [task.name for task in load("", "--tasks", "rte", "cola").task_list()] == ["cola", "rte"]


def test_names_of_models(load):
    config = load(
        "", "--model", "runs/demo/model", "big=runs/large", "FacebookAI/roberta-base@abc", "untrained:runs/x/model/"
    )
    assert config.models() == {
        "demo": "runs/demo/model",
        "big": "runs/large",
        "roberta-base@abc": "FacebookAI/roberta-base@abc",
        "untrained-x": "untrained:runs/x/model/",
    }


def test_command_line_reaches_into_mappings(load):
    lines = "hyperparameters: {batch_size: 4, model: {a: 1}}\ngrid: {learning_rate: [1]}"
    config = load(lines, "--hyperparameters.learning_rate", "1e-4", "--grid.batch_size", "8", "16", "--seeds", "2")
    assert config.hyperparameters == {"batch_size": 4, "model": {"a": 1}, "learning_rate": 1e-4}
    assert config.grid == {"learning_rate": [1], "batch_size": [8, 16]}
    assert config.seeds == 2


@pytest.mark.parametrize(
    ("lines", "arguments", "message"),
    [
        ("taks: rte", [], "taks is not a key of the configuration. Did you mean 'tasks'?"),
        ("tasks: cole", [], "'cole' is no task. Did you mean 'cola'?"),
        ("tasks: ax", [], "tasks: ax has no training data: every model of mnli is judged on it; name that task."),
        ("tasks: none.yaml", [], "none.yaml cannot be read: No such file or directory."),
        ("seeds: 0", [], "seeds is 0: it must be at least 1."),
        ("seeds: 1000000000000", [], "seeds is 1000000000000: it must be at most 1,000."),
        ("side_by_side: 1000000000000", [], "side_by_side is 1000000000000: it must be at most 1,000."),
        ("per_device_train_batch_size: 0", [], "per_device_train_batch_size is 0: it must be at least 1, or null."),
        ("", ["--model", "a/model", "b=c", "x/a"], "model: a/model and x/a would both be called a: name them with"),
        ("", ["--model", "[]"], "model: name one, a folder or an id of the Hub"),
        ("", ["--model", "..=a"], "model: .. cannot be the name of a folder: name it with NAME=MODEL."),
        ("", ["--model", "a" * 201], "cannot be the name of a folder: name it with NAME=MODEL."),
        ("per_task: {rt: {}}", [], "per_task: 'rt' is no task. Did you mean 'rte'?"),
        ("per_task: {rte: 3}", [], "per_task.rte is 3: it must be a mapping of hyper-parameters."),
        ("grid: {learning_rate: 1}", [], "grid.learning_rate is 1: it must be a list of values to try."),
        ("grid: {learning_rate: [1, 1]}", [], "grid.learning_rate lists a value twice."),
        ("grid: {learning_rate: [1, 1.0]}", [], "grid: two of its points would both be called learning_rate=1."),
        (f"grid: {{model.{'a' * 200}: [1]}}", [], "=1 is too long for the name of a folder: try fewer keys."),
        ("hyperparameters: {batch_size: 0}", [], "hyper-parameters of cola: batch_size is 0: it must be at least 1."),
        ("save_models: some", [], "save_models is 'some': it must be one of 'best', 'all', 'none'."),
        ("transfer: true\ntasks: rte", [], "transfer is True: it needs mnli among the tasks, and one of rte, mrpc"),
        ("transfer: true\nsave_models: none", [], "save_models is 'none': it must be best or all where transfer"),
        ("mixed_precision: fp16", [], "mixed_precision is 'fp16': it must be one of 'no', 'bf16', null."),
    ],
)  # fmt: skip
def test_what_cannot_be(load, lines: str, arguments: list[str], message: str):
    with pytest.raises(Exception, match=re.escape(message)):
        load(lines, *arguments)


def test_usage_and_output_dir(tmp_path: Path):
    with pytest.raises(ConfigurationError, match="^Name a configuration file first: .* --help lists the keys"):
        load_config(["--tasks", "rte"])
    (tmp_path / "x.yaml").write_text("model: m\n", encoding="utf-8")
    with pytest.raises(ConfigurationError, match="x.yaml names no output_dir"):
        load_config([str(tmp_path / "x.yaml")])


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["configs/glue/sane.yaml", "--seeds", "3", "--help"]])
def test_help(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr(sys, "argv", ["finetune_glue/run_glue.py", *arguments])
    with pytest.raises(SystemExit) as end:
        runpy.run_path("finetune_glue/run_glue.py", run_name="__main__")
    output = " ".join(capsys.readouterr().out.split())
    assert not end.value.code and "python finetune_glue/run_glue.py configs/glue/NAME.yaml --model" in output
    for key in (
        "--output_dir (needed) The run's folder",
        "--seeds 5 Each combination is run",
        "--mixed_precision null bf16 or no",
        "--hyperparameters.learning_rate 2e-05 Learning rate at",
        "--hyperparameters.early_stopping_patience null Evaluations without",
    ):
        assert key in output


@pytest.mark.parametrize("keys", [GlueConfig, Hyperparameters])
def test_every_key_has_a_line(keys: type):
    assert [key.name for key in keys_of(keys) if key.doc] == [field.name for field in dataclasses.fields(keys)]


def test_a_key_unlike_any_other(load):
    with pytest.raises(ConfigurationError) as error:
        load("", "--xyzzy", "1")
    assert len(str(error.value)) < 400
