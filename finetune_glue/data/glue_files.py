"""The files of GLUE as they were published: tab-separated, nothing quoted, some without a header.

The published files differ from task to task in the names and the order of their columns, test files from those of
training; copies of them differ again. So columns are found by their names in the first line, and only files that are
known to have no header are read by position. Every line is a row: quotes mean nothing, a byte-order mark and carriage
returns at the ends of lines do not count.
"""

import itertools
from dataclasses import dataclass, field
from pathlib import Path

from common.errors import UserError
from common.files import is_folder, require_file
from finetune_glue.data.columns import missing_column, place_of, read_columns, wrong_number_of_columns
from finetune_glue.data.delimited import lines_of_tsv
from finetune_glue.data.rows import Rows
from finetune_glue.data.tasks import TASKS, Task


@dataclass(frozen=True)
class Layout:
    """The files of a task.

    Args:
        folders: their folder; of several names the first that is there.
        text: columns of text, where they are not called as in the task.
        label: column of labels.
        headerless: all columns of files without header.
        optional: how many more columns lines of such files may have.
        broken_share: of the lines, how many may have another number of columns than the header: they are left out.
        files: names of each split's file where not train, dev or test; of several the first that is there.
    """

    folders: tuple[str, ...]
    text: tuple[str, ...] = ()
    label: str = "label"
    headerless: tuple[str, ...] = ()
    optional: int = 0
    broken_share: float = 0.0
    files: dict[str, tuple[str, ...]] = field(default_factory=dict)


LAYOUTS = {
    "cola": Layout(("CoLA",), headerless=("source", "label", "mark", "sentence")),
    "sst2": Layout(("SST-2",)),
    "mrpc": Layout(
        ("MRPC",),
        ("#1 String", "#2 String"),
        "Quality",
        files={"test": ("test.tsv", "msr_paraphrase_test.txt")},
    ),
    "stsb": Layout(
        ("STS-B",),
        label="score",
        headerless=("genre", "filename", "year", "old_index", "score", "sentence1", "sentence2"),
        optional=2,  # the sources of the sentences
        files={
            "train": ("train.tsv", "sts-train.csv"),
            "validation": ("dev.tsv", "sts-dev.csv"),
            "test": ("test.tsv", "sts-test.csv"),
        },
    ),
    "qqp": Layout(
        ("QQP",),
        label="is_duplicate",
        headerless=("id", "qid1", "qid2", "question1", "question2", "is_duplicate"),
        broken_share=0.001,  # some questions hold a line end, which cuts their row in two; the Hub lacks these, too
    ),
    "mnli": Layout(
        ("MNLI",),
        ("sentence1", "sentence2"),
        "gold_label",
        files={
            "validation_matched": ("dev_matched.tsv",),
            "validation_mismatched": ("dev_mismatched.tsv",),
            "test_matched": ("test_matched.tsv",),
            "test_mismatched": ("test_mismatched.tsv",),
        },
    ),
    "qnli": Layout(("QNLI",)),
    "rte": Layout(("RTE",)),
    "wnli": Layout(("WNLI",)),
    "ax": Layout(
        ("AX", "diagnostic", "MNLI"),
        ("sentence1", "sentence2"),
        files={"test": ("diagnostic-full.tsv", "AX.tsv", "diagnostic.tsv", "test.tsv")},
    ),
}
FILES = {"train": ("train.tsv",), "validation": ("dev.tsv",), "test": ("test.tsv",)}
LABELLED_DIAGNOSTICS = ("Premise", "Hypothesis", "Label")


