"""Data of one's own files and of the Hub: the same rows and ids wherever they come from."""

import bz2
import gzip
import json
import lzma
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
import yaml
from glue_folder import write_glue_folder
from hub_stand_in import HubStandIn, hub_stand_in
from pyarrow import parquet

from common.errors import UserError
from finetune_glue.data import lines
from finetune_glue.data.description import read_task
from finetune_glue.data.task_data import TaskData, load_task
from finetune_glue.data.tasks import GLUE, TASKS, Task


CONFIGS = Path(__file__).resolve().parents[3] / "configs" / "tasks"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def describe(folder: Path, **values: Any) -> Task:
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump({"problem": "classification", **values}))
    return read_task(path)


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def write_json_lines(path: Path, rows: list[dict]) -> Path:
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


def error_of(task: Task, source: str = "hub") -> str:
    with pytest.raises(UserError) as error:
        load_task(task, source)
    return str(error.value)


def rows_of(data: TaskData, split: str) -> list[dict]:
    return list(data.splits[split])


RATINGS = [
    {"review": 'fine, really "fine"', "stars": 5},
    {"review": "two\nlines", "stars": 1},
    {"review": "NA", "stars": 5},
    {"review": "12", "stars": 1},
]


def write_ratings(folder: Path, name: str) -> Path:
    path = folder / name
    if name.endswith(".csv"):
        quoted = [f'"{row["review"].replace(chr(34), chr(34) * 2)}",{row["stars"]}' for row in RATINGS]
        return write(path, "\ufeffreview,stars\n" + "\n".join(quoted) + "\n")
    if name.endswith(".parquet"):
        datasets.Dataset.from_list(RATINGS).to_parquet(path)
        return path
    write_json_lines(path, RATINGS)
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(path.read_bytes()))
    return path


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_own_rows_are_the_same_in_every_format(tmp_path: Path, name: str) -> None:
    write_ratings(tmp_path, name)
    task = describe(tmp_path, text="review", label="stars", labels=[1, 5], files={"train": name, "validation": name})
    data = load_task(task, "hub")
    expected = [
        {"review": row["review"], "index": index, "label": int(row["stars"] == 5)} for index, row in enumerate(RATINGS)
    ]
    assert rows_of(data, "train") == rows_of(data, "validation") == expected
    assert data.source == str(tmp_path)


def test_tsv_has_no_quoting_and_may_have_no_header(tmp_path: Path) -> None:
    write(tmp_path / "train.tsv", 'one "quote\tx\t0.5\nother\ty\t-2\n')
    write(tmp_path / "more.tsv.gz", gzip.compress(b"third\tz\t1e1\n"))
    task = describe(
        tmp_path,
        problem="regression",
        text=["first", "second"],
        label="score",
        header=["first", "second", "score"],
        files={"train": ["train.tsv", "more.tsv.gz"], "validation": "more.tsv.gz"},
    )
    assert rows_of(load_task(task, "hub"), "train") == [
        {"first": 'one "quote', "second": "x", "index": 0, "label": 0.5},
        {"first": "other", "second": "y", "index": 1, "label": -2.0},
        {"first": "third", "second": "z", "index": 2, "label": 10.0},
    ]


def test_columns_that_are_not_read_may_have_one_name(tmp_path: Path) -> None:
    write(tmp_path / "a.tsv", "text\tx\tx\tlabel\na\t\t\t1\n")
    task = describe(tmp_path, text="text", labels=[0, 1], files={"train": "a.tsv", "validation": "a.tsv"})
    assert rows_of(load_task(task, "hub"), "train") == [{"text": "a", "index": 0, "label": 1}]
    task = describe(tmp_path, text="text", labels=[0, 1], header=["x", "text", "text"], files={"train": "a.tsv"})
    assert error_of(task) == "The header of own: the column 'text' stands twice. Rename the one that is not meant."


def test_an_error_in_one_of_several_files_names_it(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "text,label\na,0\nb,1\n")
    path = write(tmp_path / "b.csv", "text,label\nc,0\n\nd,3\n")
    task = describe(tmp_path, text="text", labels=[0, 1], files={"train": ["a.csv", "b.csv"]})
    assert error_of(task).startswith(f"{path}, line 4: the label is '3', but own has: 0, 1.")


