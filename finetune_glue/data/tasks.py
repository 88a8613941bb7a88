"""What a task is, and the tasks of GLUE: nine, and the diagnostics."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.tasks import ScoredTask, Suite


SPLIT_TITLES = {"validation_matched": "m", "validation_mismatched": "mm"}


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


@dataclass(frozen=True, kw_only=True)
class Task(ScoredTask):
    """What a model is to learn, and how it is judged.

    Args:
        name: as in the Hub's `nyu-mll/glue`, or the name of the description file.
        metrics: keys of `metrics.METRICS`.
        problem: "classification", "regression" or "multiple_choice".
        text_columns: one or two columns of text; of a multiple choice, the context.
        labels: as GLUE's files and server have them, in the order of ids; none for a regression.
        choice_columns: of a multiple choice, the texts to choose from, in the order of labels.
        label_names: what the labels mean, in the same order; as on the Hub.
        label_range: smallest and largest value of a regression's labels.
        training_task: whose models are judged on this task, which has no training data.
        source: where its data are.
    """

    problem: str
    text_columns: tuple[str, ...]
    labels: tuple[str, ...]
    choice_columns: tuple[str, ...] = ()
    label_names: tuple[str, ...] = ()
    label_range: tuple[float, float] | None = None
    training_task: str | None = None
    train_split: str = "train"
    test_splits: tuple[str, ...] = ("test",)
    source: Source = field(default=Source(), compare=False, repr=False)

    @property
    def splits(self) -> tuple[str, ...]:
        """All splits; of a task without training data, those it is judged on."""
        return (() if self.training_task else (self.train_split,)) + self.validation_splits + self.test_splits

    def split_title(self, split: str) -> str:
        return SPLIT_TITLES.get(split, split)


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
SUITE = Suite(
    title="GLUE",
    tasks=tuple(task for task in TASKS.values() if task.training_task is None),
    averages={"GLUE": (), "GLUE without WNLI": ("wnli",)},
)
GLUE = SUITE.names
