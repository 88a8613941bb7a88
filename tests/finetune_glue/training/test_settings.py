"""Hyper-parameters: what comes before what, the points of a grid, and what cannot be."""

import re

import pytest

from common.config.yaml_config import ConfigurationError
from finetune_glue.training.settings import Hyperparameters, settings


def test_the_grid_comes_before_the_task_and_the_task_before_all():
    for_all = {"learning_rate": 1e-5, "batch_size": 16, "model": {"hidden_dropout_prob": 0.2, "a": 1}}
    per_task = {"rte": {"batch_size": 8, "weight_decay": 0, "model": {"a": 2}}}
    grid = {"learning_rate": [2e-5, 3e-5], "model.a": [3, 4]}
    points = dict(settings("rte", for_all, per_task, grid))
    assert list(points) == [
        "learning_rate=2e-05,model.a=3",
        "learning_rate=2e-05,model.a=4",
        "learning_rate=3e-05,model.a=3",
        "learning_rate=3e-05,model.a=4",
    ]
    last = points["learning_rate=3e-05,model.a=4"]
    assert (last.learning_rate, last.batch_size, last.weight_decay) == (3e-5, 8, 0.0)
    assert last.model == {"hidden_dropout_prob": 0.2, "a": 4}
    assert points["learning_rate=2e-05,model.a=3"].model["a"] == 3

    ((name, other),) = settings("cola", for_all, per_task, {})
    assert (name, other.batch_size, other.model["a"]) == ("default", 16, 1)


def test_nothing_given_is_what_the_class_says():
    assert list(settings("cola", {}, {}, {})) == [("default", Hyperparameters())]


@pytest.mark.parametrize(
    ("for_all", "per_task", "grid", "message"),
    [
        ({"learnin_rate": 1}, {}, {}, "hyperparameters: unknown key 'learnin_rate'. Did you mean 'learning_rate'?"),
        ({}, {"rte": {"bach_size": 1}}, {}, "per_task.rte: unknown key 'bach_size'. Did you mean 'batch_size'?"),
        ({}, {}, {"seed": [1]}, "grid: unknown key 'seed'."),
        ({}, {}, {1: [2]}, "grid: unknown key 1."),
        ({"model": {1: 2}}, {}, {}, "model is {1: 2}: it must map names of fields to values."),
        ({"batch_size": 1.5}, {}, {}, "hyperparameters.batch_size is 1.5: it must be a whole number."),
        ({"batch_size": 0}, {}, {}, "hyper-parameters of rte: batch_size is 0: it must be at least 1."),
        ({"warmup_steps": 1.5}, {}, {}, "hyper-parameters of rte: warmup_steps is 1.5: it must be whole, or below 1."),
        ({"lr_scheduler_type": "steps"}, {}, {}, "lr_scheduler_type is 'steps': it must be one of 'linear', 'cosine'"),
        ({"max_steps": 0}, {}, {}, "hyper-parameters of rte: max_steps is 0: it must be at least 1, or null."),
        ({"adam_beta1": 1.0}, {}, {}, "adam_beta1 is 1.0: it must be below 1."),
        ({"weight_decay": -0.1}, {}, {}, "weight_decay is -0.1: it must be at least 0."),
        ({"num_train_epochs": float("inf")}, {}, {}, "num_train_epochs is inf: it must be finite."),
        ({"max_length": 7}, {}, {}, "max_length is 7: it must be at least 8."),
        ({}, {}, {"learning_rate": [0.0]}, "learning_rate is 0.0: it must be above 0."),
        (
            {"early_stopping_patience": 2, "load_best_model_at_end": False}, {}, {},
            "early_stopping_patience is 2: it must be null where load_best_model_at_end is false.",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be(for_all: dict, per_task: dict, grid: dict, message: str):
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        list(settings("rte", for_all, per_task, grid))
