"""The tables of a run: what papers print, in Markdown, CSV and the terminal."""

import csv
import io
from pathlib import Path

import pytest
from cell_folders import HYPERPARAMETERS, own_task, write_cell, write_error

from experiments.results import Results, read_results
from experiments.tables import WIDTH, csv_text, markdown, terminal_table
from finetune_glue.data.tasks import GLUE, SUITE, TASKS


def rows_of(text: str, first: str) -> list[list[str]]:
    """The cells of the Markdown table whose first heading is given."""
    lines = iter(text.splitlines())
    rows = []
    for line in lines:
        if rows and not line.startswith("|"):
            break
        if rows or line.startswith(f"| {first} "):
            rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return [row for row in rows if not row[0].startswith("---")]


@pytest.fixture
def results(tmp_path: Path) -> Results:
    """Two models on five tasks; one cell has failed, one is missing, and one model has nothing on SST-2."""
    for model, shift in (("luna", 0.0), ("a|b", 0.01)):
        for seed, step in ((1, 0.0), (2, 0.02)):
            more = shift + step
            write_cell(tmp_path, "mrpc", seed, {"accuracy": 0.8 + more, "f1": 0.9 + more}, model=model)
            of_splits = {
                "validation_matched": {"accuracy": 0.7 + more},
                "validation_mismatched": {"accuracy": 0.6 + more},
            }
            write_cell(tmp_path, "mnli", seed, of_splits, model=model)
            write_cell(tmp_path, own_task(), seed, {"accuracy": 0.5 + more}, model=model)
    write_cell(tmp_path, "rte", 1, {"accuracy": 0.6})
    write_error(tmp_path / "cells/luna/rte/default/seed-2", "CUDA out\nof memory " + 400 * "x")
    write_error(tmp_path / "cells/luna/sst2/default/seed-1", "no test")
    planned = [tmp_path / f"cells/luna/{task}/default/seed-{seed}" for task in ("rte", "mrpc") for seed in (1, 2, 3)]
    return read_results(tmp_path, SUITE, [own_task()], planned)


def test_main_table(results: Results):
    header, *rows = rows_of(markdown(results), "model")
    assert header == ["model", "SST-2 acc", "MRPC F1/acc", "MNLI m/mm acc", "RTE acc", "GLUE", "Polite acc"]
    assert rows == [
        [
            *("luna", "failed (0 of 1, 1 failed)", "91.0 ± 1.4 / 81.0 ± 1.4 (2 of 3)", "71.0 ± 1.4 / 61.0 ± 1.4 (2)"),
            *("60.0 (1 of 3, 1 failed)", "70.7 (1)", "51.0 ± 1.4 (2)"),
        ],
        [
            *("a\\|b", "-", "92.0 ± 1.4 / 82.0 ± 1.4 (2)", "72.0 ± 1.4 / 62.0 ± 1.4 (2)"),
            *("-", "77.0 ± 1.4 (2)", "52.0 ± 1.4 (2)"),
        ],
    ]


def test_notes_and_problems(results: Results):
    text = markdown(results)
    assert (
        "The average of luna is over MRPC, MNLI, RTE alone; CoLA, SST-2, STS-B, QQP, QNLI, WNLI are missing." in text
    )
    assert "The average of a|b is over MRPC, MNLI alone" in text
    for said in (text, terminal_table(results)):
        assert "RTE, luna, default, seed 2: CUDA out of memory xxx" in said and "x ... (" in said
        assert "RTE, luna, default: not run yet, or not to the end: seed 3" in said
        assert "SST-2, luna, default, seed 1: no test (" in said
    assert "All settings" not in text


def test_chosen_settings(results: Results):
    header, *rows = rows_of(markdown(results), "task")
    assert header == [
        *("task", "setting", "learning rate", "batch", "epochs", "steps at most", "warm-up", "weight decay"),
        "models (best seed)",
    ]
    assert rows[0] == ["MRPC", "default", "2e-05", "32", "10", "-", "0.06", "0.1", "luna (2), a\\|b (2)"]
    assert [row[0] for row in rows] == ["MRPC", "MNLI", "RTE", "Polite"]


def test_grid(tmp_path: Path):
    for rate, score in ((1e-5, 0.6), (3e-5, 0.65)):
        values = HYPERPARAMETERS | {"learning_rate": rate}
        for seed in (1, 2):
            setting = f"learning_rate={rate:g}"
            write_cell(tmp_path, "rte", seed, {"accuracy": score}, setting=setting, hyperparameters=values)
    text = markdown(read_results(tmp_path, SUITE))
    assert rows_of(text.partition("All settings")[2], "task")[1:] == [
        ["RTE", "luna", "learning_rate=1e-05", "60.0 ± 0.0", "2 of 2", ""],
        ["RTE", "luna", "learning_rate=3e-05", "65.0 ± 0.0", "2 of 2", "chosen"],
    ]
    assert rows_of(text, "task")[1][1:3] == ["learning_rate=3e-05", "3e-05"]
    assert rows_of(text, "model") == [["model", "RTE acc"], ["luna", "65.0 ± 0.0 (2)"]]  # one task has no average


def test_csv_has_numbers(results: Results):
    luna, other = csv.DictReader(io.StringIO(csv_text(results)))
    assert (luna["model"], other["model"]) == ("luna", "a|b")
    assert (luna["MRPC F1 median"], luna["MRPC F1 std"], luna["MRPC F1 n"]) == ("91.0000", "1.4142", "2")
    assert luna["MNLI m acc median"] == "71.0000" and luna["MNLI mm acc median"] == "61.0000"
    assert (luna["RTE acc median"], luna["RTE acc std"], luna["RTE acc n"]) == ("60.0000", "", "1")
    assert (other["RTE acc median"], other["RTE acc n"]) == ("", "0")
    assert (luna["GLUE average value"], luna["GLUE average tasks"]) == ("70.6667", "3")
    assert luna["Polite acc median"] == "51.0000"


def test_terminal_table_lines_up_and_fits(tmp_path: Path):
    models = ["luna-base", "luna-base-conv5", "m" * 150, "roberta", "bert", "modernbert"]
    for model in models:
        for name in GLUE:
            task = TASKS[name]
            for seed in (1, 2):
                by_split = {split: dict.fromkeys(task.metrics, 0.25 * seed) for split in task.validation_splits}
                write_cell(tmp_path, name, seed, by_split, model=model, test_rows=None)
    lines = terminal_table(read_results(tmp_path, SUITE)).splitlines()
    assert max(map(len, lines)) <= WIDTH
    blocks = [line for line in lines if line.startswith("MRPC F1/acc ")]
    assert len(blocks) == 3 and "".join(blocks).count("37.5 ± 17.7 / 37.5 ± 17.7 (2)") == len(models)
    heads = [lines[number - 3] for number, line in enumerate(lines) if line in blocks]
    assert all(any(model in head for head in heads) for model in models if len(model) < 100)
    assert "…" + "m" * 59 in "".join(heads)
    averages = [line for line in lines if line.startswith("GLUE without WNLI")]
    assert len({len(line) for line in (heads[0], blocks[0], averages[0])}) == 1
