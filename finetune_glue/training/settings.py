"""The hyper-parameters of a cell: what holds for all tasks, for one task, and at a point of the grid."""

import dataclasses
import itertools
import math
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from common.config.keys import Range, find_problem
from common.config.yaml_config import ConfigurationError, convert, suggest
from experiments.cell_folder import DEFAULT


AtLeastOne = Annotated[int, Range(1, math.inf)]
AtLeastOneOrNone = Annotated[int | None, Range(1, math.inf)]
Positive = Annotated[float, Range(0, math.inf, above=True, below=True)]
NotNegative = Annotated[float, Range(0, math.inf, below=True)]
Decay = Annotated[float, Range(0, 1, below=True)]


@dataclasses.dataclass(frozen=True)
class Hyperparameters:
    """How a model is fine-tuned on a task. Names are those of `transformers.TrainingArguments` where it has them."""

    learning_rate: Positive = 2e-5
    """Learning rate at the end of the warm-up."""
    batch_size: AtLeastOne = 32
    """Rows of one optimiser step, over all processes."""
    num_train_epochs: Positive = 10.0
    """Passes over the training rows."""
    max_steps: AtLeastOneOrNone = None
    """Length of the training in steps, instead of the epochs."""
    warmup_steps: NotNegative = 0.06
    """Steps over which the learning rate rises; below 1: a share of all steps."""
    lr_scheduler_type: Literal["linear", "cosine", "polynomial", "constant", "constant_with_warmup"] = "linear"
    """Schedule after the warm-up."""
    weight_decay: NotNegative = 0.1
    """Decoupled weight decay; biases and norms have none."""
    adam_beta1: Decay = 0.9
    """Decay of the mean of the gradients."""
    adam_beta2: Decay = 0.98
    """Decay of the mean of their squares."""
    adam_epsilon: Positive = 1e-6
    """Added to the divisor of a step."""
    max_grad_norm: NotNegative = 0.0
    """Norm that gradients are clipped to; 0: they are not."""
    max_length: Annotated[int, Range(8, math.inf)] = 512
    """Tokens of a row; the rest is cut off."""
    model: dict = dataclasses.field(default_factory=dict)
    """Fields of the model's configuration: dropouts, classifier_pooling and the like. What an architecture does not
    have is left out, which is said."""
    evaluations_per_epoch: AtLeastOne = 1
    """Evaluations on the first validation split in each epoch."""
    load_best_model_at_end: bool = True
    """Take the weights of the evaluation with the best score; else those of the last step."""
    early_stopping_patience: AtLeastOneOrNone = None
    """Evaluations without a better score after which training ends; null: none."""
    group_by_length: bool = True
    """Put rows of like length into a batch."""

    def validate(self, place: str):
        """Raise a `ConfigurationError` for a value that makes no sense.

        Args:
            place: where the hyper-parameters come from, for the message.
        """

        def require(key: str, fulfilled: bool, message: str):
            if not fulfilled:
                raise ConfigurationError(f"{place}: {key} is {getattr(self, key)!r}: it {message}.")

        if problem := find_problem(self):
            require(problem[0], False, problem[1])
        require("warmup_steps", self.warmup_steps < 1 or self.warmup_steps.is_integer(), "must be whole, or below 1")
        require("model", all(isinstance(field, str) for field in self.model), "must map names of fields to values")
        require(
            "early_stopping_patience",
            self.early_stopping_patience is None or self.load_best_model_at_end,
            "must be null where load_best_model_at_end is false",
        )


TYPES = typing.get_type_hints(Hyperparameters)


def settings(
    task: str, for_all: dict[str, Any], per_task: dict[str, dict[str, Any]], grid: dict[str, list]
) -> Iterator[tuple[str, Hyperparameters]]:
    """The name and the hyper-parameters of each point of the grid for a task.

    Args:
        task: its name.
        for_all: hyper-parameters of all tasks.
        per_task: of single tasks, which come before those of all.
        grid: values to try of some of them, which come before both. A key `model.NAME` is a field of the model.

    Raises:
        ConfigurationError: for an unknown key, a value of the wrong type, or one that makes no sense.
    """
    base = _checked("hyperparameters", for_all)
    own = _checked(f"per_task.{task}", per_task.get(task, {}))
    base = {**base, **own, "model": {**base.get("model", {}), **own.get("model", {})}}
    for values in itertools.product(*grid.values()):
        point = dict(zip(grid, values, strict=True))
        merged = {**base, "model": dict(base["model"])}
        for key, value in point.items():
            outer, _, field = str(key).partition(".")
            if field and outer == "model":
                merged["model"][field] = value
            else:
                merged |= _checked("grid", {key: value})
        hyperparameters = Hyperparameters(**merged)
        hyperparameters.validate(f"hyper-parameters of {task}")
        yield ",".join(f"{key}={_short(value)}" for key, value in point.items()) or DEFAULT, hyperparameters


def _checked(place: str, values: dict[str, Any]) -> dict[str, Any]:
    for key in values:
        if key not in TYPES:
            raise ConfigurationError(f"{place}: unknown key {key!r}.{suggest(key, list(TYPES))}")
    return {key: convert(f"{place}.{key}", value, TYPES[key]) for key, value in values.items()}


def _short(value: Any) -> str:
    """A value in the name of a folder."""
    return f"{value:g}" if isinstance(value, float) else str(value).replace("/", "-")
