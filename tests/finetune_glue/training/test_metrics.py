"""Metrics: by hand on small cases, by their formulas on random ones, and where they are not defined."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn import functional

from common.errors import UserError
from finetune_glue.data.tasks import TASKS
from finetune_glue.training.metrics import IGNORED, METRICS, check_metrics, evaluate, predicted, score, summed_loss


# By hand: 3 true positives, 1 false positive, 2 false negatives, 2 true negatives.
LABELS = np.array([1, 1, 1, 0, 1, 1, 0, 0])
PREDICTIONS = np.array([1, 1, 1, 1, 0, 0, 0, 0])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("accuracy", 5 / 8),
        ("f1", 2 * 3 / (2 * 3 + 1 + 2)),
        ("macro_f1", (2 / 3 + 2 * 2 / (2 * 2 + 1 + 2)) / 2),
        ("matthews_correlation", (3 * 2 - 1 * 2) / math.sqrt(4 * 5 * 3 * 4)),
    ],
)
def test_by_hand(name: str, value: float):
    assert METRICS[name](PREDICTIONS, LABELS) == pytest.approx(value, abs=1e-12)


def test_correlations_by_hand():
    labels, predictions = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 4.0, 3.0, 10.0])
    # Deviations from the means 2.5 and 4.5; ranks 1, 3, 2, 4.
    pearson = (1.5 * 3.5 + 0.5 * 0.5 + 0.5 * -1.5 + 1.5 * 5.5) / math.sqrt(5 * 45)
    assert METRICS["pearson"](predictions, labels) == pytest.approx(pearson)
    assert METRICS["spearman"](predictions, labels) == pytest.approx(1 - 6 * 2 / (4 * 15))


def test_f1_is_that_of_label_1():
    ones, zeros = np.ones(4, dtype=int), np.zeros(4, dtype=int)
    assert METRICS["f1"](ones, ones) == 1.0
    assert METRICS["f1"](zeros, zeros) == 0.0


def test_random_cases():
    """Against formulas written out, with three labels and with ties."""
    generator = np.random.default_rng(0)
    for _ in range(20):
        labels, predictions = generator.integers(0, 3, 50), generator.integers(0, 3, 50)
        table = np.zeros((3, 3))
        np.add.at(table, (labels, predictions), 1)
        correct, total, true, guessed = np.trace(table), table.sum(), table.sum(1), table.sum(0)
        expected = (correct * total - true @ guessed) / math.sqrt(
            (total**2 - guessed @ guessed) * (total**2 - true @ true)
        )
        assert METRICS["matthews_correlation"](predictions, labels) == pytest.approx(expected)
        assert METRICS["accuracy"](predictions, labels) == pytest.approx(correct / total)
        assert METRICS["macro_f1"](predictions, labels) == pytest.approx(
            (2 * np.diag(table) / (true + guessed)).mean()
        )
        numbers = generator.normal(size=50)
        assert METRICS["pearson"](numbers, labels) == pytest.approx(np.corrcoef(numbers, labels)[0, 1])
        ranked = np.corrcoef(stats.rankdata(numbers), stats.rankdata(labels))[0, 1]
        assert METRICS["spearman"](numbers, labels) == pytest.approx(ranked)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["matthews_correlation", "f1", "pearson", "spearman"])
def test_constant_predictions_count_as_0(name: str):
    labels = np.array([0, 1, 1, 0])
    assert METRICS[name](np.zeros(4), labels) == 0.0
    assert METRICS[name](labels, np.zeros(4)) == 0.0


def test_a_task():
    """Each metric of the task, their mean as the score, and the loss of a row."""
    logits = np.random.default_rng(1).normal(size=(8, 2)).astype(np.float32)
    values = evaluate(TASKS["mrpc"], logits, LABELS)
    assert list(values) == ["accuracy", "f1", "loss"]
    predictions = logits.argmax(axis=1)
    assert values["accuracy"] == pytest.approx((predictions == LABELS).mean())
    assert score(TASKS["mrpc"], values) == pytest.approx((values["accuracy"] + values["f1"]) / 2)
    expected = functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(LABELS))
    assert values["loss"] == pytest.approx(expected.item(), rel=1e-6)


def test_a_regression():
    logits, labels = np.array([[1.0], [2.5]], dtype=np.float32), np.array([0.0, 3.0], dtype=np.float32)
    assert predicted(TASKS["stsb"], logits).tolist() == [1.0, 2.5]
    assert evaluate(TASKS["stsb"], logits, labels)["loss"] == pytest.approx((1 + 0.25) / 2)


@pytest.mark.parametrize("name", ["cola", "stsb"])
def test_rows_without_a_label_do_not_count(name: str):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 1 if name == "stsb" else 2, generator=generator, requires_grad=True)
    labels = torch.tensor([1, IGNORED, 0, IGNORED], dtype=torch.float if name == "stsb" else torch.long)
    loss = summed_loss(TASKS[name], logits, labels)
    loss.backward()
    assert logits.grad is not None
    assert (logits.grad[[1, 3]] == 0).all() and (logits.grad[[0, 2]] != 0).all()
    assert loss.item() == pytest.approx(summed_loss(TASKS[name], logits[::2], labels[::2]).item())


@pytest.mark.parametrize("name", ["cola", "stsb"])
def test_an_evaluation_leaves_out_rows_without_a_label(name: str):
    task, generator = TASKS[name], np.random.default_rng(0)
    kind = np.float32 if name == "stsb" else np.int64
    logits = generator.normal(size=(9, 1 if name == "stsb" else 2)).astype(np.float32)
    labels = generator.integers(0, 2, 9).astype(kind)
    rows = [0, 2, 3, 5, 6, 7]
    missing = np.full(9, IGNORED, dtype=kind)
    missing[rows] = labels[rows]
    assert evaluate(task, logits, missing) == pytest.approx(evaluate(task, logits[rows], labels[rows]))
    with pytest.raises(UserError, match=f"^{name}: none of the 9 rows of an evaluation has a label"):
        evaluate(task, logits, np.full(9, IGNORED, dtype=kind))


@pytest.mark.parametrize(
    ("name", "metrics", "message"),
    [
        ("cola", ("acuracy",), "Did you mean 'accuracy'"),
        ("mnli", ("f1",), "use macro_f1"),
        ("cola", ("pearson",), "use accuracy, f1, macro_f1, matthews_correlation"),
        ("stsb", ("accuracy",), "use pearson, spearman"),
    ],
)
def test_metrics_that_a_task_cannot_have(name: str, metrics: tuple[str, ...], message: str):
    with pytest.raises(UserError, match=message):
        check_metrics(dataclasses.replace(TASKS[name], metrics=metrics))


def test_all_tasks_have_metrics():
    for task in TASKS.values():
        check_metrics(task)
