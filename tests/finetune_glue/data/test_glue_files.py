"""The published files of GLUE and their variants: every row survives, and what is wrong is named by file and line."""

from pathlib import Path

import pytest
from glue_folder import write_glue_folder

from common.errors import UserError
from finetune_glue.data.glue_files import find_files, read_glue_file
from finetune_glue.data.task_data import load_task
from finetune_glue.data.tasks import GLUE, TASKS


HEADERS = {
    "rte": "index\tsentence1\tsentence2\tlabel\n",
    "sst2": "sentence\tlabel\n",
    "qqp": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n",
}
FOLDERS = {"rte": "RTE", "sst2": "SST-2", "qqp": "QQP", "cola": "CoLA", "stsb": "STS-B", "mrpc": "MRPC", "ax": "AX"}


def write(folder: Path, task: str, name: str, content: str | bytes) -> Path:
    path = folder / FOLDERS[task] / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(path: Path, task: str, split: str = "train") -> dict[str, list]:
    rows = read_glue_file(TASKS[task], path, split)
    return {**rows.texts, "label": list(rows.labels or []), "index": rows.index}


def error_of(path: Path, task: str, split: str = "train") -> str:
    with pytest.raises(UserError) as error:
        read_glue_file(TASKS[task], path, split)
    return str(error.value)


@pytest.fixture(scope="module")
def glue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_glue_folder(tmp_path_factory.mktemp("glue"), rows=12, validation_rows=6, test_rows=5)


@pytest.mark.parametrize("name", [*GLUE, "ax"])
def test_every_task_is_read_from_the_published_layout(glue: Path, name: str) -> None:
    task = TASKS[name]
    data = load_task(task, str(glue))
    sizes = {"train": 12} | dict.fromkeys(task.validation_splits, 6) | dict.fromkeys(task.test_splits, 5)
    assert {split: len(rows) for split, rows in data.splits.items()} == {split: sizes[split] for split in task.splits}
    assert data.notes == ()
    assert data.source == str(glue)
    for split, rows in data.splits.items():
        labelled = split not in task.test_splits or name == "ax"
        assert rows.column_names == [*task.text_columns, "index", *["label"] * labelled]
        assert rows["index"][:] == list(range(len(rows)))
        if labelled and name != "stsb":
            # The rule of glue_folder, whose words are in the order 0, 1 and entailment, ...
            assert rows["label"][:] == [row % len(task.labels) for row in range(len(rows))]
    if name == "stsb":
        assert data.splits["train"]["label"][:7] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 0.0]


def test_text_is_that_of_the_file(glue: Path) -> None:
    for name, column in (("mrpc", 4), ("cola", 3), ("mnli", 9)):
        task = TASKS[name]
        path = find_files(task, glue)["train"]
        fields = [line.split("\t") for line in path.read_text(encoding="utf-8-sig").splitlines()]
        expected = [line[column] for line in fields[0 if name == "cola" else 1 :]]
        assert load_task(task, str(glue)).splits["train"][task.text_columns[-1]][:] == expected
    text = " ".join(read_glue_file(TASKS["mrpc"], glue / "MRPC" / "train.tsv", "train").texts["sentence1"])
    assert '"' in text and "é" in text and "\r" not in text


def test_quotes_byte_order_marks_carriage_returns_and_odd_characters_are_kept_or_ignored(tmp_path: Path) -> None:
    lines = [
        '"open',
        'closed"',
        'a "b" c',
        "'",
        '""',
        "line\u2028separator",
        "form\x0cfeed",
        "bare\rreturn",
        " spaces ",
    ]
    content = "\ufeffsentence\tlabel\r\n" + "".join(f"{line}\t1\r\n" for line in lines)
    path = write(tmp_path, "sst2", "train.tsv", content)
    assert read(path, "sst2")["sentence"] == lines


def test_a_last_line_without_end_counts_and_empty_ones_do_not(tmp_path: Path) -> None:
    path = write(tmp_path, "sst2", "train.tsv", HEADERS["sst2"] + "a\t1\nb\t0")
    assert read(path, "sst2")["label"] == ["1", "0"]
    path = write(tmp_path, "sst2", "train.tsv", HEADERS["sst2"] + "a\t1\nb\t0\n\n\n")
    assert read(path, "sst2")["label"] == ["1", "0"]


def test_an_empty_line_among_rows_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path, "sst2", "train.tsv", HEADERS["sst2"] + "a\t1\n\nb\t0\n")
    assert error_of(path, "sst2") == (
        f"{path}, line 3: 1 columns instead of 2 (sentence, label). Mend or remove the line."
    )


