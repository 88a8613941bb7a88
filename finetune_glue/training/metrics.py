"""The metrics of GLUE and of one's own tasks, by scikit-learn and scipy, and the loss."""

import warnings
from collections.abc import Callable

import numpy as np
import torch
from scipy import stats
from sklearn import metrics
from torch.nn import functional

from common.config.yaml_config import suggest
from common.errors import UserError
from common.labels import IGNORED
from finetune_glue.data.tasks import Task


Metric = Callable[[np.ndarray, np.ndarray], float]


def _correlation(correlate: Callable) -> Metric:
    def correlation(predictions: np.ndarray, labels: np.ndarray) -> float:
        if is_constant(predictions) or is_constant(labels):
            return 0.0  # it is not defined
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", stats.NearConstantInputWarning)
            return float(correlate(predictions, labels).statistic)

    return correlation


def is_constant(values: np.ndarray) -> bool:
    return bool((values == values[0]).all())


# Of the predicted label ids (or numbers) and the true ones, both (rows,). The names are those of tasks' descriptions.
METRICS: dict[str, Metric] = {
    "accuracy": lambda predictions, labels: float(metrics.accuracy_score(labels, predictions)),
    # Of label 1, as in GLUE: of paraphrases and duplicates.
    "f1": lambda predictions, labels: float(metrics.f1_score(labels == 1, predictions == 1, zero_division=0.0)),
    "macro_f1": lambda predictions, labels: float(
        metrics.f1_score(labels, predictions, average="macro", zero_division=0.0)
    ),
    "matthews_correlation": lambda predictions, labels: float(metrics.matthews_corrcoef(labels, predictions)),
    "pearson": _correlation(stats.pearsonr),
    "spearman": _correlation(stats.spearmanr),
}


OF_NUMBERS = ("pearson", "spearman")


def check_metrics(task: Task):
    """Raise a `UserError` where a metric of the task is unknown, or is none for its kind of labels."""
    regression = task.problem == "regression"
    for name in task.metrics:
        if name not in METRICS:
            raise UserError(f"{task.name}: {name!r} is no metric.{suggest(name, list(METRICS))}")
        if (name in OF_NUMBERS) != regression:
            known = [metric for metric in METRICS if (metric in OF_NUMBERS) == regression]
            raise UserError(f"{task.name}: {name} is no metric of a {task.problem}: use {', '.join(known)}.")
        if name == "f1" and len(task.labels) != 2:
            raise UserError(
                f"{task.name}: f1 is that of the second of two labels; of {len(task.labels)} use macro_f1."
            )


def predicted(task: Task, logits: np.ndarray) -> np.ndarray:
    """Label ids (rows,), or the numbers of a regression, for logits (rows, labels)."""
    return logits.reshape(-1) if task.problem == "regression" else logits.argmax(axis=-1)


def summed_loss(task: Task, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross entropy in nats, or squared error, of all rows together that have a label.

    Args:
        logits: (rows, labels).
        labels: (rows,); `IGNORED` where there is none.
    """
    if task.problem == "regression":
        counted = labels != IGNORED
        errors = (logits.float().view(-1) - labels).square()
        return errors.masked_fill(~counted, 0.0).sum()
    return functional.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="sum")


def evaluate(task: Task, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The metrics of a task, and the loss of a row, over the rows that have a label.

    Args:
        logits: (rows, labels).
        labels: (rows,); `IGNORED` where there is none.

    Raises:
        UserError: where no row has one.
    """
    labelled = labels != IGNORED
    if not labelled.any():
        raise UserError(f"{task.name}: none of the {len(labels):,} rows of an evaluation has a label.")
    logits, labels = logits[labelled], labels[labelled]
    predictions = predicted(task, logits)
    values = {name: METRICS[name](predictions, labels) for name in task.metrics}
    loss = summed_loss(task, torch.from_numpy(logits), torch.from_numpy(labels))
    return {**values, "loss": loss.item() / len(labels)}


def score(task: Task, values: dict[str, float]) -> float:
    """The mean of a task's metrics."""
    return sum(values[name] for name in task.metrics) / len(task.metrics)
