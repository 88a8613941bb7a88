"""The report on data: what it counts is what the files hold."""

import os
from pathlib import Path
from threading import Event

import pytest
from glue_folder import write_glue_folder

from common import signs_of_life
from common.errors import UserError
from finetune_glue import data_report
from finetune_glue.data_report import main


# Rows and labels of published files: in the order of the task's labels, or the mean of STS-B.
PUBLISHED = {
    "CoLA/train.tsv": (8551, [2528, 6023]),
    "CoLA/dev.tsv": (1043, [324, 719]),
    "SST-2/train.tsv": (67349, [29780, 37569]),
    "SST-2/dev.tsv": (872, [428, 444]),
    "MRPC/train.tsv": (3668, [1194, 2474]),
    "MRPC/dev.tsv": (408, [129, 279]),
    "STS-B/sts-train.csv": (5749, 2.701),
    "STS-B/sts-dev.csv": (1500, 2.364),
    "QNLI/dev.tsv": (5463, [2702, 2761]),
    "QNLI/test.tsv": (5463, []),
    "RTE/train.tsv": (2490, [1249, 1241]),
    "RTE/dev.tsv": (277, [146, 131]),
    "WNLI/train.tsv": (635, [323, 312]),
    "WNLI/dev.tsv": (71, [40, 31]),
}


def report(capsys: pytest.CaptureFixture, *arguments: str) -> tuple[dict[tuple[str, str], list[str]], list[str]]:
    """The cells of each line by file and task, and the notes below the table."""
    main(list(arguments))
    header, *lines = capsys.readouterr().out.splitlines()
    names = ["file or split", "task", "rows", "labels", "words: mean", "longest"]
    starts = [header.index(name) for name in names] + [None]
    cells = [[line[start:end].strip() for start, end in zip(starts, starts[1:], strict=False)] for line in lines]
    table = {(line[0], line[1]): line[2:] for line in cells if line[2].replace(",", "").isdigit()}
    return table, lines[len(table) :]


def test_files_of_a_folder_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_glue_folder(tmp_path, rows=9, validation_rows=6, test_rows=4)
    (tmp_path / "RTE" / "dev.tsv").write_text(
        "index\tsentence1\tsentence2\tlabel\n"
        "0\tone two\tthree\tentailment\n"
        "1\tone\t\tnot_entailment\n"
        "2\ta b c d\te f g\tentailment\n"
    )
    (tmp_path / "SNLI.train.jsonl").write_text(
        '{"sentence1": "a", "sentence2": "b", "gold_label": "-"}\n'
        '{"sentence1": "a", "sentence2": "b", "gold_label": "contradiction"}\n'
    )
    (tmp_path / "readme.txt").write_text("Not a table.\n")
    table, notes = report(capsys, str(tmp_path))
    assert len(table) == 32
    assert table["RTE/dev.tsv", "rte"] == ["3", "entailment 2 (66.7 %), not_entailment 1 (33.3 %)", "3.7", "7"]
    assert table["STS-B/train.tsv", "stsb"][:2] == ["9", "0.00 to 5.00, mean 2.000"]
    assert table["CoLA/train.tsv", "cola"][:2] == ["9", "unacceptable 5 (55.6 %), acceptable 4 (44.4 %)"]
    assert table["QQP/test.tsv", "qqp"][:2] == ["4", "none"]
    assert table["SNLI.train.jsonl", "snli"] == [
        "1",
        "entailment 0 (0.0 %), neutral 0 (0.0 %), contradiction 1 (100.0 %)",
        "2.0",
        "2",
    ]
    assert notes == [f"{tmp_path / 'SNLI.train.jsonl'}: 1 rows without an agreed label are left out"]


def test_tasks_are_reported_by_split(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_glue_folder(tmp_path, rows=9, validation_rows=6, test_rows=4, only=["MNLI", "MRPC"])
    (tmp_path / "MRPC" / "test.tsv").unlink()
    table, notes = report(capsys, str(tmp_path), "--tasks", "mrpc,mnli")
    assert {key: cells[0] for key, cells in table.items()} == {
        ("train", "mrpc"): "9",
        ("validation", "mrpc"): "6",
        ("train", "mnli"): "9",
        ("validation_matched", "mnli"): "6",
        ("validation_mismatched", "mnli"): "6",
        ("test_matched", "mnli"): "4",
        ("test_mismatched", "mnli"): "4",
    }
    assert notes == ["mrpc: there is no test split"]


def test_one_file_can_be_reported(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_glue_folder(tmp_path, only=["RTE"], rows=5)
    path = str(tmp_path / "RTE" / "train.tsv")
    assert report(capsys, path)[0][path, "rte"][0] == "5"


def test_what_cannot_be_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no folder or file .*nowhere"):
        main([str(tmp_path / "nowhere")])
    with pytest.raises(UserError, match="holds no file of a task that is known"):
        main([str(tmp_path)])
    with pytest.raises(UserError, match="'mrcp' is no task. Did you mean 'mrpc'?"):
        main([str(tmp_path), "--tasks", "mrcp"])


@pytest.mark.skipif("LUNA_GLUE_DATA" not in os.environ, reason="LUNA_GLUE_DATA names no folder of GLUE's files")
def test_published_files_have_the_published_counts(capsys: pytest.CaptureFixture) -> None:
    folder = Path(os.environ["LUNA_GLUE_DATA"])
    table, _ = report(capsys, str(folder))
    found = {name: cells for (name, _), cells in table.items() if name in PUBLISHED}
    assert found
    for name, (rows, labels, *_) in found.items():
        count, expected = PUBLISHED[name]
        assert rows == f"{count:,}", name
        if isinstance(expected, float):
            assert labels.endswith(f"mean {expected}"), name
        else:
            counts = [int(label.split()[1].replace(",", "")) for label in labels.split(", ") if label != "none"]
            assert counts == expected, name


def test_a_report_that_takes_long_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "CoLA").mkdir()
    (tmp_path / "CoLA/dev.tsv").write_text("gj04\t1\t\tA sentence.\n", encoding="utf-8")
    monkeypatch.setattr(signs_of_life, "SECONDS_BETWEEN_LINES", 0.001)
    said, read = Event(), data_report.read_glue_file

    def slow(*arguments):
        assert said.wait(30)
        return read(*arguments)

    def listen(line: str):
        if f"reading {tmp_path}/CoLA/dev.tsv (" in line:
            said.set()

    monkeypatch.setattr(data_report, "to_stderr", listen)
    monkeypatch.setattr(data_report, "read_glue_file", slow)
    main([str(tmp_path)])
