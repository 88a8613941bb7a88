"""What the cells of a run have come to, over their seeds: statistics, the best setting, the GLUE average.

A score of a cell is the mean of its task's metrics on the first validation split, as GLUE has it. The best setting of
a model on a task is the one whose median score over the seeds is highest, and its best seed the one that scored
highest; ties go to what comes first. All figures are fractions here; tables show a hundred times as much.
"""

import dataclasses
import json
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.checksums import KEY, take_checksum, with_checksum
from common.errors import UserError
from common.files import write_json
from finetune_glue.data.tasks import GLUE, TASKS, Task


CELLS = "cells"  # below the run's folder: MODEL/TASK/SETTING/seed-N
RESULT = "result.json"  # written last: a cell that has one is finished
ERROR = "error.json"
MODEL = "model"  # the folder of a cell's fine-tuned model, where it is kept
PREDICTIONS = "predictions"
SEED = "seed-"
NUMBER = (int, float)
# What every result must hold, for others to rely on; and what others use where it is there.
FIELDS: dict[str, type | tuple[type, ...]] = {"metrics": dict, "score": NUMBER, "hyperparameters": dict}
FURTHER_FIELDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("seconds", "tokens_per_second", "num_parameters"), NUMBER),
    **dict.fromkeys(("rows", "truncated", "versions", "made_from", "predictions"), dict),
}


@dataclass(frozen=True)
class Statistics:
    """Of one figure over seeds; `std` is that of a sample (n - 1), which a single seed does not have."""

    median: float
    mean: float
    std: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Statistics | None":
        if not values:
            return None
        std = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.median(values), statistics.fmean(values), std, len(values))


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

    def glue_score(self, task: Task) -> float:
        """What the task adds to the average of GLUE: the mean of its metrics, of MNLI the mean of both splits."""
        values = [self.metric(split, name) for split in task.validation_splits for name in task.metrics]
        known = [value for value in values if value is not None]
        return statistics.fmean(known) if known else self.score


@dataclass(frozen=True)
class Group:
    """The runs of one model on one task with one setting, by their seeds."""

    model: str
    task: Task
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
    def glue_score(self) -> Statistics | None:
        return Statistics.of([run.glue_score(self.task) for run in self.finished])

    def metric(self, split: str, name: str) -> Statistics | None:
        values = [run.metric(split, name) for run in self.finished]
        return Statistics.of([value for value in values if value is not None])

    @property
    def best(self) -> Run | None:
        """The run of the best seed."""
        return max(self.finished, key=lambda run: run.score, default=None)


@dataclass(frozen=True)
class Average:
    """The GLUE average of a model over some tasks.

    Args:
        value: the mean of the tasks' median scores.
        by_seed: the same of each seed that has finished all these tasks.
    """

    tasks: tuple[str, ...]
    value: float
    by_seed: dict[int, float]

    @property
    def over_seeds(self) -> Statistics | None:
        """Its standard deviation is the spread of the average."""
        return Statistics.of(list(self.by_seed.values()))


@dataclass(frozen=True)
class Results:
    """All cells of a run.

    Args:
        tasks: in the order of GLUE's table, one's own after them.
        models: their names.
        groups: by model, task and setting, each in the order of planning.
    """

    tasks: tuple[Task, ...]
    models: tuple[str, ...]
    groups: tuple[Group, ...]

    def of(self, model: str, task: Task) -> list[Group]:
        """The settings of a model on a task."""
        return [group for group in self.groups if (group.model, group.task) == (model, task)]

    def best(self, model: str, task: Task) -> Group | None:
        """The best setting; one without any finished cell where none has one, and none where nothing was planned."""
        return best_group(self.of(model, task))

    def best_groups(self) -> list[Group]:
        """The best setting of each model on each task, as far as some cell of it is finished."""
        groups = [self.best(model, task) for model in self.models for task in self.tasks]
        return [group for group in groups if group is not None and group.best is not None]

    def average(self, model: str, without: Iterable[str] = ()) -> Average | None:
        """The GLUE average over the tasks that have a score, but for some; none where there is no such task."""
        groups = [group for group in self.best_groups() if group.model == model and group.task.name in GLUE]
        groups = [group for group in groups if group.task.name not in without]
        if not groups:
            return None
        by_seed = [{run.seed: run.glue_score(group.task) for run in group.finished} for group in groups]
        seeds = sorted(set.intersection(*(set(scores) for scores in by_seed)))
        medians = [group.glue_score.median for group in groups if group.glue_score is not None]
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
                    key: _average_json(self.average(model, without), without)
                    for key, without in (("glue", ()), ("glue_without_wnli", ("wnli",)))
                }
                for model in self.models
            },
            "results": [_group_json(group, group is self.best(group.model, group.task)) for group in self.groups],
        }


