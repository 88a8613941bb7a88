"""The results of a run as tables: Markdown and CSV to keep, and plain text for the terminal. Scores are times 100."""

from collections.abc import Iterable

from common import tables
from common.tables import NONE, markdown_table, shortened
from experiments.results import Group, Results, Run
from experiments.statistics import Average, Statistics
from experiments.tasks import ScoredTask


# How papers write the metrics, in the order in which they give two of them.
METRIC_NAMES = {
    "matthews_correlation": "Mcc",
    "f1": "F1",
    "accuracy": "acc",
    "pearson": "Pearson",
    "spearman": "Spearman",
}
# What is shown of the hyper-parameters beside a result; results.json has all of them.
SHOWN_HYPERPARAMETERS = {
    "learning_rate": "learning rate",
    "batch_size": "batch",
    "num_train_epochs": "epochs",
    "max_steps": "steps at most",
    "warmup_steps": "warm-up",
    "weight_decay": "weight decay",
}
WIDTH = 120  # columns of a terminal


def markdown(results: Results) -> str:
    """The table of a paper, the settings that were chosen, all settings where there are several, and what failed."""
    parts = [
        "Scores on the validation splits, times 100: median ± standard deviation over seeds (number of seeds).",
        markdown_table(*_main_table(results)),
        *average_notes(results),
        "The settings, chosen by the median score on the first validation split:",
        markdown_table(*_settings_table(results)),
    ]
    if has_grid(results):
        parts += ["All settings, by the mean of the task's metrics on the first validation split:"]
        parts += [markdown_table(*_grid_table(results))]
    problems = failures(results)
    if problems:
        parts.append(
            "Failed or missing; the same command runs them again:\n\n" + "\n".join(f"- {p}" for p in problems)
        )
    return "\n\n".join(parts) + "\n"


def csv_text(results: Results) -> str:
    """A row for each model; median, standard deviation and number of seeds of each metric of each task in columns."""
    header, columns = ["model"], []
    for task in results.tasks:
        for split, metric in parts_of(task):
            columns.append((task, split, metric))
            header += [f"{_column_name(task, split, metric)} {what}" for what in ("median", "std", "n")]
    averages = _shown_averages(results)
    header += [f"{name} average {what}" for name in averages for what in ("value", "std", "n", "tasks")]
    rows = [header]
    for model in results.models:
        row = [model]
        for task, split, metric in columns:
            group = results.best(model, task)
            value = group and group.metric(split, metric)
            row += [_number(value.median), _number(value.std), str(value.n)] if value else ["", "", "0"]
        for without in averages.values():
            average = results.average(model, without)
            if average is None:
                row += ["", "", "0", "0"]
                continue
            spread = average.over_seeds
            row += [_number(average.value), _number(spread.std if spread else None)]
            row += [str(len(average.by_seed)), str(len(average.tasks))]
        rows.append(row)
    return tables.csv_text(rows)


