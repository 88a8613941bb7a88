"""What the cells of a run have come to, over their seeds: statistics, the best setting, averages over tasks.

The score of a cell is the mean of its task's metrics on the first validation split. The best setting of a model on a
task is the one whose median score over the seeds is highest, and its best seed the one that scored highest; ties go to
what comes first. All figures are fractions here; tables show a hundred times as much.
"""

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from experiments.cell_folder import CELLS, RESULT, SEED, DamagedResult, read_error, read_result
from experiments.statistics import Average, Statistics
from experiments.tasks import ScoredTask, Suite


@dataclass(frozen=True)
class Run:
    """One cell as it lies on the disk: finished (`result`), failed (`error`), or missing (neither)."""

    seed: int
    folder: Path
    result: dict | None = None
    error: str | None = None

    @property
    def score(self) -> float:
        assert self.result is not None
        return self.result["score"]

    def metric(self, split: str, name: str) -> float | None:
        """A metric on a split; none where it was not evaluated."""
        assert self.result is not None
        return self.result["metrics"].get(split, {}).get(name)

    def average_score(self, task: ScoredTask) -> float:
        """What the task adds to an average over tasks: the mean of its metrics over all validation splits."""
        values = [self.metric(split, name) for split in task.validation_splits for name in task.metrics]
        known = [value for value in values if value is not None]
        return statistics.fmean(known) if known else self.score


@dataclass(frozen=True)
class Group:
    """The runs of one model on one task with one setting, by their seeds."""

    model: str
    task: ScoredTask
    setting: str
    runs: tuple[Run, ...]

    @property
    def finished(self) -> list[Run]:
        return [run for run in self.runs if run.result is not None]

    @property
    def failed(self) -> list[Run]:
        return [run for run in self.runs if run.result is None and run.error is not None]

    @property
    def missing(self) -> list[Run]:
        return [run for run in self.runs if run.result is None and run.error is None]

    @property
    def score(self) -> Statistics | None:
        return Statistics.of([run.score for run in self.finished])

    @property
    def average_score(self) -> Statistics | None:
        return Statistics.of([run.average_score(self.task) for run in self.finished])

    def metric(self, split: str, name: str) -> Statistics | None:
        values = [run.metric(split, name) for run in self.finished]
        return Statistics.of([value for value in values if value is not None])

    @property
    def best(self) -> Run | None:
        """The run of the best seed."""
        return max(self.finished, key=lambda run: run.score, default=None)


@dataclass(frozen=True)
class Results:
    """All cells of a run.

    Args:
        suite: the tasks that averages are over.
        tasks: those that have cells, in the order of the suite, others after them.
        models: their names.
        groups: by model, task and setting, each in the order of planning.
    """

    suite: Suite
    tasks: tuple[ScoredTask, ...]
    models: tuple[str, ...]
    groups: tuple[Group, ...]

    def of(self, model: str, task: ScoredTask) -> list[Group]:
        """The settings of a model on a task."""
        return [group for group in self.groups if (group.model, group.task) == (model, task)]

    def best(self, model: str, task: ScoredTask) -> Group | None:
        """The best setting; one without any finished cell where none has one, and none where nothing was planned."""
        return best_group(self.of(model, task))

    def best_groups(self) -> list[Group]:
        """The best setting of each model on each task, as far as some cell of it is finished."""
        groups = [self.best(model, task) for model in self.models for task in self.tasks]
        return [group for group in groups if group is not None and group.best is not None]

    def average(self, model: str, without: Iterable[str] = ()) -> Average | None:
        """The average over the suite's tasks that have a score, but for some; none where there is no such task."""
        wanted = [name for name in self.suite.names if name not in without]
        groups = [group for group in self.best_groups() if group.model == model and group.task.name in wanted]
        if not groups:
            return None
        by_seed = [{run.seed: run.average_score(group.task) for run in group.finished} for group in groups]
        seeds = sorted(set.intersection(*(set(scores) for scores in by_seed)))
        medians = [group.average_score.median for group in groups if group.average_score is not None]
        return Average(
            tuple(group.task.name for group in groups),
            statistics.fmean(medians),
            {seed: statistics.fmean(scores[seed] for scores in by_seed) for seed in seeds},
        )

    def to_json(self) -> dict:
        """All of it, for `results.json`."""
        return {
            "cells": {
                state: sum(len(getattr(group, state)) for group in self.groups)
                for state in ("runs", "finished", "failed", "missing")
            },
            "averages": {
                model: {
                    title.lower().replace(" ", "_"): self._average_json(model, without)
                    for title, without in self.suite.averages.items()
                }
                for model in self.models
            },
            "results": [_group_json(group, group is self.best(group.model, group.task)) for group in self.groups],
        }

    def _average_json(self, model: str, without: Iterable[str]) -> dict | None:
        average = self.average(model, without)
        if average is None:
            return None
        wanted = [name for name in self.suite.names if name not in without]
        return {
            "value": average.value,
            "tasks": list(average.tasks),
            "missing_tasks": [name for name in wanted if name not in average.tasks],
            "over_seeds": _statistics_json(average.over_seeds),
        }