def test_copies_with_the_columns_and_ids_of_the_hub_are_read(tmp_path: Path) -> None:
    write(tmp_path, "rte", "train.tsv", "sentence1\tsentence2\tlabel\tidx\na\tb\t1\t0\nc\td\t0\t1\n")
    write(tmp_path, "rte", "dev.tsv", HEADERS["rte"] + "0\ta\tb\tnot_entailment\n")
    data = load_task(TASKS["rte"], str(tmp_path))
    assert data.splits["train"]["label"][:] == [1, 0]
    assert data.splits["validation"]["label"][:] == [1]


def test_the_files_of_the_sts_benchmark_have_seven_to_nine_columns(tmp_path: Path) -> None:
    lines = "g\tf\t2012\t1\t4.5\ta\tb\ng\tf\t2012\t2\t0.25\tc\td\tsource\tsource\n"
    path = write(tmp_path, "stsb", "sts-train.csv", lines)
    assert find_files(TASKS["stsb"], write_dev(tmp_path))["train"] == path
    assert read(path, "stsb") == {
        "sentence1": ["a", "c"],
        "sentence2": ["b", "d"],
        "label": ["4.5", "0.25"],
        "index": [0, 1],
    }
    path = write(tmp_path, "stsb", "sts-train.csv", lines + "g\tf\t2012\t2\t0.25\tc\n")
    assert error_of(path, "stsb").startswith(f"{path}, line 3: 6 columns instead of 7 (genre, filename, year,")


def write_dev(folder: Path) -> Path:
    write(folder, "stsb", "sts-dev.csv", "g\tf\t2012\t1\t4.5\ta\tb\n")
    return folder


def test_questions_without_header_are_read_and_few_broken_lines_left_out(tmp_path: Path) -> None:
    rows = "".join(f"{row}\t1\t2\tquestion {row}\tother\t{row % 2}\n" for row in range(1000))
    path = write(tmp_path, "qqp", "train.tsv", "5\t1\t2\tquestion\tother 0\n" + rows)
    read_rows = read_glue_file(TASKS["qqp"], path, "train")
    assert len(read_rows.index) == 1000
    assert read_rows.texts["question1"][0] == "question 0"
    assert read_rows.where(0) == f"{path}, line 2"
    assert read_rows.notes == [f"{path}: 1 lines without 6 columns are left out: 1"]
    path = write(tmp_path, "qqp", "train.tsv", HEADERS["qqp"] + "5\t1\t2\tquestion\tother 0\n" * 2 + rows)
    assert error_of(path, "qqp").startswith(f"{path}, line 2: 5 columns instead of 6 (id, qid1,")


def test_rows_of_test_files_have_the_index_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "rte", "test.tsv", "index\tsentence1\tsentence2\n7\ta\tb\n3\tc\td\n")
    assert read(path, "rte", "test")["index"] == [7, 3]
    path = write(tmp_path, "rte", "test.tsv", "index\tsentence1\tsentence2\nx7\ta\tb\n")
    assert error_of(path, "rte", "test") == f"{path}, line 2: the index is 'x7', but must be a whole number."


def test_diagnostics_are_taken_with_labels_where_they_have_them(tmp_path: Path) -> None:
    write(tmp_path, "ax", "AX.tsv", "index\tsentence1\tsentence2\n0\ta\tb\n1\tc\td\n")
    assert load_task(TASKS["ax"], str(tmp_path)).splits["test"].column_names == ["premise", "hypothesis", "index"]
    write(
        tmp_path,
        "ax",
        "diagnostic-full.tsv",
        "Logic\tPremise\tHypothesis\tLabel\n\ta\tb\tneutral\n\tc\td\tentailment\n",
    )
    rows = load_task(TASKS["ax"], str(tmp_path)).splits["test"]
    assert rows[1] == {"premise": "c", "hypothesis": "d", "index": 1, "label": 0}


def test_what_is_no_file_is_said(tmp_path: Path) -> None:
    write(tmp_path, "sst2", "train.tsv", HEADERS["sst2"])
    path = tmp_path / "SST-2/dev.tsv"
    path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="SST-2/dev.tsv is a link to what is not there: put the file in its place."):
        load_task(TASKS["sst2"], str(tmp_path))
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match="SST-2/dev.tsv is a folder: put the file in its place."):
        load_task(TASKS["sst2"], str(tmp_path))


def test_what_is_missing_is_named_with_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no folder .*nowhere: --data must be `hub` or the folder"):
        load_task(TASKS["rte"], str(tmp_path / "nowhere"))
    write(tmp_path, "sst2", "train.tsv", HEADERS["sst2"])
    with pytest.raises(UserError, match="has no folder RTE with the files of rte. It holds: SST-2."):
        load_task(TASKS["rte"], str(tmp_path))
    with pytest.raises(UserError, match=r"There is no file .*SST-2/dev.tsv; .*SST-2 holds: train.tsv."):
        load_task(TASKS["sst2"], str(tmp_path))
    (tmp_path / "AX").mkdir()
    with pytest.raises(UserError, match="AX has no file diagnostic-full.tsv or AX.tsv or diagnostic.tsv"):
        load_task(TASKS["ax"], str(tmp_path))


