"""The configuration of fine-tuning: a YAML file, with `--key value` overrides."""

import dataclasses
import math
from typing import Annotated, Literal

from common.config.keys import Range, find_problem
from common.config.yaml_config import ConfigurationError, read_configuration, suggest
from finetune_glue.data.description import find_tasks
from finetune_glue.data.tasks import GLUE, TASKS, Task
from finetune_glue.training.model_names import LONGEST_NAME, named_models
from finetune_glue.training.settings import Hyperparameters, settings


TRANSFER_FROM = "mnli"
TRANSFER_TO = ("rte", "mrpc", "stsb")


@dataclasses.dataclass
class GlueConfig:
    """Every key of `configs/glue/*.yaml`, with its default."""

    output_dir: str
    """The run's folder: cells, tables, picture, models."""

    # What is fine-tuned, and on what
    model: str | list = dataclasses.field(default_factory=list)
    """One or several encoders of Transformers: folders, or ids of the Hub (ID@REVISION for a revision). NAME=MODEL
    gives one a name for tables and folders; untrained:MODEL is its architecture and tokenizer with fresh weights."""
    trust_remote_code: bool = False
    """Whether models may run Python code that they bring along."""
    tasks: str | list = "all"
    """Names of GLUE's tasks, `all` of them, or files of configs/tasks."""
    data: str = "hub"
    """Where GLUE's data are: hub, hub@REVISION, or a folder in GLUE's original layout."""

    # How
    hyperparameters: dict = dataclasses.field(default_factory=dict)
    """Hyper-parameters of all tasks, also as --hyperparameters.KEY; their keys follow below."""
    per_task: dict = dataclasses.field(default_factory=dict)
    """Hyper-parameters of single tasks, by the task's name."""
    grid: dict = dataclasses.field(default_factory=dict)
    """Lists of values of some hyper-parameters, also as --grid.KEY; each combination is run."""
    seeds: Annotated[int, Range(1, 1000)] = 5
    """Each combination is run with the seeds 1 to this number."""
    transfer: bool = False
    """Start RTE, MRPC and STS-B from the best model of MNLI instead of the pretrained one."""

    # On what machine
    side_by_side: Annotated[int, Range(1, 1000)] = 1
    """Cells that run at once, each on a device of its own where there are several."""
    per_device_train_batch_size: Annotated[int | None, Range(1, math.inf)] = None
    """Rows that a device takes at once at most; null: all its share."""
    mixed_precision: Literal["no", "bf16"] | None = None
    """bf16 or no; null: as the launcher says."""

    # What is kept
    save_models: Literal["best", "all", "none"] = "best"
    """Which fine-tuned models are kept: the best of each task and model, all, or none."""
    push_to_hub: str | None = None
    """NAMESPACE or NAMESPACE/PREFIX of the repositories that the best models go to."""
    hub_private_repo: bool | None = None
    """Whether a new repository is private; null: as the namespace has it."""

    def task_list(self) -> list[Task]:
        """The tasks in the order of GLUE's table, one's own after them.

        Raises:
            ConfigurationError: for a name that is no task.
        """
        entries = self.tasks if isinstance(self.tasks, list) else self.tasks.split(",")
        tasks: dict[str, Task] = {}
        for task in find_tasks([str(entry).strip() for entry in entries]):
            if task.training_task:
                raise ConfigurationError(
                    f"tasks: {task.name} has no training data: every model of {task.training_task} is judged on it; "
                    "name that task."
                )
            if task.name in tasks or (task.name in TASKS and task is not TASKS[task.name]):
                raise ConfigurationError(f"tasks: there are two of the name {task.name!r}: rename a description file.")
            tasks[task.name] = task
        order = [*GLUE, *tasks]
        return sorted(tasks.values(), key=lambda task: order.index(task.name))

    def models(self) -> dict[str, str]:
        """Folder or id of each model by its name."""
        return named_models(self.model if isinstance(self.model, list) else [self.model])

    def validate(self):
        """Raise a `ConfigurationError` that names the key where a value makes no sense."""
        if problem := find_problem(self):
            self._require(problem[0], False, problem[1])
        tasks = self.task_list()
        self.models()
        for name, values in self.per_task.items():
            known = [*GLUE, *(task.name for task in tasks)]
            if name not in known:
                raise ConfigurationError(f"per_task: {name!r} is no task.{suggest(name, known)}")
            if not isinstance(values, dict):
                raise ConfigurationError(f"per_task.{name} is {values!r}: it must be a mapping of hyper-parameters.")
        for key, values in self.grid.items():
            if not isinstance(values, list) or not values:
                raise ConfigurationError(f"grid.{key} is {values!r}: it must be a list of values to try.")
            if len({str(value) for value in values}) < len(values):
                raise ConfigurationError(f"grid.{key} lists a value twice.")
        for task in tasks:
            names = [name for name, _ in settings(task.name, self.hyperparameters, self.per_task, self.grid)]
            if len(set(names)) < len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise ConfigurationError(f"grid: two of its points would both be called {twice}.")
            if len(names[-1].encode()) > LONGEST_NAME:
                raise ConfigurationError(f"grid: {names[-1]} is too long for the name of a folder: try fewer keys.")
        if self.transfer:
            names = [task.name for task in tasks]
            self._require(
                "transfer",
                TRANSFER_FROM in names and any(name in names for name in TRANSFER_TO),
                f"needs {TRANSFER_FROM} among the tasks, and one of {', '.join(TRANSFER_TO)}",
            )
            self._require("save_models", self.save_models != "none", "must be best or all where transfer is true")

    def _require(self, key: str, fulfilled: bool, message: str):
        if not fulfilled:
            raise ConfigurationError(f"{key} is {getattr(self, key)!r}: it {message}.")


def load_config(arguments: list[str], about: str = "") -> GlueConfig:
    """Read `FILE.yaml --key value ...`; keys of the mappings are written `--hyperparameters.KEY` and `--grid.KEY`.

    Args:
        about: what `--help` prints before the keys.

    Raises:
        ConfigurationError: for a file that is not there or not YAML, an unknown key, or a value that cannot be used.
    """
    config = read_configuration(GlueConfig, arguments, {"hyperparameters": Hyperparameters, "grid": None}, about)
    config.validate()
    return config
