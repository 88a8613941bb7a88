"""The zip for the server of GLUE: the files that it wants, from the best seeds, whole or not at all."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from cell_folders import NUMBERS, TEST_ROWS, edit_result, own_task, write_cell, write_predictions

from common.contents import digest_of_files
from common.errors import UserError
from experiments.cell_folder import read_result
from experiments.results import read_results
from finetune_glue.data.tasks import GLUE, SUITE, TASKS
from finetune_glue.submission import (
    FILES,
    SubmissionError,
    check_submission,
    main,
    write_submission,
    write_submissions,
)


ROOT = Path(__file__).parents[2]


def write_run(folder: Path, tasks: tuple[str, ...] = GLUE, test_rows: dict[str, int] | None = None, **options) -> Path:
    """A run with one cell of each task."""
    for task in tasks:
        metrics = {split: dict.fromkeys(TASKS[task].metrics, 0.5) for split in TASKS[task].validation_splits}
        write_cell(folder, task, 1, metrics, **options)
    return folder


def files_of(path: Path) -> dict[str, str]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name).decode() for name in archive.namelist()}


def test_zip_holds_what_the_server_wants(tmp_path: Path):
    write_run(tmp_path)
    (message, note) = write_submissions(read_results(tmp_path, SUITE), tmp_path)
    assert message == f"{tmp_path / 'submission.zip'}: 11 files of predictions of luna"
    assert "not a valid submission" in note and "CoLA.tsv" in note
    files = files_of(tmp_path / "submission.zip")
    assert list(files) == [
        *("CoLA.tsv", "SST-2.tsv", "MRPC.tsv", "STS-B.tsv", "QQP.tsv", "MNLI-m.tsv", "MNLI-mm.tsv", "QNLI.tsv"),
        *("RTE.tsv", "WNLI.tsv", "AX.tsv"),
    ]
    assert files["RTE.tsv"] == "index\tprediction\n" + "".join(
        f"{index}\t{('entailment', 'not_entailment')[index % 2]}\n" for index in range(TEST_ROWS)
    )
    assert files["CoLA.tsv"].splitlines()[:3] == ["index\tprediction", "0\t0", "1\t1"]
    for name in ("MNLI-m.tsv", "MNLI-mm.tsv", "AX.tsv"):
        assert files[name].splitlines()[1:4] == ["0\tentailment", "1\tneutral", "2\tcontradiction"]
    assert files["STS-B.tsv"].splitlines()[1:] == [f"{index}\t{value:.3f}" for index, value in enumerate(NUMBERS)]


def test_official_numbers_of_rows_make_a_valid_submission(tmp_path: Path):
    write_run(tmp_path)
    for file in FILES.values():
        folder = tmp_path / "cells/luna" / file.run_on / "default/seed-1"
        write_predictions(folder / "predictions" / f"{file.split}.tsv", TASKS[file.task], file.rows)
        edit_result(folder, rows=read_result(folder)["rows"] | {file.split: file.rows})
    assert len(write_submissions(read_results(tmp_path, SUITE), tmp_path)) == 1
    assert check_submission(tmp_path / "submission.zip") == []
    rows = {name: len(text.splitlines()) - 1 for name, text in files_of(tmp_path / "submission.zip").items()}
    assert rows == {
        **{"CoLA.tsv": 1063, "SST-2.tsv": 1821, "MRPC.tsv": 1725, "STS-B.tsv": 1379, "QQP.tsv": 390965},
        **{
            "MNLI-m.tsv": 9796,
            "MNLI-mm.tsv": 9847,
            "QNLI.tsv": 5463,
            "RTE.tsv": 3000,
            "WNLI.tsv": 146,
            "AX.tsv": 1104,
        },
    }


def test_best_seed_of_the_best_setting_is_taken(tmp_path: Path):
    write_run(tmp_path, tuple(task for task in GLUE if task != "rte"))
    for setting, scores in {"lucky": (0.5, 0.5, 0.9), "good": (0.6, 0.7, 0.65)}.items():
        for seed, score in enumerate(scores, start=1):
            folder = write_cell(tmp_path, "rte", seed, {"accuracy": score}, setting=setting)
            label = "entailment" if (setting, seed) == ("good", 2) else "not_entailment"
            lines = "".join(f"{index}\t{label}\n" for index in range(TEST_ROWS))
            (folder / "predictions/test.tsv").write_text("index\tprediction\n" + lines)
    write_submissions(read_results(tmp_path, SUITE), tmp_path)
    assert "not_entailment" not in files_of(tmp_path / "submission.zip")["RTE.tsv"]


def test_numbers_are_clipped_and_rounded(tmp_path: Path):
    write_run(tmp_path)
    path = tmp_path / "cells/luna/stsb/default/seed-1/predictions/test.tsv"
    path.write_text("index\tprediction\n0\t-0.2\n1\t5.3125\n2\t2.71828\n3\t1e-07\n4\t3\n5\t4.9996\n")
    write_submissions(read_results(tmp_path, SUITE), tmp_path)
    numbers = [line.split("\t")[1] for line in files_of(tmp_path / "submission.zip")["STS-B.tsv"].splitlines()[1:]]
    assert numbers == ["0.000", "5.000", "2.718", "0.000", "3.000", "5.000"]


def test_task_without_predictions_is_named_and_no_zip_is_written(tmp_path: Path):
    write_run(tmp_path, tuple(task for task in GLUE if task not in ("wnli", "mnli")))
    shutil.rmtree(tmp_path / "cells/luna/sst2/default/seed-1/predictions")
    (line,) = write_submissions(read_results(tmp_path, SUITE), tmp_path)
    assert line == (
        "no submission.zip: the server wants 11 files, and there are no predictions for some: "
        f"`python finetune_glue/submission.py {tmp_path} --model luna` says what to do."
    )
    with pytest.raises(SubmissionError) as raised:
        write_submission(read_results(tmp_path, SUITE), "luna", tmp_path / "submission.zip")
    message = str(raised.value)
    assert "SST-2.tsv: there is no " in message and "put the test file of SST-2 with the data" in message
    assert "MNLI-m.tsv, MNLI-mm.tsv, AX.tsv, WNLI.tsv: run --tasks mnli,wnli" in message
    assert list(tmp_path.glob("submission*")) == []


def test_missing_tasks_can_be_filled_in(tmp_path: Path):
    write_run(tmp_path, tuple(task for task in GLUE if task not in ("wnli", "stsb", "mnli")))
    messages = write_submission(read_results(tmp_path, SUITE), "luna", tmp_path / "submission.zip", fill_missing=True)
    assert messages[0].endswith(": 6 files of predictions of luna")
    assert messages[1].endswith(": STS-B.tsv, MNLI-m.tsv, MNLI-mm.tsv, WNLI.tsv, AX.tsv")
    files = files_of(tmp_path / "submission.zip")
    assert files["WNLI.tsv"] == "index\tprediction\n" + "".join(f"{index}\t0\n" for index in range(146))
    assert files["STS-B.tsv"].splitlines()[1:4] == ["0\t0.000", "1\t5.000", "2\t0.000"]
    assert len(files["AX.tsv"].splitlines()) == 1105


@pytest.mark.parametrize(
    ("task", "content", "message"),
    [
        ("rte", "index\tlabel\n0\tentailment\n", "line 1: the header is 'index\\tlabel', not 'index\\tprediction'"),
        ("rte", "index\tprediction\n0\tentailment\n2\tentailment\n", "line 3: '2\\tentailment': it must be index 1"),
        ("rte", "index\tprediction\n0\t1\n", "line 2: the prediction is '1', not entailment, not_entailment"),
        ("cola", "index\tprediction\n0\t0\n\n", "line 3: ''"),
        ("cola", "index\tprediction\n0\t0\n1\t1\n", "has 2 rows, but 6 were predicted: it was cut short"),
        ("stsb", "index\tprediction\n0\tnan\n", "line 2: the prediction is 'nan', not a number"),
    ],
)
def test_wrong_predictions_leave_the_old_zip(tmp_path: Path, task: str, content: str, message: str):
    write_run(tmp_path)
    write_submissions(read_results(tmp_path, SUITE), tmp_path)
    before = (tmp_path / "submission.zip").read_bytes()
    path = tmp_path / "cells/luna" / task / "default/seed-1/predictions/test.tsv"
    path.write_text(content)
    (said,) = write_submissions(read_results(tmp_path, SUITE), tmp_path)
    assert f"{path}" in said and message in said
    assert (tmp_path / "submission.zip").read_bytes() == before
    assert [found.name for found in tmp_path.glob("*submission*")] == ["submission.zip"]


def test_predictions_that_were_changed_by_hand(tmp_path: Path):
    write_run(tmp_path)
    folder = tmp_path / "cells/luna/rte/default/seed-1"
    path = folder / "predictions/test.tsv"
    edit_result(folder, predictions={"test": digest_of_files([path])})
    assert len(write_submissions(read_results(tmp_path, SUITE), tmp_path)) == 2
    path.write_text(path.read_text().replace("0\tentailment", "0\tnot_entailment"))
    assert write_submissions(read_results(tmp_path, SUITE), tmp_path) == [
        f"no submission.zip: {path} has been changed since it was written: delete {folder} to run it again."
    ]


def test_predictions_that_cannot_be_read(tmp_path: Path):
    write_run(tmp_path)
    path = tmp_path / "cells/luna/rte/default/seed-1/predictions/test.tsv"
    path.unlink()
    path.mkdir()
    assert write_submissions(read_results(tmp_path, SUITE), tmp_path) == [
        f"no submission.zip: {path} cannot be read: Is a directory."
    ]


def test_a_zip_that_cannot_be_written(tmp_path: Path):
    write_run(tmp_path)
    (tmp_path / "submission.zip").mkdir()
    (line,) = write_submissions(read_results(tmp_path, SUITE), tmp_path)
    assert line == f"no submission.zip: {tmp_path / 'submission.zip'} cannot be written: Is a directory."


def test_an_encrypted_zip(tmp_path: Path):
    write_run(tmp_path)
    write_submissions(read_results(tmp_path, SUITE), tmp_path)
    path = tmp_path / "submission.zip"
    content = bytearray(path.read_bytes())
    content[6] |= 1  # the flag, in the file's header and in the directory
    content[content.find(b"PK\1\2") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(SubmissionError, match="cannot be read as a zip: File 'CoLA.tsv' is encrypted"):
        check_submission(path)


def test_check_finds_what_the_server_would_refuse(tmp_path: Path):
    write_run(tmp_path)
    write_submissions(read_results(tmp_path, SUITE), tmp_path)
    contents = files_of(tmp_path / "submission.zip")
    del contents["QQP.tsv"]
    contents |= {
        "STS-B.tsv": "index\tprediction\n0\t5.100\n",
        "glue/RTE.tsv": "",
        "QNLI.tsv": "index\tprediction\n0\tyes\n",
    }
    with zipfile.ZipFile(tmp_path / "mine.zip", "w") as archive:
        for name, text in contents.items():
            archive.writestr(name, text)
    problems = check_submission(tmp_path / "mine.zip")
    assert problems[:2] == ["QQP.tsv is missing", "glue/RTE.tsv is none of the server's files"]
    assert "STS-B.tsv has 1 rows, not 1,379" in problems
    assert "STS-B.tsv has predictions that are not between 0 and 5" in problems
    assert "QNLI.tsv, line 2: the prediction is 'yes', not entailment, not_entailment." in problems
    (tmp_path / "broken.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match="broken.zip cannot be read as a zip"):
        check_submission(tmp_path / "broken.zip")


def test_program_makes_a_zip_for_each_model_and_checks_one(tmp_path: Path, capsys: pytest.CaptureFixture):
    for model in ("luna", "roberta"):
        write_run(tmp_path, model=model)
    assert main([str(tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.glob("*.zip")) == ["submission-luna.zip", "submission-roberta.zip"]
    (tmp_path / "submission-roberta.zip").unlink()
    assert main([str(tmp_path), "--model", "luna"]) == 0
    assert not (tmp_path / "submission-roberta.zip").exists()
    capsys.readouterr()
    assert main([str(tmp_path / "submission-luna.zip")]) == 1
    assert "RTE.tsv has 6 rows, not 3,000" in capsys.readouterr().out
    with pytest.raises(UserError, match="--model bert: the run has luna, roberta"):
        main([str(tmp_path), "--model", "bert"])


def test_wrong_folder_ends_in_a_message(tmp_path: Path):
    ended = subprocess.run(
        [sys.executable, ROOT / "finetune_glue/submission.py", tmp_path],
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2
    assert ended.stderr.strip() == f"error: {tmp_path} holds no cells of a run: name the output_dir of run_glue.py."


def test_tasks_of_ones_own_have_no_server(tmp_path: Path):
    task = own_task()
    write_cell(tmp_path, task, 1, {"accuracy": 0.5})
    assert write_submissions(read_results(tmp_path, SUITE, [task]), tmp_path) == []
    assert not list(tmp_path.glob("*.zip"))
