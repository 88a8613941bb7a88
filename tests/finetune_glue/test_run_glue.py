"""The whole runner on tiny files of GLUE: from the files to the zip, again, with failures, by several processes."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from glue_folder import write_glue_folder
from processes import processes_of, wait_until
from safetensors.torch import load_file, save_file
from tiny_masked_models import build, save, train_bpe
from transformers import AutoModelForSequenceClassification, pipeline

from common.errors import UserError
from finetune_glue import run_glue
from finetune_glue.configuration import load_config
from finetune_glue.data.tasks import GLUE
from finetune_glue.submission import check_submission


ROOT = Path(__file__).parents[2]
LAUNCHER = (
    "-m",
    "accelerate.commands.launch",
    "--config_file",
    "configs/accelerate/ddp.yaml",
    "--main_process_port",
    "0",
)
OPTIONS = ["--hyperparameters.num_train_epochs", "2", "--hyperparameters.learning_rate", "0.003"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GLUE's files in `glue`, and tiny models in `luna` and `roberta`."""
    folder = tmp_path_factory.mktemp("runner")
    write_glue_folder(folder / "glue", rows=48)
    tokenizer = train_bpe([path.read_text(encoding="utf-8") for path in sorted((folder / "glue").rglob("*.tsv"))])
    for architecture in ("luna", "roberta"):
        save(folder / architecture, build(architecture, tokenizer), tokenizer)
    return folder


@pytest.fixture
def arguments(folder: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """The command line of a run into `tmp_path / "run"`."""

    def arguments(*others: object) -> list[str]:
        given = ["--output_dir", tmp_path / "run", "--model", folder / "luna", "--data", folder / "glue", "--seeds", 1]
        return ["configs/glue/sane.yaml", *map(str, [*given, *OPTIONS, *others])]

    return arguments


@pytest.fixture
def start(arguments: Callable) -> Callable[..., subprocess.Popen]:
    """Starts the script in a process of its own, or under a launcher."""

    def start(*others: object, launcher: tuple[str, ...] = ()) -> subprocess.Popen:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, *launcher, "finetune_glue/run_glue.py", *arguments(*others)]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)

    return start