def read_results(
    output_dir: Path,
    suite: Suite,
    tasks: Iterable[ScoredTask] = (),
    planned: Iterable[Path] = (),
    outdated: Callable[[Path, dict], str] = lambda folder, result: "",
) -> Results:
    """Read the cells below a run's folder.

    Args:
        output_dir: of the run.
        suite: whose tasks come first.
        tasks: those that are not of the suite; cells of tasks that are neither are left out, which is said.
        planned: folders of all cells that there are to be. Others count if they have been run.
        outdated: why a result in a folder does not count any more, '' where it does. A planned cell is missing then,
            another one is left out, which is said.
    """
    known = {task.name: task for task in (*suite.tasks, *tasks)}
    planned = dict.fromkeys(planned)
    found = sorted(
        path for path in (output_dir / CELLS).glob(f"*/*/*/{SEED}*") if (path / RESULT).exists() or read_error(path)
    )
    runs: dict[tuple[str, str, str], dict[int, Run]] = {}
    unknown = set()
    left_out: dict[str, list[Path]] = {}
    for folder in dict.fromkeys([*planned, *found]):
        model, task_name, setting, seed = folder.parts[-4:]
        number = seed.removeprefix(SEED)
        if task_name not in known:
            unknown.add(task_name)
        elif number.isascii() and number.isdecimal():
            run, reason = _read_run(int(number), folder, outdated)
            if reason and folder not in planned:
                left_out.setdefault(reason, []).append(folder)
            else:
                runs.setdefault((model, task_name, setting), {})[int(number)] = run
    for name in sorted(unknown):
        print(
            f"{output_dir / CELLS}: cells of {name}, which is none of the tasks of this call, are left out", flush=True
        )
    for reason, folders in left_out.items():
        others = f" and {len(folders) - 1} others" if len(folders) > 1 else ""
        print(f"{folders[0]}{others} left out: {reason}", flush=True)
    models = list(dict.fromkeys(model for model, *_ in runs))
    names = sorted({task_name for _, task_name, _ in runs}, key=list(known).index)
    groups = [
        Group(model, known[name], setting, tuple(by_seed[seed] for seed in sorted(by_seed)))
        for model in models
        for name in names
        for (of_model, of_task, setting), by_seed in runs.items()
        if (of_model, of_task) == (model, name)
    ]
    return Results(suite, tuple(known[name] for name in names), tuple(models), tuple(groups))


def best_group(groups: Iterable[Group]) -> Group | None:
    """The setting with the highest median, the first of equals; none of none."""
    return max(groups, key=_median, default=None)


def _read_run(seed: int, folder: Path, outdated: Callable[[Path, dict], str]) -> tuple[Run, str]:
    """The cell in a folder, and why a result there does not count any more, if it does not."""
    try:
        result = read_result(folder)
    except DamagedResult as error:
        print(f"{error}: its cell counts as missing and is run again by the next call.", flush=True)
        result = None
    if result is None:
        return Run(seed, folder, error=read_error(folder)), ""
    reason = outdated(folder, result)
    if reason:
        return Run(seed, folder, error=read_error(folder)), reason
    if not math.isfinite(result["score"]):
        return Run(seed, folder, error=f"its score is {result['score']}: {folder / RESULT} has the metrics"), ""
    return Run(seed, folder, result), ""


def _median(group: Group) -> float:
    return group.score.median if group.score else -math.inf


def _group_json(group: Group, best: bool) -> dict:
    first = group.finished[0].result if group.finished else None
    return {
        "model": group.model,
        "task": group.task.name,
        "setting": group.setting,
        "best_setting": best,
        "source": first and first.get("model"),
        "num_parameters": first and first.get("num_parameters"),
        "hyperparameters": first and first["hyperparameters"],
        "score": _statistics_json(group.score),
        "metrics": {
            split: {name: _statistics_json(group.metric(split, name)) for name in group.task.metrics}
            for split in group.task.validation_splits
        },
        "best_seed": group.best and group.best.seed,
        "seeds": {
            run.seed: {
                "folder": str(run.folder),
                "score": run.score,
                "metrics": {
                    split: {name: run.metric(split, name) for name in group.task.metrics}
                    for split in group.task.validation_splits
                },
            }
            for run in group.finished
        },
        "failed": {run.seed: run.error for run in group.failed},
        "missing": [run.seed for run in group.missing],
    }


def _statistics_json(value: Statistics | None) -> dict | None:
    return None if value is None else dataclasses.asdict(value)