def test_a_share_of_the_training_rows_is_held_out_where_there_is_no_validation_split(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "text,label\n" + "".join(f"row {row},{row % 2}\n" for row in range(50)))
    task = describe(tmp_path, text="text", labels=[0, 1], files={"train": "a.csv"}, validation_share=0.2)
    first, second = load_task(task, "hub"), load_task(task, "hub")
    assert {split: len(rows) for split, rows in first.splits.items()} == {"train": 40, "validation": 10}
    assert sorted(first.splits["train"]["index"][:] + first.splits["validation"]["index"][:]) == list(range(50))
    assert rows_of(first, "validation") == rows_of(second, "validation")
    assert rows_of(first, "validation")[0]["text"] == f"row {first.splits['validation']['index'][0]}"
    assert first.notes == ("own: 10 of the training rows are held out as the validation split",)


def test_labels_may_be_written_by_name_or_as_ids_but_numbers_are_themselves(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "text,label\na,bad\nb,1\nc,good\nd,-\n")
    task = describe(tmp_path, text="text", labels=["bad", "good"], files={"train": "a.csv", "validation": "a.csv"})
    data = load_task(task, "hub")
    assert data.splits["train"]["label"][:] == [0, 1, 1]
    assert f"{tmp_path / 'a.csv'}: 1 rows without an agreed label are left out" in data.notes
    task = describe(tmp_path, text="text", labels={1: "bad", 2: "good"}, files={"train": "b.csv"})
    write(tmp_path / "b.csv", "text,label\na,bad\nb,2\nc,0\n")
    assert error_of(task).startswith(f"{tmp_path / 'b.csv'}, line 4: the label is '0', but own has: 1, 2.")


@pytest.mark.parametrize(("problem", "labels"), [("regression", []), ("classification", [0, 1])])
def test_a_label_of_minus_100_is_none(tmp_path: Path, problem: str, labels: list[int]) -> None:
    """As for every head of Transformers, and for the loss of a cell."""
    write(tmp_path / "a.csv", "text,label\na,1\nb,-100\nc,0\nd,-100.0\n".replace(".0" if labels else "?", ""))
    write(tmp_path / "b.csv", "text,label\nb,-100\nd,-100\n")
    files = {"train": "a.csv", "validation": "a.csv", "test": "b.csv"}
    data = load_task(describe(tmp_path, problem=problem, text="text", labels=labels, files=files), "hub")
    assert rows_of(data, "train") == [{"text": "a", "index": 0, "label": 1}, {"text": "c", "index": 2, "label": 0}]
    assert data.notes[0] == f"{tmp_path}/a.csv: 2 rows without an agreed label are left out"
    assert rows_of(data, "test") == [{"text": "b", "index": 0}, {"text": "d", "index": 1}]
    files = {"train": "a.csv", "validation": "b.csv"}
    message = f"{tmp_path}/b.csv: no row has a label, so that the split validation of own is empty."
    assert error_of(describe(tmp_path, problem=problem, text="text", labels=labels, files=files)) == message


def test_choices_are_columns_or_a_list(tmp_path: Path) -> None:
    rows = [{"q": {"stem": "why"}, "options": [{"text": "so"}, {"text": "no"}], "right": "B", "x": "so", "y": "no"}]
    write_json_lines(tmp_path / "a.jsonl", rows)
    for choices in ("options.text", ["x", "y"]):
        task = describe(
            tmp_path,
            problem="multiple_choice",
            text="question",
            choices=choices,
            label="right",
            labels=["A", "B"],
            files={"train": "a.jsonl", "validation": "a.jsonl"},
            file_columns={"question": "q.stem"},
        )
        row = rows_of(load_task(task, "hub"), "train")[0]
        assert [row[column] for column in task.choice_columns] == ["so", "no"]
        assert (row["question"], row["label"]) == ("why", 1)