@pytest.fixture
def launch(start: Callable) -> Callable[..., subprocess.CompletedProcess]:
    """The same, to its end."""

    def launch(*others: object, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
        with start(*others, launcher=launcher) as process:
            output, errors = process.communicate(timeout=400)
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    return launch


def results(run: Path) -> dict[str, dict]:
    """The result of each cell by its folder."""
    paths = sorted((run / "cells").rglob("result.json"))
    return {str(p.parent.relative_to(run / "cells")): json.loads(p.read_text(encoding="utf-8")) for p in paths}


@pytest.mark.slow
def test_from_files_to_the_zip(arguments: Callable, tmp_path: Path, capsys: pytest.CaptureFixture):
    run = tmp_path / "run"
    assert run_glue.main(load_config(arguments())) == 0
    out = capsys.readouterr().out
    assert "cell 9 of 9: WNLI · luna · seed 1" in out
    assert f"{run}/submission.zip: 11 files" in out and "GLUE without WNLI" in out
    found = results(run)
    assert {name.split("/")[1] for name in found} == set(GLUE)
    for name, result in found.items():
        assert name == f"luna/{result['task']}/default/seed-1"
        assert (run / "cells" / name / "predictions").is_dir()
    assert set(found["luna/mnli/default/seed-1"]["metrics"]) >= {"validation_matched", "validation_mismatched"}

    with zipfile.ZipFile(run / "submission.zip") as archive:
        assert len(archive.namelist()) == 11
        lines = archive.read("AX.tsv").decode().splitlines()
    assert lines[0] == "index\tprediction" and len(lines) == 13
    assert {line.split("\t")[1] for line in lines[1:]} <= {"entailment", "neutral", "contradiction"}
    assert check_submission(run / "submission.zip")  # the official test sets have more rows

    with open(run / "results.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert [row[0] for row in rows] == ["model", "luna"]
    assert json.loads((run / "results.json").read_text(encoding="utf-8"))["cells"]["finished"] == 9
    assert (run / "results.png").stat().st_size > 10_000
    model = run / "cells/luna/mnli/default/seed-1/model"
    assert "model-index" in (model / "README.md").read_text(encoding="utf-8")
    predict = pipeline("text-classification", model=str(model))
    assert predict({"text": "the cat", "text_pair": "never"})["label"] in ("entailment", "neutral", "contradiction")

    before = {path: path.stat().st_mtime_ns for path in (run / "cells").rglob("*.json")}
    gone = arguments("--tasks", "cola,rte", "--data", tmp_path / "gone")  # nothing is left to read
    assert run_glue.main(load_config(deduplicated(gone))) == 0
    assert "2 of 2 cells are finished already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (run / "cells").rglob("*.json")} == before


def test_a_dry_run_shows_the_plan_and_leaves_no_trace(
    arguments: Callable, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    command = arguments("--tasks", "cola,rte", "--hyperparameters.max_steps", "1")
    assert run_glue.main(load_config(command), dry_run=True) == 0
    assert "2 of 2 cells would be run" in capsys.readouterr().out and not (tmp_path / "run").exists()
    assert run_glue.main(load_config(deduplicated([*command, "--tasks", "cola"]))) == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    capsys.readouterr()
    assert run_glue.main(load_config(command), dry_run=True) == 0
    assert capsys.readouterr().out.splitlines()[:4] == [
        "| task | model | setting | finished | seeds to run |",
        "|------|------:|--------:|---------:|-------------:|",
        "| CoLA |  luna | default |        1 |            - |",
        "| RTE  |  luna | default |        0 |            1 |",
    ]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before
    missing = deduplicated([*command, "--data", str(tmp_path / "none")])
    with pytest.raises(UserError, match=f"^There is no folder {tmp_path}/none"):
        run_glue.main(load_config(missing), dry_run=True)


@pytest.mark.slow
def test_other_weights_in_the_same_folder_are_fine_tuned_anew(
    arguments: Callable, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    model, others = tmp_path / "luna", ("--tasks", "cola,rte", "--transfer", "false")
    shutil.copytree(folder / "luna", model)

    def run(*more: str) -> str:
        command = arguments(*others, "--model", model, *more)
        assert run_glue.main(load_config(deduplicated(command))) == 0
        return capsys.readouterr().out

    assert "cell 2 of 2" in run() and "2 of 2 cells are finished already" in run()
    weights = load_file(model / "model.safetensors")
    save_file({name: 2 * values for name, values in weights.items()}, model / "model.safetensors", {"format": "pt"})
    out = run()
    assert "CoLA · luna · seed 1 and 1 more: run again, since it was made from another model: model.safetensors" in out
    assert "cell 2 of 2" in out and "2 of 2 cells are finished already" in run()
    out = run("--mixed_precision", "bf16")
    assert "run again, since it was made with mixed_precision no, not bf16" in out
    assert "2 of 2 cells are finished already" in run("--mixed_precision", "bf16")


@pytest.mark.slow
def test_one_bad_task_shows_in_table_and_exit_code(
    arguments: Callable, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    data = tmp_path / "glue"
    shutil.copytree(folder / "glue", data)
    (data / "RTE/dev.tsv").write_text("index\tsentence1\tsentence2\tlabel\n0\ta\tb\tmaybe\n", encoding="utf-8")
    command = arguments("--tasks", "rte,cola", "--data", data)
    assert run_glue.main(load_config(deduplicated(command))) == 1
    out = capsys.readouterr().out
    assert "RTE/dev.tsv, line 2" in out and "maybe" in out
    assert "1 failed" in out or "failed" in out.split("CoLA Mcc")[1]
    shutil.copy(folder / "glue/RTE/dev.tsv", data / "RTE/dev.tsv")
    assert run_glue.main(load_config(deduplicated(command))) == 0
    assert "1 of 2 cells are finished already" in capsys.readouterr().out


def deduplicated(command: list[str]) -> list[str]:
    """Of options that are given twice the last one."""
    options: dict[str, list[str]] = {}
    for argument in command[1:]:
        if argument.startswith("--"):
            key = argument
            options[key] = []
        else:
            options[key].append(argument)
    return [command[0], *(text for key, values in options.items() for text in (key, *values))]


@pytest.mark.parametrize(
    ("others", "message"),
    [
        (["--tasks", "cola,rtee"], "error: 'rtee' is no task. Did you mean 'rte'?"),
        (["--seed", "3"], "error: --seed is not a key of the configuration. Did you mean 'seeds'?"),
        (["--per_task", "{cola: {model: {classifier_pooling: middle}}}"], "classifier_pooling"),
    ],
)
@pytest.mark.slow
def test_wrong_configurations_end_with_2_before_anything(launch: Callable, tmp_path: Path, others: list, message: str):
    finished = launch(*others)
    assert finished.returncode == 2
    assert message in finished.stderr and "Traceback" not in finished.stderr
    assert not (tmp_path / "run").exists()


def test_a_metric_that_is_none_ends_a_run_before_it_begins(arguments: Callable, tmp_path: Path):
    task = "problem: classification\ntext: a\nlabels: [0, 1]\nfiles: {train: a.csv}\nmetrics: acuracy\n"
    (tmp_path / "own.yaml").write_text(task, encoding="utf-8")
    with pytest.raises(UserError, match="own: 'acuracy' is no metric. Did you mean 'accuracy'"):
        run_glue.main(load_config(arguments("--tasks", tmp_path / "own.yaml")))
    assert not (tmp_path / "run").exists()


def test_missing_files_and_damaged_weights_end_a_run_before_it_begins(
    arguments: Callable, folder: Path, tmp_path: Path
):
    data, model = tmp_path / "glue", tmp_path / "model"
    shutil.copytree(folder / "glue", data)
    (data / "RTE/dev.tsv").unlink()
    with pytest.raises(UserError, match=f"^There is no file {data}/RTE/dev.tsv; .* holds: test.tsv, train.tsv"):
        run_glue.main(load_config(deduplicated(arguments("--tasks", "cola,rte", "--data", data))))
    shutil.copytree(folder / "luna", model)
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(UserError, match=f"^The model {model} cannot be fine-tuned: .*not fully covered"):
        run_glue.main(load_config(deduplicated(arguments("--tasks", "cola", "--model", folder / "roberta", model))))
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_made(arguments: Callable, tmp_path: Path):
    (tmp_path / "run").write_text("a file", encoding="utf-8")
    with pytest.raises(UserError, match="^output_dir: the folder .*run cannot be made"):
        run_glue.main(load_config(arguments()))


@pytest.mark.slow
def test_two_processes_give_the_results_of_one(launch: Callable, tmp_path: Path):
    still = ["--hyperparameters.model", "{hidden_dropout_prob: 0.0, attention_probs_dropout_prob: 0.0}"]
    options = ["--tasks", "mrpc,stsb", *still]
    assert launch(*options).returncode == 0
    one = results(tmp_path / "run")
    shutil.move(tmp_path / "run", tmp_path / "one")
    finished = launch(*options, launcher=LAUNCHER)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("cell 1 of 2") == 1
    two = results(tmp_path / "run")
    assert two.keys() == one.keys()
    for name in one:
        for split, metrics in one[name]["metrics"].items():
            assert two[name]["metrics"][split] == pytest.approx(metrics, rel=1e-3, abs=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")
def test_killed_launcher_leaves_no_process(start: Callable, tmp_path: Path):
    run = str(tmp_path / "run")
    launcher = start("--tasks", "mrpc", "--hyperparameters.max_steps", "100000", launcher=LAUNCHER)
    try:
        wait_until(lambda: (tmp_path / "run/cells").exists() or launcher.poll() is not None, 200)
        assert len(processes_of(run)) == 3
        launcher.kill()
        launcher.communicate(timeout=60)  # until the last one has closed its output
        wait_until(lambda: not processes_of(run), 20)
    finally:
        for pid in processes_of(run):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
def test_one_of_two_calls_is_killed_and_the_other_does_the_rest(start: Callable, tmp_path: Path):
    options = ["--tasks", "mnli,rte,mrpc,cola", "--transfer", "true"]
    calls = [start(*options) for _ in range(2)]
    try:
        begun = tmp_path / "run/cells/luna/mnli/default/seed-1/begun.json"
        wait_until(begun.exists, 200)
        killed = json.loads(begun.read_text(encoding="utf-8"))["process"]
        os.kill(killed, signal.SIGKILL)
        (left,) = [call for call in calls if call.pid != killed]
        output, errors = left.communicate(timeout=400)
    finally:
        for call in calls:
            call.kill()
            call.communicate()
    assert left.returncode == 0, errors
    assert f"MNLI · luna · seed 1 was lost: process {killed} on" in output and "failed" not in output
    assert {name.split("/")[1] for name in results(tmp_path / "run")} == {"mnli", "rte", "mrpc", "cola"}
    assert results(tmp_path / "run")["luna/rte/default/seed-1"]["init_from_task"] == "mnli"


@pytest.mark.slow
def test_cells_side_by_side_and_transfer(launch: Callable, tmp_path: Path):
    finished = launch("--tasks", "mnli,rte", "--transfer", "true", "--side_by_side", "2", "--save_models", "all")
    assert finished.returncode == 0, finished.stderr
    found = results(tmp_path / "run")
    assert found["luna/rte/default/seed-1"]["init_from_task"] == "mnli"
    shared = [
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "run/cells" / name / "model").config.num_labels
        for name in found
    ]
    assert sorted(shared) == [2, 3]
