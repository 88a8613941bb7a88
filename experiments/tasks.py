"""What cells and their results know of a task, and of tasks that papers report together."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ScoredTask:
    """A task as its results are reported.

    Args:
        name: in folders, commands and files.
        title: as papers write it.
        metrics: their mean on the first validation split is the score of a cell.
        validation_splits: the splits with labels that models are judged on; a result has metrics of each.
    """

    name: str
    title: str
    metrics: tuple[str, ...]
    validation_splits: tuple[str, ...] = ("validation",)

    @property
    def score_name(self) -> str:
        """What the score is the mean of, in words."""
        return " and ".join(metric.replace("_", " ") for metric in self.metrics)

    def split_title(self, split: str) -> str:
        """How tables call a validation split."""
        return split


@dataclass(frozen=True)
class Suite:
    """Tasks that papers report together.

    Args:
        title: as papers write it.
        tasks: in the order of its table.
        averages: the title of each average over the tasks' scores, with the names of the tasks that it leaves out.
    """

    title: str
    tasks: tuple[ScoredTask, ...]
    averages: dict[str, tuple[str, ...]]

    @property
    def names(self) -> tuple[str, ...]:
        """Those of its tasks."""
        return tuple(task.name for task in self.tasks)
