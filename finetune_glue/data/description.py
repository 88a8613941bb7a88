"""One's own tasks, which a YAML file describes, and tasks by their names."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from common.config.yaml_config import ConfigurationError, read_values, suggest
from common.errors import UserError
from finetune_glue.data.rows import as_text
from finetune_glue.data.tasks import GLUE, TASKS, Columns, Source, Task


PROBLEMS = {  # the metrics of a description that names none
    "classification": ("accuracy",),
    "regression": ("pearson", "spearman"),
    "multiple_choice": ("accuracy",),
}


def find_tasks(names: list[str]) -> list[Task]:
    """The tasks of that name: of GLUE, `all` of them, `ax`, or description files.

    Raises:
        UserError: for a name that is no task, with the nearest known one, or a description that cannot be used.
    """
    tasks: list[Task] = []
    for name in names:
        if name == "all":
            tasks += [TASKS[known] for known in GLUE]
        elif name in TASKS:
            tasks.append(TASKS[name])
        elif name.endswith((".yaml", ".yml")):
            tasks.append(read_task(Path(name)))
        else:
            raise UserError(f"{name!r} is no task.{suggest(name.lower(), [*TASKS, 'all'])}")
    return list(dict.fromkeys(tasks))


@dataclass
class _Description:
    """The keys of a task description: see docs/fine-tuning.md, section "Data"."""

    problem: str
    text: str | list
    title: str | None = None
    label: str = "label"
    labels: list | dict = field(default_factory=list)
    label_range: list | None = None
    choices: str | list = field(default_factory=list)
    metrics: str | list = field(default_factory=list)
    hub: str | None = None
    hub_config: str | None = None
    hub_splits: dict = field(default_factory=lambda: {"train": "train", "validation": "validation", "test": "test"})
    hub_columns: dict = field(default_factory=dict)
    files: dict = field(default_factory=dict)
    file_columns: dict = field(default_factory=dict)
    header: list = field(default_factory=list)
    validation_share: float = 0.1


def read_task(path: Path) -> Task:
    """The task that a YAML file describes; its name is that of the file.

    Raises:
        UserError: naming the file and the key, for what is missing, unknown or makes no sense.
    """
    known = {key.name: key.type for key in dataclasses.fields(_Description)}
    values = read_values(path, [], known, nested=[])
    for key in ("problem", "text"):
        if key not in values:
            raise ConfigurationError(f"{path}: the key {key} is missing.")
    description = _Description(**values)
    labels = [as_text(label) for label in description.labels]
    names = list(description.labels.values()) if isinstance(description.labels, dict) else labels
    text, metrics, choices = _texts(description.text), _texts(description.metrics), _texts(description.choices)
    splits = list(dict.fromkeys([*description.files, *(description.hub_splits if description.hub else ())]))
    listed = isinstance(description.choices, str)  # one column holds all choices
    _check(path, description, labels, splits)

    def columns(renamed: dict[str, str]) -> Columns:
        for key in renamed:
            if key not in (*text, *choices, description.label):
                raise ConfigurationError(f"{path}: {key} is renamed, but is no column of the task.")
        return Columns(
            tuple(renamed.get(column, column) for column in text),
            tuple(renamed.get(column, column) for column in choices),
            renamed.get(description.label, description.label),
        )

    return Task(
        name=path.stem,
        title=description.title or path.stem,
        problem=description.problem,
        text_columns=text,
        labels=tuple(labels),
        metrics=metrics or PROBLEMS[description.problem],
        choice_columns=tuple(f"choice{place}" for place in range(len(labels))) if listed else choices,
        label_names=tuple(as_text(name) for name in names),
        label_range=(float(description.label_range[0]), float(description.label_range[1]))
        if description.label_range
        else None,
        validation_splits=tuple(split for split in splits if split.startswith("validation")) or ("validation",),
        test_splits=tuple(split for split in splits if split.startswith("test")),
        source=Source(
            description.hub,
            description.hub_config,
            description.hub_splits,
            columns(description.hub_columns),
            {split: _texts(files) for split, files in description.files.items()},
            columns(description.file_columns),
            _texts(description.header),
            path.parent,
            description.validation_share,
        ),
    )


def _check(path: Path, description: _Description, labels: list[str], splits: list[str]):
    """Raise a `ConfigurationError` where keys of a description do not fit each other."""

    def require(key: str, fulfilled: object, message: str):
        if not fulfilled:
            raise ConfigurationError(f"{path}: {key} is {getattr(description, key)!r}: {message}.")

    choice = description.problem == "multiple_choice"
    require("problem", description.problem in PROBLEMS, f"it must be one of {', '.join(PROBLEMS)}")
    require("text", 1 <= len(_texts(description.text)) <= 2, "it must name one or two columns")
    if description.problem == "regression":
        require("labels", not labels, "a regression has none")
    else:
        require("labels", len(labels) > 1, "it must list two or more labels, or map them to names")
        require("labels", len(set(labels)) == len(labels), "a label is listed twice")
        names = list(description.labels.values()) if isinstance(description.labels, dict) else labels
        scalars = all(isinstance(name, str | int | float) for name in [*description.labels, *names])
        require("labels", scalars, "each must be text, a number, or true or false")
        require("labels", len({as_text(name) for name in names}) == len(names), "two labels have the same name")
    require("choices", bool(description.choices) == choice, "multiple_choice needs it, no other problem has it")
    if choice and isinstance(description.choices, list):
        require("choices", len(description.choices) == len(labels), f"it must be {len(labels)}, one for each label")
    columns = [*_texts(description.text), *_texts(description.choices), description.label]
    require("text", len(set(columns)) == len(columns), f"the columns {', '.join(columns)} are not all different")
    ends = description.label_range
    numbers = ends is None or (len(ends) == 2 and all(isinstance(end, int | float) for end in ends))
    require("label_range", numbers and (ends is None or ends[0] < ends[1]), "it must be the lowest and highest number")
    require("validation_share", 0 < description.validation_share < 1, "it must be above 0 and below 1")
    require("files", description.files or description.hub, "name files, or a data set of the Hub with the key hub")
    for key in ("hub_splits", "hub_columns", "file_columns"):
        require(key, all(isinstance(name, str) for name in getattr(description, key).values()), "a name must be text")
    for files in description.files.values():
        names = files if isinstance(files, list) else [files]
        require(
            "files", names and all(isinstance(name, str) for name in names), "a split has a file or a list of them"
        )
    for split in splits:
        key = "files" if split in description.files else "hub_splits"
        valid = split == "train" or str(split).startswith(("validation", "test"))
        require(key, valid, f"{split!r} must be train, validation, test, or start like the last two")
    require("files" if description.files else "hub_splits", "train" in splits, "the split train is missing")


def _texts(value: str | list) -> tuple[str, ...]:
    return tuple(as_text(entry) for entry in ([value] if isinstance(value, str) else value))
