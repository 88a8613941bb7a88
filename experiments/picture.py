"""The picture of a run's results: for each task the scores of every seed and their median, model by model."""

from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np

from common.files import written_whole
from experiments.results import Group, Results
from experiments.tables import metric_name, parts_of
from experiments.tasks import ScoredTask


matplotlib.use("Agg")
# The palette of Okabe and Ito, which colour-blind people tell apart; shapes do so in print without colours.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LEAST_RANGE = 4.0  # points of score that a panel shows at least, so that noise does not look large
PANEL = (2.9, 2.6)  # inches, as long as there are few models
MODEL_WIDTH = 0.42  # inches for the figure of a median
SPREAD = 0.22  # of the seeds of a model to the left and right of its place


@dataclass(frozen=True)
class Column:
    """What a panel shows of one model: the scores of its seeds times 100, and their median; or why there is none."""

    values: list[float]
    median: float | None
    note: str = ""


@matplotlib.rc_context({"text.parse_math": False})  # a `$` in a name is a dollar
def draw_results(results: Results, output: Path) -> Path:
    """Draw a panel for each task, and one for the average of several tasks of the suite, into a PNG.

    A point is one seed, a line with its figure the median. Panels have scales of their own.
    """
    from matplotlib import pyplot
    from matplotlib.lines import Line2D

    panels = [
        (_title(task), [_column(results.best(model, task)) for model in results.models]) for task in results.tasks
    ]
    if sum(task.name in results.suite.names for task in results.tasks) > 1:
        panels.append((_average_title(results), [_average_column(results, model) for model in results.models]))
    rows = max(1, round((len(panels) / 2) ** 0.5))
    columns = max(1, -(-len(panels) // rows))
    width = max(columns * max(PANEL[0], 0.8 + MODEL_WIDTH * len(results.models)), 5.0)
    entries = [*results.models, "median (a point is one seed)"]
    per_row = max(1, int(width / (0.5 + 0.075 * max(map(len, entries)))))  # inches of an entry, about
    size = (width, rows * PANEL[1] + 0.25 + 0.2 * -(-len(entries) // per_row))
    figure, grid = pyplot.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    try:
        for axes, (title, shown) in zip(grid.flat, panels, strict=False):
            _draw_panel(axes, title, shown)
        for axes in grid.flat[len(panels) :]:
            axes.remove()
        for row in grid:
            row[0].set_ylabel("score × 100")
        handles = [Line2D([], [], linestyle="none", **_style(number)) for number in range(len(results.models))]
        handles.append(Line2D([], [], color="black", linewidth=1.8))
        figure.legend(
            handles, entries, loc="outside lower center", ncols=min(per_row, len(entries)), frameon=False, fontsize=9
        )
        with written_whole(output) as file:
            figure.savefig(file, dpi=150, format="png")
    finally:
        pyplot.close(figure)
    return output


def _draw_panel(axes, title: str, columns: list[Column]):
    values = [value for column in columns for value in column.values]
    low, high = (min(values), max(values)) if values else (0.0, 100.0)
    margin = max(0.0, LEAST_RANGE - (high - low)) / 2
    low, high = low - margin, high + margin
    height = high - low
    axes.set_ylim(low - 0.08 * height, high + 0.22 * height)  # the figures stand above the points
    room = max(0.6, 1.5 - len(columns) / 2)  # beside a single model, too
    axes.set_xlim(-room, len(columns) - 1 + room)
    for number, column in enumerate(columns):
        if column.median is None:
            axes.text(
                number, 0.5, column.note, transform=axes.get_xaxis_transform(), rotation=90, ha="center", va="center"
            )
            continue
        count = len(column.values)
        places = number + (np.linspace(-SPREAD, SPREAD, count) if count > 1 else np.zeros(count))
        axes.hlines(column.median, number - 0.36, number + 0.36, color="black", linewidth=1.8, zorder=3)
        axes.plot(
            places,
            column.values,
            linestyle="none",
            **_style(number),
            markeredgewidth=0.5,
            markeredgecolor="white",
            zorder=4,
        )
        axes.text(
            number,
            0.97,
            f"{column.median:.1f}",
            transform=axes.get_xaxis_transform(),
            ha="center",
            va="top",
            fontsize=9,
        )
    axes.set_title(title, fontsize=10)
    axes.set_xticks([])
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _style(number: int) -> dict:
    return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)], "markersize": 5.5}


def _title(task: ScoredTask) -> str:
    metrics = list(dict.fromkeys(metric_name(metric) for _, metric in parts_of(task)))
    splits = [task.split_title(split) for split in task.validation_splits] if len(task.validation_splits) > 1 else []
    of_splits = f", mean of {' and '.join(splits)}" if splits else ""
    return f"{task.title}\n{'mean of ' if len(metrics) > 1 else ''}{' and '.join(metrics)}{of_splits}"


def _average_title(results: Results) -> str:
    averages = [results.average(model) for model in results.models]
    counts = sorted({len(average.tasks) for average in averages if average})
    over = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else "".join(map(str, counts))
    count = len(results.suite.tasks)
    tasks = f"all {over} tasks" if counts == [count] else f"{over} of its {count} tasks"
    return f"{results.suite.title} average\nof {tasks}"


def _column(group: Group | None) -> Column:
    if group is None or group.average_score is None:
        return Column([], None, "failed" if group and group.failed else "not run")
    values = [100 * run.average_score(group.task) for run in group.finished]
    return Column(values, 100 * group.average_score.median)


def _average_column(results: Results, model: str) -> Column:
    average = results.average(model)
    if average is None:
        return Column([], None, "not run")
    return Column([100 * value for value in average.by_seed.values()], 100 * average.value)
