"""The picture of the results: a panel for each task, a point for each seed."""

from pathlib import Path

import matplotlib
import pytest
from cell_folders import own_task, write_cell, write_error
from matplotlib import pyplot

from experiments.picture import draw_results
from experiments.results import read_results
from finetune_glue.data.tasks import GLUE, SUITE, TASKS


matplotlib.use("Agg")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list:
    """The figures that were drawn, which stay open for the test."""
    figures: list = []
    monkeypatch.setattr(pyplot, "close", figures.append)
    yield figures
    monkeypatch.undo()
    for figure in figures:
        pyplot.close(figure)


def write_run(folder: Path, models: list[str], tasks: list, seeds: int):
    for shift, model in enumerate(models):
        for task in tasks:
            task = TASKS[task] if isinstance(task, str) else task
            for seed in range(1, seeds + 1):
                value = 0.6 + 0.01 * shift + 0.005 * seed
                by_split = {split: dict.fromkeys(task.metrics, value) for split in task.validation_splits}
                write_cell(folder, task, seed, by_split, model=model, test_rows=None)


def test_points_and_medians(tmp_path: Path, drawn: list):
    write_run(tmp_path, ["luna", "roberta"], ["cola", "mrpc", "mnli", own_task()], 3)
    write_error(tmp_path / "cells/roberta/rte/default/seed-1", "out of memory")
    output = draw_results(read_results(tmp_path, SUITE, [own_task()]), tmp_path / "results.png")
    assert output.read_bytes().startswith(b"\x89PNG")
    (figure,) = drawn
    panels = {axes.get_title(): axes for axes in figure.axes}
    assert list(panels) == [
        *("CoLA\nMcc", "MRPC\nmean of F1 and acc", "MNLI\nacc, mean of m and mm", "RTE\nacc", "Polite\nacc"),
        "GLUE average\nof 3 of its 9 tasks",
    ]
    cola = panels["CoLA\nMcc"]
    assert [line.get_ydata().tolist() for line in cola.lines] == [
        pytest.approx([60.5, 61.0, 61.5]),
        pytest.approx([61.5, 62.0, 62.5]),
    ]
    assert [text.get_text() for text in cola.texts] == ["61.0", "62.0"]
    assert [text.get_text() for text in panels["RTE\nacc"].texts] == ["not run", "failed"]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["luna", "roberta", "median (a point is one seed)"]
    low, high = cola.get_ylim()
    assert high - low > 4  # differences within noise do not fill the panel


def test_dollars_in_names_are_no_formulas(tmp_path: Path, drawn: list):
    task = own_task(title=r"5$ or $\frac")
    write_run(tmp_path, [r"a$\frac$b"], [task], 1)
    draw_results(read_results(tmp_path, SUITE, [task]), tmp_path / "results.png")
    assert drawn[0].axes[0].get_title() == "5$ or $\\frac\nacc"


def test_a_picture_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_run(tmp_path, ["luna"], ["cola"], 1)
    output = draw_results(read_results(tmp_path, SUITE), tmp_path / "results.png")
    before = output.read_bytes()

    def cut_short(figure, file, **options):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", cut_short)
    with pytest.raises(OSError, match="disk full"):
        draw_results(read_results(tmp_path, SUITE), output)
    assert output.read_bytes() == before and not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize(("models", "tasks", "seeds"), [(1, 1, 1), (6, 1, 5), (2, 3, 2), (6, 9, 5), (9, 9, 1)])
@pytest.mark.slow
def test_no_texts_overlap(tmp_path: Path, drawn: list, models: int, tasks: int, seeds: int):
    names = [f"a-model-of-the-number-{number}" for number in range(models)]
    write_run(tmp_path, names, list(GLUE[:tasks]), seeds)
    draw_results(read_results(tmp_path, SUITE), tmp_path / "results.png")
    (figure,) = drawn
    assert len(figure.axes) == tasks + (tasks > 1)
    figure.draw_without_rendering()
    texts = [text for axes in figure.axes for text in (axes.title, axes.yaxis.label, *axes.texts)]
    texts += figure.legends[0].get_texts()
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts if text.get_text()]
    for number, (label, box) in enumerate(boxes):
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1, label
        assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1, label
        for other, other_box in boxes[number + 1 :]:
            assert not box.overlaps(other_box), (label, other)