def terminal_table(results: Results) -> str:
    """Tasks in rows and models in columns, as many side by side as fit."""
    header, rows = _main_table(results)
    columns = [["", *header[1:]], *([_ended(model, WIDTH // 2), *cells] for model, *cells in rows)]
    lines = []
    for block in _blocks(columns):
        widths = [max(map(len, column)) for column in block]
        for cells in zip(*block, strict=True):
            line = [cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])]
            lines.append("  ".join(line).rstrip())
        lines.append("")
    lines += ["median ± standard deviation over seeds (number of seeds), validation splits, times 100"]
    lines += average_notes(results)
    problems = failures(results)
    if problems:
        lines += [
            "",
            "Failed or missing; the same command runs them again:",
            *(f"  {problem}" for problem in problems),
        ]
    return "\n".join(lines) + "\n"


def parts_of(task: ScoredTask) -> list[tuple[str, str]]:
    """The splits and metrics that a task is reported by, in the order of papers."""
    order = [*METRIC_NAMES, *task.metrics]
    return [(split, metric) for split in task.validation_splits for metric in sorted(task.metrics, key=order.index)]


def metric_name(metric: str) -> str:
    return METRIC_NAMES.get(metric, metric.replace("_", " "))


def written(value: Statistics | None) -> str:
    """'84.1 ± 0.5', or '84.1' of a single seed."""
    if value is None:
        return NONE
    return f"{100 * value.median:.1f}" + ("" if value.std is None else f" ± {100 * value.std:.1f}")


def written_group(group: Group | None) -> str:
    """'88.9 ± 0.4 / 84.1 ± 0.5 (5)'; what is not finished is said."""
    if group is None:
        return NONE
    finished, failed = len(group.finished), len(group.failed)
    count = f"{finished}" if finished == len(group.runs) else f"{finished} of {len(group.runs)}"
    if failed:
        count += f", {failed} failed"
    if not finished:
        return f"failed ({count})" if failed else f"missing ({count})"
    return " / ".join(written(group.metric(split, metric)) for split, metric in parts_of(group.task)) + f" ({count})"


def average_notes(results: Results) -> list[str]:
    """Over which tasks an average is, where it is not over all of the suite."""
    titles = {task.name: task.title for task in results.suite.tasks}
    notes: dict[tuple[str, ...], list[str]] = {}
    if _shown_averages(results):
        for model in results.models:
            average = results.average(model)
            if average and len(average.tasks) < len(titles):
                notes.setdefault(average.tasks, []).append(model)
    texts = []
    for tasks, models in notes.items():
        missing = [title for name, title in titles.items() if name not in tasks]
        over = ", ".join(titles[name] for name in tasks)
        verb = "is" if len(missing) == 1 else "are"
        texts.append(f"The average of {', '.join(models)} is over {over} alone; {', '.join(missing)} {verb} missing.")
    return texts


def failures(results: Results) -> list[str]:
    """A line for each failed cell, and one for the missing ones of each group."""
    lines = []
    for group in results.groups:
        place = f"{group.task.title}, {group.model}, {group.setting}"
        lines += [f"{place}, seed {run.seed}: {shortened(run.error or '')} ({run.folder})" for run in group.failed]
        if group.missing:
            lines.append(f"{place}: not run yet, or not to the end: seed {_listed(group.missing)}")
    return lines


def has_grid(results: Results) -> bool:
    return any(len(results.of(model, task)) > 1 for model in results.models for task in results.tasks)


def _main_table(results: Results) -> tuple[list[str], list[list[str]]]:
    averages = _shown_averages(results)
    of_suite = [task for task in results.tasks if task.name in results.suite.names]
    own = [task for task in results.tasks if task.name not in results.suite.names]
    header = ["model", *map(_heading, of_suite), *averages, *map(_heading, own)]
    rows = []
    for model in results.models:
        row = [model, *(written_group(results.best(model, task)) for task in of_suite)]
        row += [_written_average(results.average(model, without)) for without in averages.values()]
        rows.append(row + [written_group(results.best(model, task)) for task in own])
    return header, rows


def _settings_table(results: Results) -> tuple[list[str], list[list[str]]]:
    """A row for each task and setting that was chosen, with the models that it holds for."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for task in results.tasks:
        for model in results.models:
            group = results.best(model, task)
            if group is None or group.best is None or group.best.result is None:
                continue
            values = group.best.result["hyperparameters"]
            shown = (_value(values.get(key)) for key in SHOWN_HYPERPARAMETERS)
            seed = f"{model} ({group.best.seed})"
            rows.setdefault((task.title, group.setting, *shown), []).append(seed)
    header = ["task", "setting", *SHOWN_HYPERPARAMETERS.values(), "models (best seed)"]
    return header, [[*row, ", ".join(models)] for row, models in rows.items()]


def _grid_table(results: Results) -> tuple[list[str], list[list[str]]]:
    rows = []
    for group in results.groups:
        settings = results.of(group.model, group.task)
        if len(settings) > 1:
            chosen = "chosen" if group is results.best(group.model, group.task) and group.finished else ""
            count = f"{len(group.finished)} of {len(group.runs)}"
            rows.append([group.task.title, group.model, group.setting, written(group.score), count, chosen])
    return ["task", "model", "setting", "score", "seeds", ""], rows


def _heading(task: ScoredTask) -> str:
    """'MRPC F1/acc', 'MNLI m/mm acc'."""
    splits = task.validation_splits if len(task.validation_splits) > 1 else ()
    metrics = [metric_name(metric) for split, metric in parts_of(task) if split == task.validation_splits[0]]
    return " ".join(filter(None, [task.title, "/".join(map(task.split_title, splits)), "/".join(metrics)]))


def _column_name(task: ScoredTask, split: str, metric: str) -> str:
    split = task.split_title(split) if len(task.validation_splits) > 1 else ""
    return " ".join(filter(None, [task.title, split, metric_name(metric)]))


def _shown_averages(results: Results) -> dict[str, tuple[str, ...]]:
    """The averages that say something: of several tasks, and those without a task where that task is there."""
    names = [task.name for task in results.tasks if task.name in results.suite.names]
    if len(names) < 2:
        return {}
    return {key: without for key, without in results.suite.averages.items() if all(name in names for name in without)}


def _written_average(average: Average | None) -> str:
    if average is None:
        return NONE
    spread = average.over_seeds
    text = f"{100 * average.value:.1f}"
    if spread and spread.std is not None:
        text += f" ± {100 * spread.std:.1f}"
    return f"{text} ({len(average.by_seed)})"


def _blocks(columns: list[list[str]]) -> Iterable[list[list[str]]]:
    """The first column with as many of the others as fit into the terminal, and again with those that are left."""
    first, *left = columns
    while left:
        block = [first, left.pop(0)]
        while left and sum(2 + max(map(len, column)) for column in [*block, left[0]]) - 2 <= WIDTH:
            block.append(left.pop(0))
        yield block


def _ended(text: str, width: int) -> str:
    """The end of a name that is too long, which tells it from others more often than its beginning."""
    return text if len(text) <= width else "…" + text[1 - width :]


def _listed(runs: Iterable[Run]) -> str:
    return ", ".join(str(run.seed) for run in runs)


def _value(value: object) -> str:
    return NONE if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _number(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.4f}"