def read_results(
    output_dir: Path,
    tasks: Iterable[Task] = (),
    planned: Iterable[Path] = (),
    outdated: Callable[[Path, dict], str] = lambda folder, result: "",
) -> Results:
    """Read the cells below a run's folder.

    Args:
        output_dir: of the run.
        tasks: those that are not of GLUE; cells of tasks that are neither are left out, which is said.
        planned: folders of all cells that there are to be. Others count if they have been run.
        outdated: why a result in a folder does not count any more, '' where it does. A planned cell is missing then,
            another one is left out, which is said.
    """
    known = TASKS | {task.name: task for task in tasks}
    planned = dict.fromkeys(planned)
    found = sorted(
        path for path in (output_dir / CELLS).glob(f"*/*/*/{SEED}*") if (path / RESULT).exists() or _read_error(path)
    )
    runs: dict[tuple[str, str, str], dict[int, Run]] = {}
    unknown = set()
    left_out: dict[str, list[Path]] = {}
    for folder in dict.fromkeys([*planned, *found]):
        model, task_name, setting, seed = folder.parts[-4:]
        number = seed.removeprefix(SEED)
        if task_name not in known:
            unknown.add(task_name)
        elif number.isdecimal():
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
    order = [*GLUE, *(name for name in known if name not in GLUE)]
    names = sorted({task_name for _, task_name, _ in runs}, key=order.index)
    groups = [
        Group(model, known[name], setting, tuple(by_seed[seed] for seed in sorted(by_seed)))
        for model in models
        for name in names
        for (of_model, of_task, setting), by_seed in runs.items()
        if (of_model, of_task) == (model, name)
    ]
    return Results(tuple(known[name] for name in names), tuple(models), tuple(groups))


class DamagedResult(UserError):
    """A result that cannot be believed; the message says why."""


def write_result(folder: Path, result: dict) -> dict:
    """Write the result of a cell into its folder, whole or not at all; what was written."""
    result = with_checksum(json.loads(json.dumps(result)))
    write_json(folder / RESULT, result)
    return result


def read_result(folder: Path) -> dict | None:
    """The result in a cell's folder; none where there is none.

    Raises:
        DamagedResult: where it cannot be read, lacks something, or is not what was written.
    """
    path = folder / RESULT
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except json.JSONDecodeError as error:
        raise DamagedResult(f"{path}, line {error.lineno}: cut short or damaged ({error.msg})") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedResult(f"{path} cannot be read ({error})") from error
    wrong = _wrong_fields(result)
    if wrong:
        raise DamagedResult(f"{path}: {', '.join(wrong)} is missing or of the wrong type")
    if KEY not in result:
        raise DamagedResult(f"{path} has no checksum: an earlier version has written it")
    if not take_checksum(dict(result)):
        raise DamagedResult(f"{path} has been changed since it was written")
    return result


def _wrong_fields(result: object) -> list[str]:
    """The fields of a result that are missing or of the wrong type."""
    if not isinstance(result, dict):
        return list(FIELDS)
    wrong = [key for key, kind in FIELDS.items() if not isinstance(result.get(key), kind)]
    wrong += [key for key, kind in FURTHER_FIELDS.items() if key in result and not isinstance(result[key], kind)]
    if "metrics" not in wrong:
        for split, values in result["metrics"].items():
            if not isinstance(values, dict) or not all(isinstance(value, NUMBER) for value in values.values()):
                wrong.append(f"metrics.{split}")
    return wrong


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
        return Run(seed, folder, error=_read_error(folder)), ""
    reason = outdated(folder, result)
    if reason:
        return Run(seed, folder, error=_read_error(folder)), reason
    if not math.isfinite(result["score"]):
        return Run(seed, folder, error=f"its score is {result['score']}: {folder / RESULT} has the metrics"), ""
    return Run(seed, folder, result), ""


def _read_error(folder: Path) -> str | None:
    """Why a cell has failed, if it has."""
    path = folder / ERROR
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["error"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        return f"{path} cannot be read"


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


def _average_json(average: Average | None, without: Iterable[str]) -> dict | None:
    if average is None:
        return None
    wanted = [name for name in GLUE if name not in without]
    return {
        "value": average.value,
        "tasks": list(average.tasks),
        "missing_tasks": [name for name in wanted if name not in average.tasks],
        "over_seeds": _statistics_json(average.over_seeds),
    }


def _statistics_json(value: Statistics | None) -> dict | None:
    return None if value is None else dataclasses.asdict(value)