@pytest.mark.parametrize(
    ("task", "content", "message"),
    [
        (
            "sst2",
            b"label\tsentence\tlabel\n1\ta\t0\n",
            "PATH, line 1: the column 'label' stands twice. Rename the one",
        ),
        ("sst2", b"", "PATH is empty: the split train of sst2 has no rows."),
        ("sst2", b"text\tlabel\na\t1\n", "PATH, line 1 has no column 'sentence'. Its columns are: text, label."),
        ("cola", b"gj04\t1\ta\n", "PATH, line 1: 3 columns instead of 4 (source, label, mark, sentence)."),
        ("cola", b"a\t1\t\tb\na\t1\tb\n", "PATH, line 2: 3 columns instead of 4 (source, label, mark, sentence)."),
        ("sst2", b"sentence\tlabel\na\tb\t1\n", "PATH, line 2: 3 columns instead of 2 (sentence, label)."),
        ("sst2", b"sentence\tlabel\na\t1\ncaf\xe9\t1\n", "PATH, line 3: byte 4 (0xe9) is not UTF-8. Convert the file"),
    ],
)
def test_what_can_be_wrong_with_a_file(tmp_path: Path, task: str, content: bytes, message: str) -> None:
    path = write(tmp_path, task, "train.tsv", content)
    assert error_of(path, task).startswith(message.replace("PATH", str(path)))


@pytest.mark.parametrize(
    ("task", "name", "content", "message"),
    [
        ("sst2", "train.tsv", "sentence\tlabel\n", "PATH has no rows: the split train of sst2 is empty."),
        ("sst2", "train.tsv", "sentence\na\n", "PATH has no labels, which the split train of sst2 needs."),
        (
            "sst2",
            "train.tsv",
            "sentence\tlabel\na\t1\nb\t2\n",
            "PATH, line 3: the label is '2', but sst2 has: 0, 1. Mend the line, or check that file and task belong",
        ),
        ("cola", "dev.tsv", "x\t1\t\ta\nx\t\t\tb\n", "PATH, line 2: the label is '', but cola has: 0, 1."),
        (
            "stsb",
            "dev.tsv",
            "sentence1\tsentence2\tscore\na\tb\t5.5\n",
            "PATH, line 2: the label is '5.5', but stsb has numbers from 0 to 5.",
        ),
        (
            "stsb",
            "train.tsv",
            "sentence1\tsentence2\tscore\na\tb\tnan\n",
            "PATH, line 2: the label is 'nan', but stsb has numbers from 0 to 5.",
        ),
        (
            "rte",
            "test.tsv",
            "index\tsentence1\tsentence2\n0\ta\tb\n1\ta\tb\n0\tc\td\n",
            "PATH, line 4: the index 0 stands in line 2 already. Predictions are told apart by it",
        ),
        ("rte", "test.tsv", "index\tsentence1\tsentence2\n", "PATH has no rows: the split test of rte is empty."),
    ],
)
def test_what_can_be_wrong_with_rows(tmp_path: Path, task: str, name: str, content: str, message: str) -> None:
    write_glue_folder(tmp_path, rows=4, validation_rows=4, test_rows=4, only=[FOLDERS[task]])
    path = write(tmp_path, task, name, content)
    with pytest.raises(UserError) as error:
        load_task(TASKS[task], str(tmp_path))
    assert str(error.value).startswith(message.replace("PATH", str(path)))


def test_rows_without_an_agreed_label_are_left_out_and_counted(tmp_path: Path) -> None:
    write_glue_folder(tmp_path, rows=6, validation_rows=6, test_rows=4, only=["MNLI"])
    path = tmp_path / "MNLI" / "dev_matched.tsv"
    lines = path.read_text().splitlines()
    lines[2] = lines[2].rpartition("\t")[0] + "\t-"
    path.write_text("\n".join(lines) + "\n")
    data = load_task(TASKS["mnli"], str(tmp_path))
    assert data.splits["validation_matched"]["index"][:] == [0, 2, 3, 4, 5]
    assert data.splits["validation_matched"]["label"][:] == [0, 2, 0, 1, 2]
    assert data.notes == (f"{path}: 1 rows without an agreed label are left out",)


def test_test_files_may_be_missing(tmp_path: Path) -> None:
    write_glue_folder(tmp_path, only=["RTE"])
    (tmp_path / "RTE" / "test.tsv").unlink()
    data = load_task(TASKS["rte"], str(tmp_path))
    assert list(data.splits) == ["train", "validation"]
    assert data.notes == ("rte: there is no test split",)