def test_test_files_of_a_description_may_have_no_labels_or_be_missing(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "text,label\na,0\nb,1\n")
    write(tmp_path / "b.csv", "text\nc\nd\n")
    files = {"train": "a.csv", "validation": "a.csv", "test": "b.csv", "test_new": "c.csv"}
    data = load_task(describe(tmp_path, text="text", labels=[0, 1], files=files), "hub")
    assert data.splits["test"].column_names == ["text", "index"]
    assert data.notes == ("own: there is no test_new split",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "review,stars\na,1\nb\n", "PATH, line 3: 1 columns instead of 2 (review, stars)."),
        ("a.csv", 'review,stars\n"a,1\n', "PATH, line 2: not CSV: unexpected end of data. Check the quotes."),
        ("a.csv", "text,stars\na,1\n", "PATH has no column 'review'. Its columns are: text, stars."),
        ("a.csv", "review,stars,x,x,review\na,1,,,b\n", "PATH, line 1: the column 'review' stands twice. Rename the"),
        ("a.csv", "\nreview,stars,stars\na,1,5\n", "PATH, line 2: the column 'stars' stands twice."),
        ("a.csv", "", "PATH has no column 'review'. Its columns are: none."),
        ("a.csv", "review,stars\n", "PATH has no rows: the split train of own is empty."),
        ("a.csv", "review\na\n", "PATH has no labels, which the split train of own needs."),
        ("a.csv", b"review,stars\ncaf\xe9,1\n", "PATH, line 2: byte 4 (0xe9) is not UTF-8."),
        (
            "a.csv",
            "review,stars\na,1\n".encode("utf-16"),
            "PATH: the text is UTF-16LE, not UTF-8. Convert it: < PATH iconv -f UTF-16LE -t UTF-8 > NEW_FILE",
        ),
        ("a.csv", "review,stars\na,1\n".encode("utf-16-be"), "PATH: the text is UTF-16BE, not UTF-8. Convert it: <"),
        ("a.csv", "review,stars\na,1\n".encode("utf-32"), "PATH: the text is UTF-32LE, not UTF-8. Convert it: <"),
        (
            "a.csv.gz",
            gzip.compress("review,stars\na,1\n".encode("utf-16-le"), mtime=0),
            "PATH: the text is UTF-16LE, not UTF-8. Convert it: gzip -dc PATH | iconv -f UTF-16LE",
        ),
        ("a.tsv", b"\xfe\xff\0r\0\n", "PATH: the text is UTF-16BE, not UTF-8."),
        ("a.jsonl", '{"review": "a", "stars": 1}\n'.encode("utf-16"), "PATH: the text is UTF-16LE, not UTF-8."),
        ("a.csv.gz", b"review", "PATH cannot be read: Not a gzipped file"),
        (
            "a.csv.gz",
            gzip.compress(b"review,stars\na,1\n" * 99, mtime=0)[:-20],
            "PATH cannot be read: Compressed file ended",
        ),
        ("a.xls", "", "PATH: the name must end in one of .tsv, .txt, .csv,"),
        (
            "a.jsonl",
            '{"review": "a", "stars": 1}\n{"review": "b"\n',
            "PATH, line 2: not JSON: Expecting ',' delimiter",
        ),
        ("a.jsonl", b'{"review": "caf\xe9", "stars": 1}\n', "PATH, line 1: byte 16 (0xe9) is not UTF-8."),
        ("a.jsonl", "", "PATH cannot be read as json: it holds no rows."),
        ("a.jsonl", '{"review": "a", "stars": 1}\n{"review": 3, "stars": 1}\n', "PATH, row 2: review is 3, but"),
        ("a.jsonl", '{"review": 3, "stars": 1}\n', "PATH, row 1: review is 3, but must be text."),
        ("a.jsonl", '{"review": "a", "stars": 1}\n{"review": "b"}\n', "PATH, row 2: the label is '', but own has: 1"),
        ("a.jsonl", "\n\n[1]\n", "PATH, row 1: it must be a JSON object with the names and values of the columns."),
        (
            "a.jsonl",
            '{"review": "a", "stars": 1, "review": "b"}',
            "PATH, line 1: its JSON cannot be read: the key 'review' st",
        ),
        ("a.jsonl", "[" * 10**5, "PATH, line 1: its JSON cannot be read: maximum recursion depth"),
        ("a.jsonl", f'{{"review": {"1" * 5000}}}', "PATH, line 1: its JSON cannot be read: Exceeds the limit"),
        ("a.jsonl", '{"text": "a", "stars": 1}\n', "PATH has no column 'review'. Its columns are: text, stars."),
        ("a.parquet", "not parquet", "PATH cannot be read as parquet: "),
    ],
)
def test_what_can_be_wrong_with_own_files(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    path = write(tmp_path / name, content)
    task = describe(tmp_path, text="review", label="stars", labels=[1, 5], files={"train": name})
    assert error_of(task).startswith(message.replace("PATH", str(path)))


def test_half_surrogate_pairs_are_replaced(tmp_path: Path) -> None:
    """As in pretraining; no encoding, and so no tokenizer, can write them."""
    write(tmp_path / "a.jsonl", '{"text": "x\\ud800", "label": "a"}\n{"text": "\\ud83d\\ude00", "label": "a"}\n')
    task = describe(tmp_path, text="text", labels=["a", "b"], files={"train": "a.jsonl"})
    assert sorted(row["text"] for split in load_task(task, "hub").splits.values() for row in split) == [
        "x\ufffd",
        "\U0001f600",
    ]


DATES = ["2024-05-01", "2024-05-02 10:00:00", "2024-05-03T10:00:00Z"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv", "a.parquet"])
def test_texts_and_labels_that_look_like_dates_are_texts(tmp_path: Path, name: str) -> None:
    rows = [{"text": text, "label": f"202{row % 2}-01-01"} for row, text in enumerate(DATES)]
    if name == "a.jsonl":
        write_json_lines(tmp_path / name, rows)
    elif name == "a.parquet":
        datasets.Dataset.from_list(rows).to_parquet(tmp_path / name)
    else:
        tab = "\t" if name == "a.tsv" else ","
        write(tmp_path / name, "".join(f"{tab.join(row)}\n" for row in [rows[0], *(row.values() for row in rows)]))
    task = describe(tmp_path, text="text", labels=["2020-01-01", "2021-01-01"], files={"train": name})
    rows = load_task(task, "hub").splits
    found = sorted((row["text"], row["label"]) for split in rows.values() for row in split)
    assert found == list(zip(DATES, (0, 1, 0), strict=True))


def test_one_array_of_objects_is_read_like_lines(tmp_path: Path) -> None:
    write(tmp_path / "a.json", "\ufeff" + json.dumps(RATINGS, indent=1))
    write_json_lines(tmp_path / "a.jsonl", RATINGS)
    values = {"text": "review", "label": "stars", "labels": [1, 5]}
    array, lines = (
        load_task(describe(tmp_path, **values, files={"train": name, "validation": name}), "hub")
        for name in ("a.json", "a.jsonl")
    )
    assert rows_of(array, "train") == rows_of(lines, "train")
    write(tmp_path / "a.json", json.dumps(RATINGS, indent=1)[:-9])
    task = describe(tmp_path, **values, files={"train": "a.json"})
    assert error_of(task).startswith(f"{tmp_path}/a.json, line 16: not JSON: ")


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_what_is_read_is_what_a_file_holds_now(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not what it held under the same path, time and perhaps size."""
    path = write_ratings(tmp_path, name)
    moment = path.stat().st_mtime_ns
    task = describe(tmp_path, text="review", label="stars", labels=[1, 5], files={"train": name, "validation": name})
    before = rows_of(load_task(task, "hub"), "train")
    monkeypatch.setitem(RATINGS[3], "review", "99")
    write_ratings(tmp_path, name)
    os.utime(path, ns=(moment, moment))
    assert rows_of(load_task(task, "hub"), "train") == [*before[:3], before[3] | {"review": "99"}]


def compressed_many_times(name: str, head: bytes, piece: bytes, times: int) -> bytes:
    """A compressed file of a head and many copies of a piece, compressed once."""
    compress = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}[Path(name).suffix]
    return compress(head) + compress(piece) * times


@pytest.mark.parametrize(
    ("name", "head", "piece"),
    [
        ("a.csv.gz", b"text,label\n", b"\0" * 2**20),
        ("a.csv.gz", b"text,label\n", b"a nice sentence,1\n" * 2**16),
        ("a.csv.gz", b'text,label\n"', b"a nice sentence\n" * 2**16),
        ("a.tsv.xz", b"text\tlabel\n", b"a nice sentence\t1\n" * 2**16),
        ("a.tsv.bz2", b"text\tlabel\n", b" " * 2**20),
        ("a.jsonl.gz", b"", b'{"text": "a nice sentence", "label": 1}\n' * 2**15),
        ("a.json.gz", b"[", b'{"text": "a nice sentence", "label": 1},' * 2**15),
        ("a.jsonl.gz", b'{"text": "', b"a" * 2**20),
    ],
)
def test_a_compressed_file_that_would_fill_the_memory_is_refused(
    tmp_path: Path, name: str, head: bytes, piece: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "UNCHECKED", 2**21)
    write(tmp_path / name, compressed_many_times(name, head, piece, 2**14))  # 16 GiB
    task = describe(tmp_path, text="text", labels=[0, 1], files={"train": name})
    assert error_of(task).startswith(f"{tmp_path}/{name} grows to more than 50 times its size when it is decompressed")


def test_a_parquet_file_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    column = pyarrow.array(["a nice sentence " * 64]).take(pyarrow.array([0] * 2**17))
    table = pyarrow.table({"text": column, "label": [1] * 2**17})
    parquet.write_table(table, tmp_path / "a.parquet")
    task = describe(tmp_path, text="text", labels=[0, 1], files={"train": "a.parquet"})
    assert error_of(task).startswith(f"{tmp_path}/a.parquet grows to more than 50 times its size when it is decompr")


def test_a_parquet_file_with_two_columns_of_one_name(tmp_path: Path) -> None:
    table = pyarrow.Table.from_arrays(
        [pyarrow.array(["a"]), pyarrow.array(["b"]), pyarrow.array([1])], ["x", "x", "y"]
    )
    parquet.write_table(table, tmp_path / "a.parquet")
    task = describe(tmp_path, text="x", label="y", labels=[0, 1], files={"train": "a.parquet"})
    assert error_of(task) == f"{tmp_path}/a.parquet: the column 'x' stands twice. Rename the one that is not meant."


def test_a_line_longer_than_any_row_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines.lines_of, "__defaults__", (1000,))
    write(tmp_path / "a.tsv", f"text\tlabel\na\t1\n{'a' * 1001}\t1\n")
    task = describe(tmp_path, text="text", labels=[0, 1], files={"train": "a.tsv"})
    assert error_of(task) == f"{tmp_path}/a.tsv, line 3 has more than 1,000 bytes: it is no table of texts."


def test_a_missing_file_is_named_with_those_beside_it(tmp_path: Path) -> None:
    write(tmp_path / "data" / "train.csv", "a,b\n")
    task = describe(tmp_path, text="review", labels=[1, 5], files={"train": "data/trian.csv"})
    assert error_of(task) == f"There is no file {tmp_path}/data/trian.csv; {tmp_path}/data holds: train.csv."


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"options": ["a", "b", "c"]}, "row 1: options is ['a', 'b', 'c'], but must list 2 choices, one for each of"),
        ({"options": "a"}, "row 1: options is 'a', but must list 2 choices"),
        ({"choices": ["a", "b"]}, " has no column 'options'. Its columns are: choices, question, label."),
    ],
)
def test_what_can_be_wrong_with_choices(tmp_path: Path, row: dict, message: str) -> None:
    write_json_lines(tmp_path / "a.jsonl", [{**row, "question": "why", "label": "A"}])
    values = {"text": "question", "choices": "options", "labels": ["A", "B"], "files": {"train": "a.jsonl"}}
    assert message in error_of(describe(tmp_path, problem="multiple_choice", **values))
    write(tmp_path / "a.csv", "question,options,label\n")
    task = describe(tmp_path, problem="multiple_choice", **values | {"files": {"train": "a.csv"}})
    assert error_of(task) == "own: a list of choices needs JSON lines or Parquet; CSV has one column for each."


def test_published_files_of_other_tasks_are_read_from_the_folder_of_data(tmp_path: Path) -> None:
    snli = [
        {"sentence1": "a", "sentence2": "b", "gold_label": "neutral", "annotator_labels": ["neutral"]},
        {"sentence1": "c", "sentence2": "d", "gold_label": "-", "annotator_labels": ["neutral", "entailment"]},
    ]
    for split in ("train", "dev", "test"):
        write_json_lines(tmp_path / "snli_1.0" / f"snli_1.0_{split}.jsonl", snli)
    data = load_task(read_task(CONFIGS / "snli.yaml"), str(tmp_path))
    for split in ("train", "validation", "test"):
        assert rows_of(data, split) == [{"premise": "a", "hypothesis": "b", "index": 0, "label": 1}]
    assert len(data.notes) == 3

    question = {"stem": "where", "choices": [{"label": letter, "text": f"in {letter}"} for letter in "ABCDE"]}
    for name in ("train_rand_split", "dev_rand_split", "test_rand_split_no_answers"):
        answer = {} if "test" in name else {"answerKey": "C"}
        write_json_lines(tmp_path / "commonsenseqa" / f"{name}.jsonl", [{"question": question, **answer}])
    data = load_task(read_task(CONFIGS / "commonsenseqa.yaml"), str(tmp_path))
    choices = {f"choice{place}": f"in {letter}" for place, letter in enumerate("ABCDE")}
    assert rows_of(data, "validation") == [{"question": "where", **choices, "index": 0, "label": 2}]
    assert rows_of(data, "test") == [{"question": "where", **choices, "index": 0}]


def test_imdb_is_read_as_published(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name, text in {
            "neg/0_1": "a bore",
            "neg/10_2": "caf\u00e9\nclosed",
            "pos/1_9": "fun",
            "unsup/0_0": "?",
        }.items():
            write(tmp_path / "aclImdb" / split / f"{name}.txt", f"{text} in {split}")
    data = load_task(read_task(CONFIGS / "imdb.yaml"), str(tmp_path))
    assert rows_of(data, "test") == [
        {"text": "a bore in test", "index": 0, "label": 0},
        {"text": "caf\u00e9\nclosed in test", "index": 1, "label": 0},
        {"text": "fun in test", "index": 2, "label": 1},
    ]
    assert len(data.splits["train"]) == 2 and len(data.splits["validation"]) == 1
    write(tmp_path / "aclImdb/train/pos/2_7.txt", b"line\ncaf\xe9")
    assert error_of(data.task, str(tmp_path)).startswith(
        f"{tmp_path}/aclImdb/train/pos/2_7.txt, line 2: byte 4 (0xe9)"
    )
    for path in (tmp_path / "aclImdb/train/pos").iterdir():
        path.unlink()
    assert error_of(data.task, str(tmp_path)) == f"{tmp_path}/aclImdb/train/pos holds no .txt files."
    (tmp_path / "aclImdb/train/pos").rmdir()
    assert error_of(data.task, str(tmp_path)).startswith(f"{tmp_path}/aclImdb/train has no folder pos or 1: it must")
    task = describe(tmp_path, text=["a", "b"], labels=[0, 1], files={"train": "aclImdb"})
    assert error_of(task).startswith(
        f"{tmp_path}/aclImdb is a folder, but own is neither a classification of one text"
    )


ARTICLE = {
    "article": "A text.",
    "questions": ["Why _?", "Who?"],
    "options": [["a", "b", "c", "d"], ["e", "f", "g", "h"]],
    "answers": ["B", "D"],
    "id": "high1.txt",
}


def test_race_is_read_as_published(tmp_path: Path) -> None:
    for split in ("train", "dev", "test"):
        write(tmp_path / "RACE" / split / "high/1.txt", json.dumps(ARTICLE))
        write(tmp_path / "RACE" / split / "middle/1.txt", json.dumps(ARTICLE | {"article": f"Other {split}."}))
    data = load_task(read_task(CONFIGS / "race.yaml"), str(tmp_path))
    for split, article in {"train": "Other train.", "validation": "Other dev.", "test": "Other test."}.items():
        rows = rows_of(data, split)
        assert [row["article"] for row in rows] == ["A text."] * 2 + [article] * 2
        assert [row["question"] for row in rows] == ["Why _?", "Who?"] * 2
        assert [row["choice2"] for row in rows] == ["c", "g"] * 2
        assert [row["label"] for row in rows] == [1, 3] * 2
        assert [row["index"] for row in rows] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("article", "message"),
    [
        ('{"article":\n', "PATH, line 2: not JSON: Expecting value at column 1."),
        ([ARTICLE], "PATH must hold a JSON object, and its answers the label of each question in a list."),
        (ARTICLE | {"answers": "B"}, "PATH must hold a JSON object, and its answers the label"),
        (ARTICLE | {"questions": ["Why?"]}, "PATH: questions lists 1, but answers lists 2."),
        (ARTICLE | {"answers": ["B", "E"]}, "PATH, question 2: the label is 'E', but race has: A, B, C, D."),
        (
            ARTICLE | {"options": [["a", "b"], ["c", "d"]]},
            "PATH, question 1: options is ['a', 'b'], but must list 4",
        ),
        ({"answers": ["B"]}, "PATH, question 1 has no article."),
    ],
)
def test_what_can_be_wrong_with_an_article(tmp_path: Path, article: Any, message: str) -> None:
    write(tmp_path / "RACE/dev/high/1.txt", json.dumps(ARTICLE))
    write(tmp_path / "RACE/train/high/1.txt", json.dumps(ARTICLE))
    path = write(tmp_path / "RACE/train/high/2.txt", article if isinstance(article, str) else json.dumps(article))
    error = error_of(read_task(CONFIGS / "race.yaml"), str(tmp_path))
    assert error.startswith(message.replace("PATH", str(path)))


# Runs in its own process, since the libraries read the address of the Hub when they are imported.
LOAD = """
import json, sys
from pathlib import Path
from common.errors import UserError
from finetune_glue.data.task_data import load_task
from finetune_glue.data.task_files import task_content
from finetune_glue.data.description import find_tasks
results = []
for name, source in json.load(sys.stdin):
    try:
        data = load_task(find_tasks([name])[0], source)
        results.append([{split: list(rows) for split, rows in data.splits.items()}, data.source, data.notes])
        assert data.content == task_content(data.task, source) == {data.task.name: [data.source]}
    except UserError as error:
        results.append(str(error))
print(json.dumps(results))
"""


def load_in_process(environment: dict[str, str], *requests: tuple[str, str]) -> list[Any]:
    environment = environment | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-c", LOAD],
        input=json.dumps(requests),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def publish(folder: Path, config: str, splits: dict[str, datasets.Dataset]) -> dict:
    """Write the splits of a configuration as on the Hub, and return what the card says of them."""
    files = []
    for split, table in splits.items():
        path = folder / config / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        table.to_parquet(path)
        files.append({"split": split, "path": f"{config}/{path.name}"})
    return {"config_name": config, "data_files": files}


def publish_glue(data: TaskData, folder: Path) -> dict:
    """A task of GLUE as the Hub has it: ids of the label names, -1 where there is no label, and `idx`."""
    splits = {}
    for split, table in data.splits.items():
        count = len(table)
        if "label" not in table.column_names or data.task.name == "ax":
            table = table.remove_columns([*{"label"} & {*table.column_names}])
            missing = [-1.0 if data.task.problem == "regression" else -1] * count
            table = table.add_column("label", missing)
        table = table.rename_column("index", "idx")
        if data.task.labels:
            table = table.cast_column("label", datasets.ClassLabel(names=list(data.task.label_names)))
        splits[split] = table
    return publish(folder, data.task.name, splits)


def write_card(folder: Path, configs: list[dict]) -> None:
    write(folder / "README.md", f"---\n{yaml.safe_dump({'configs': configs})}---\n")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[HubStandIn, Path]]:
    """The Hub with GLUE and the data sets of configs/tasks; and the folder that GLUE's rows come from."""
    folder = tmp_path_factory.mktemp("hub")
    glue = write_glue_folder(tmp_path_factory.mktemp("glue"), rows=8, validation_rows=4, test_rows=3)
    published = folder / "datasets"
    tasks = [load_task(TASKS[name], str(glue)) for name in (*GLUE, "ax")]
    write_card(published / "nyu-mll/glue", [publish_glue(data, published / "nyu-mll/glue") for data in tasks])

    names = datasets.ClassLabel(names=["entailment", "neutral", "contradiction"])
    snli = datasets.Dataset.from_dict({"premise": ["a", "c"], "hypothesis": ["b", "d"], "label": [2, -1]})
    snli = snli.cast_column("label", names)
    splits = dict.fromkeys(("train", "validation", "test"), snli)
    write_card(published / "stanfordnlp/snli", [publish(published / "stanfordnlp/snli", "plain_text", splits)])

    imdb = datasets.Dataset.from_dict({"text": [f"film {row}" for row in range(20)], "label": [0, 1] * 10})
    imdb = imdb.cast_column("label", datasets.ClassLabel(names=["neg", "pos"]))
    splits = {"train": imdb, "test": imdb}
    write_card(published / "stanfordnlp/imdb", [publish(published / "stanfordnlp/imdb", "plain_text", splits)])

    race = datasets.Dataset.from_list(
        [{"article": "text", "question": "why _?", "options": ["a", "b", "c", "d"], "answer": "D"}]
    )
    splits = dict.fromkeys(("train", "validation", "test"), race)
    write_card(published / "ehovy/race", [publish(published / "ehovy/race", "all", splits)])

    choices = {"label": list("ABCDE"), "text": list("vwxyz")}
    questions = datasets.Dataset.from_list([{"question": "where", "choices": choices, "answerKey": "B"}])
    unlabelled = datasets.Dataset.from_list([{"question": "where", "choices": choices, "answerKey": ""}])
    splits = {"train": questions, "validation": questions, "test": unlabelled}
    write_card(published / "tau/commonsense_qa", [publish(published / "tau/commonsense_qa", "default", splits)])
    with hub_stand_in(folder) as running:
        yield running, glue
    assert running.unknown_requests == []


@pytest.mark.slow
def test_glue_of_the_hub_has_the_rows_of_the_files(hub: tuple[HubStandIn, Path], tmp_path: Path) -> None:
    running, glue = hub
    names = (*GLUE, "ax")
    loaded = load_in_process(running.environment(tmp_path / "home"), *((name, "hub") for name in names))
    commit = running.repository("nyu-mll/glue", "datasets").head().id
    for name, (splits, source, notes) in zip(names, loaded, strict=True):
        expected = {split: list(rows) for split, rows in load_task(TASKS[name], str(glue)).splits.items()}
        if name == "ax":
            expected["test"] = [{key: row[key] for key in row if key != "label"} for row in expected["test"]]
        assert splits == expected
        assert (source, notes) == (f"nyu-mll/glue@{commit}", [])


@pytest.mark.slow
def test_other_data_sets_of_the_hub(hub: tuple[HubStandIn, Path], tmp_path: Path) -> None:
    running, _ = hub
    requests = [(str(CONFIGS / f"{name}.yaml"), "hub") for name in ("snli", "imdb", "race", "commonsenseqa")]
    snli, imdb, race, questions = load_in_process(running.environment(tmp_path / "home"), *requests)
    assert snli[0]["train"] == [{"premise": "a", "hypothesis": "b", "index": 0, "label": 2}]
    assert len(snli[2]) == 3
    assert {split: len(rows) for split, rows in imdb[0].items()} == {"train": 18, "validation": 2, "test": 20}
    assert race[0]["test"] == [
        {
            "article": "text",
            "question": "why _?",
            **{f"choice{place}": letter for place, letter in enumerate("abcd")},
            "index": 0,
            "label": 3,
        }
    ]
    assert [questions[0]["train"][0][f"choice{place}"] for place in range(5)] == list("vwxyz")
    assert questions[0]["train"][0]["label"] == 1
    assert "label" not in questions[0]["test"][0]


@pytest.mark.slow
def test_a_revision_is_the_one_that_was_asked_for(hub: tuple[HubStandIn, Path], tmp_path: Path) -> None:
    running, _ = hub
    repository = running.repository("nyu-mll/glue", "datasets")
    first = repository.head().id
    card = repository.folder / "README.md"
    kept = card.read_text()
    card.write_text(kept + "\nChanged.\n")
    try:
        second = repository.head().id
        old, new, wrong = load_in_process(
            running.environment(tmp_path / "home"), ("rte", f"hub@{first}"), ("rte", "hub"), ("rte", "hub@v9")
        )
    finally:
        card.write_text(kept)
    assert (old[1], new[1]) == (f"nyu-mll/glue@{first}", f"nyu-mll/glue@{second}")
    assert wrong.startswith("The data set nyu-mll/glue@v9, configuration rte cannot be loaded from the Hub: ")
    assert "v9" in wrong.partition("loaded from the Hub: ")[2]


@pytest.mark.slow
def test_what_can_be_wrong_on_the_hub(hub: tuple[HubStandIn, Path], tmp_path: Path) -> None:
    running, _ = hub
    shared = {"problem": "classification", "text": "text", "labels": ["neg", "pos"], "hub": "stanfordnlp/imdb"}
    described = {
        "labels": {**shared, "labels": ["bad", "good"]},
        "column": {**shared, "text": "review"},
        "split": {**shared, "hub_splits": {"train": "training"}},
        "unknown": {**shared, "hub": "stanfordnlp/imbd"},
    }
    for name, values in described.items():
        write(tmp_path / f"{name}.yaml", yaml.safe_dump(values))
    labels, column, split, unknown = load_in_process(
        running.environment(tmp_path / "home"), *((str(tmp_path / f"{name}.yaml"), "hub") for name in described)
    )
    place = "stanfordnlp/imdb"
    assert labels == f"{place}, split train has the labels neg, pos, but labels has bad, good."
    assert column == f"{place}, split train has no column 'review'. Its columns are: text, label."
    assert split == f"The data set {place} has no split 'training'. Its splits are: train, test."
    assert unknown.startswith("The data set stanfordnlp/imbd cannot be loaded from the Hub: ")


@pytest.mark.slow  # the libraries try again for half a minute
def test_a_hub_that_cannot_be_reached(hub: tuple[HubStandIn, Path], tmp_path: Path) -> None:
    running, _ = hub
    with running.down():
        offline, local = load_in_process(
            running.environment(tmp_path / "other"), ("rte", "hub"), ("rte", str(tmp_path / "none"))
        )
    assert offline.startswith("The data set nyu-mll/glue, configuration rte cannot be loaded from the Hub: ")
    assert offline.endswith("give a folder of its files with --data FOLDER.")
    assert local.startswith("There is no folder ")