def find_files(task: Task, folder: Path) -> dict[str, Path]:
    """The file of each split; test files may be missing.

    Raises:
        UserError: for a missing folder or file, with what was looked for.
    """
    layout = LAYOUTS[task.name]
    if not is_folder(folder):
        raise UserError(
            f"There is no folder {folder}: --data must be `hub` or the folder that holds the files of GLUE."
        )
    entries = {entry.name.lower(): entry for entry in folder.iterdir() if entry.is_dir()}
    folders = [entries[name.lower()] for name in layout.folders if name.lower() in entries]
    if not folders:
        holds = ", ".join(sorted(entry.name for entry in entries.values())) or "no folders"
        raise UserError(
            f"{folder} has no folder {layout.folders[0]} with the files of {task.name}. It holds: {holds}."
        )
    found = {}
    for split in task.splits:
        names = layout.files.get(split) or FILES[split]
        paths = [path / name for name in names for path in folders if (path / name).is_file()]
        if paths:
            found[split] = paths[0]
        elif split not in task.test_splits:
            require_file(folders[0] / names[0])
    if not found:
        raise UserError(f"{folders[0]} has no file {' or '.join(names)} for {task.name}.")
    return found


def read_glue_file(task: Task, path: Path, split: str) -> Rows:
    """The rows of a file of GLUE.

    Raises:
        UserError: naming file and line, for a column that is not there, another number of columns than in the first
            line, what is not UTF-8, or an index of a test file that is no number.
    """
    layout = LAYOUTS[task.name]
    lines = lines_of_tsv(path)
    first = next(lines, None)
    if first is None:
        raise UserError(f"{path} is empty: the split {split} of {task.name} has no rows.")
    header, texts, label = _columns(task, layout, path, first[1])
    has_header = header is not layout.headerless
    wanted = dict(zip(task.text_columns, texts, strict=True))
    if label in header:
        wanted["label"] = label
    index_column = next((name for name in ("index", "idx", "id") if name in header), None)
    if split in task.test_splits and index_column:
        wanted["index"] = index_column
    table = read_columns(
        path,
        lines if has_header else itertools.chain([first], lines),
        header,
        {name: place_of(column, header, f"{path}, line 1") for name, column in wanted.items()},
        0 if has_header else layout.optional,
        layout.broken_share,
    )
    labels, written = table.values.pop("label", None), table.values.pop("index", None)
    if written is None:
        index = [number - (2 if has_header else 1) for number in table.numbers]
    else:
        index = [_index(path, number, text) for number, text in zip(table.numbers, written, strict=True)]
    notes = []
    if table.broken:
        places = ", ".join(map(str, table.broken[:5])) + (", ..." if len(table.broken) > 5 else "")
        notes.append(f"{path}: {len(table.broken):,} lines without {len(header)} columns are left out: {places}")
    return Rows(str(path), table.values, labels, index, table.numbers, notes=notes)


def _columns(task: Task, layout: Layout, path: Path, first: list[str]) -> tuple[tuple[str, ...], tuple[str, ...], str]:
    """All columns of a file, and which of them hold text and label."""
    names = [(layout.text or task.text_columns, layout.label), (task.text_columns, "label")]
    if task.name == "ax":
        names.append((LABELLED_DIAGNOSTICS[:2], LABELLED_DIAGNOSTICS[2]))
    for texts, label in names:
        if set(texts) <= set(first):
            return tuple(first), texts, label
    if layout.headerless:
        if len(first) < len(layout.headerless) and not layout.broken_share:
            raise wrong_number_of_columns(path, 1, first, layout.headerless)
        return layout.headerless, layout.text or task.text_columns, layout.label
    missing = next(column for column in names[0][0] if column not in first)
    raise missing_column(f"{path}, line 1", missing, first)


def _index(path: Path, number: int, text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise UserError(f"{path}, line {number}: the index is {text!r}, but must be a whole number.")
    return int(text)


def task_of_file(path: Path) -> Task | None:
    """The task that a file belongs to, by the beginning of its own name or that of its folder; none if unknown."""
    for part in (path.name, path.parent.name):
        for name, layout in LAYOUTS.items():
            if part.lower().startswith(tuple(folder.lower() for folder in layout.folders)):
                return TASKS[name]
    return None
