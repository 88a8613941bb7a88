"""The tasks: the nine of GLUE, its diagnostics, and one's own, which a YAML file describes."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.config.yaml_config import ConfigurationError, read_values, suggest
from common.errors import UserError


IGNORED = -100  # label of rows that count for nothing; Transformers has the same
PROBLEMS = {  # the metrics of a description that names none
    "classification": ("accuracy",),
    "regression": ("pearson", "spearman"),
    "multiple_choice": ("accuracy",),
}


@dataclass(frozen=True)
class Columns:
    """Where the columns of a task are in its data. Dots lead into nested ones: `question.choices.text`."""

    text: tuple[str, ...]
    choices: tuple[str, ...] = ()  # a column for each choice, or one that holds the list of them
    label: str = "label"

    @property
    def paths(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.text, *self.choices, self.label)


@dataclass(frozen=True)
class Source:
    """Where the data of a task are: on the Hub, in files, or in either."""

    hub: str | None = None  # ID, or ID@REVISION
    hub_config: str | None = None
    hub_splits: dict[str, str] = field(default_factory=dict)  # name on the Hub of each split
    hub_columns: Columns | None = None
    files: dict[str, tuple[str, ...]] = field(default_factory=dict)  # of each split, joined in this order
    file_columns: Columns | None = None
    header: tuple[str, ...] = ()  # columns of CSV and TSV files without a header line
    folder: Path = Path()  # that relative files are in, where no folder of data is given
    validation_share: float = 0.0  # of the training rows, held out where there is no validation split


@dataclass(frozen=True)
class Task:
    """What a model is to learn, and how it is judged.

    Args:
        name: as in the Hub's `nyu-mll/glue`, or the name of the description file.
        title: as papers write it.
        problem: "classification", "regression" or "multiple_choice".
        text_columns: one or two columns of text; of a multiple choice, the context.
        labels: as GLUE's files and server have them, in the order of ids; none for a regression.
        metrics: keys of `metrics.METRICS`; their mean is the score.
        choice_columns: of a multiple choice, the texts to choose from, in the order of labels.
        label_names: what the labels mean, in the same order; as on the Hub.
        label_range: smallest and largest value of a regression's labels.
        training_task: whose models are judged on this task, which has no training data.
        source: where its data are.
    """

    name: str
    title: str
    problem: str
    text_columns: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    choice_columns: tuple[str, ...] = ()
    label_names: tuple[str, ...] = ()
    label_range: tuple[float, float] | None = None
    training_task: str | None = None
    train_split: str = "train"
    validation_splits: tuple[str, ...] = ("validation",)
    test_splits: tuple[str, ...] = ("test",)
    source: Source = field(default=Source(), compare=False, repr=False)

    @property
    def score_name(self) -> str:
        """What the score is the mean of, in words."""
        return " and ".join(metric.replace("_", " ") for metric in self.metrics)

    @property
    def splits(self) -> tuple[str, ...]:
        """All splits; of a task without training data, those it is judged on."""
        return (() if self.training_task else (self.train_split,)) + self.validation_splits + self.test_splits


GLUE_ON_HUB = "nyu-mll/glue"
BINARY = ("0", "1")
ENTAILMENT = ("entailment", "not_entailment")
INFERENCE = ("entailment", "neutral", "contradiction")


def _glue(name: str, title: str, text: str, labels: tuple[str, ...], metrics: str, **others: Any) -> Task:
    columns = Columns(tuple(text.split()))
    task = Task(
        name=name,
        title=title,
        problem="classification" if labels else "regression",
        text_columns=columns.text,
        labels=labels,
        metrics=tuple(metrics.split()),
        **{"label_names": labels, **others},
    )
    splits = {split: split for split in task.splits}
    return dataclasses.replace(task, source=Source(GLUE_ON_HUB, name, splits, columns))


MATCHED = {
    "validation_splits": ("validation_matched", "validation_mismatched"),
    "test_splits": ("test_matched", "test_mismatched"),
}

# In the order of the table of the GLUE paper.
TASKS = {
    task.name: task
    for task in (
        _glue("cola", "CoLA", "sentence", BINARY, "matthews_correlation", label_names=("unacceptable", "acceptable")),
        _glue("sst2", "SST-2", "sentence", BINARY, "accuracy", label_names=("negative", "positive")),
        _glue(
            "mrpc", "MRPC", "sentence1 sentence2", BINARY, "accuracy f1", label_names=("not_equivalent", "equivalent")
        ),
        _glue("stsb", "STS-B", "sentence1 sentence2", (), "pearson spearman", label_range=(0.0, 5.0)),
        _glue("qqp", "QQP", "question1 question2", BINARY, "accuracy f1", label_names=("not_duplicate", "duplicate")),
        _glue("mnli", "MNLI", "premise hypothesis", INFERENCE, "accuracy", **MATCHED),
        _glue("qnli", "QNLI", "question sentence", ENTAILMENT, "accuracy"),
        _glue("rte", "RTE", "sentence1 sentence2", ENTAILMENT, "accuracy"),
        _glue("wnli", "WNLI", "sentence1 sentence2", BINARY, "accuracy", label_names=("not_entailment", "entailment")),
        _glue(
            "ax",
            "AX",
            "premise hypothesis",
            INFERENCE,
            "matthews_correlation",
            training_task="mnli",
            validation_splits=(),
        ),
    )
}
GLUE = tuple(name for name, task in TASKS.items() if task.training_task is None)


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


def as_text(value: object) -> str:
    """A label as text: JSON's true is `true`, and a whole number is written without a point."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value)


def _texts(value: str | list) -> tuple[str, ...]:
    return tuple(as_text(entry) for entry in ([value] if isinstance(value, str) else value))
