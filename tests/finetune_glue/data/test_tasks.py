"""The tasks of GLUE, and what a task description may say."""

from pathlib import Path

import pytest
import yaml

from common.errors import UserError
from finetune_glue.data.description import find_tasks, read_task
from finetune_glue.data.tasks import GLUE, TASKS


CONFIGS = Path(__file__).resolve().parents[3] / "configs" / "tasks"
REVIEWS = {"problem": "classification", "text": "review", "labels": ["bad", "good"], "files": {"train": "train.csv"}}


def describe(folder: Path, **values: object) -> Path:
    path = folder / "reviews.yaml"
    kept = {key: value for key, value in {**REVIEWS, **values}.items() if value is not None}
    path.write_text(yaml.safe_dump(kept, sort_keys=False))
    return path


def test_tasks_of_glue_are_those_of_the_paper() -> None:
    assert GLUE == ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")
    assert {name: task.metrics for name, task in TASKS.items()} == {
        "cola": ("matthews_correlation",),
        "sst2": ("accuracy",),
        "mrpc": ("accuracy", "f1"),
        "stsb": ("pearson", "spearman"),
        "qqp": ("accuracy", "f1"),
        "mnli": ("accuracy",),
        "qnli": ("accuracy",),
        "rte": ("accuracy",),
        "wnli": ("accuracy",),
        "ax": ("matthews_correlation",),
    }
    assert TASKS["ax"].training_task == "mnli"
    assert TASKS["ax"].splits == ("test",)
    assert TASKS["mnli"].validation_splits == ("validation_matched", "validation_mismatched")
    assert TASKS["stsb"].problem == "regression"


def test_names_are_looked_up_and_wrong_ones_get_a_suggestion(tmp_path: Path) -> None:
    described = describe(tmp_path)
    assert [task.name for task in find_tasks(["rte", "ax", str(described), "rte"])] == ["rte", "ax", "reviews"]
    assert tuple(task.name for task in find_tasks(["all"])) == GLUE
    with pytest.raises(UserError, match="'sst-2' is no task. Did you mean 'sst2'?"):
        find_tasks(["sst-2"])
    with pytest.raises(UserError, match="nothing.yaml cannot be read: No such file"):
        find_tasks([str(tmp_path / "nothing.yaml")])


def test_a_description_may_be_short(tmp_path: Path) -> None:
    task = read_task(describe(tmp_path))
    assert (task.name, task.title, task.text_columns) == ("reviews", "reviews", ("review",))
    assert (task.labels, task.label_names, task.metrics) == (("bad", "good"), ("bad", "good"), ("accuracy",))
    assert (task.validation_splits, task.test_splits) == (("validation",), ())
    assert task.source.validation_share == 0.1
    assert task.source.folder == tmp_path


def test_a_description_may_name_labels_metrics_and_splits(tmp_path: Path) -> None:
    task = read_task(
        describe(
            tmp_path,
            title="Reviews",
            text=["headline", "review"],
            labels={0: "bad", 1: "good"},
            metrics=["accuracy", "f1"],
            files={"train": ["a.csv", "b.csv"], "validation_old": "c.csv", "validation_new": "d.csv", "test": "e.csv"},
        )
    )
    assert (task.labels, task.label_names) == (("0", "1"), ("bad", "good"))
    assert task.score_name == "accuracy and f1"
    assert task.splits == ("train", "validation_old", "validation_new", "test")
    assert task.source.files["train"] == ("a.csv", "b.csv")


def test_a_regression_has_a_range_and_its_own_metrics(tmp_path: Path) -> None:
    task = read_task(describe(tmp_path, problem="regression", labels=None, label_range=[1, 5]))
    assert (task.labels, task.label_range, task.metrics) == ((), (1.0, 5.0), ("pearson", "spearman"))


def test_ready_descriptions_can_be_read() -> None:
    tasks = {path.stem: read_task(path) for path in sorted(CONFIGS.glob("*.yaml"))}
    assert {name: (task.problem, len(task.labels)) for name, task in tasks.items()} == {
        "commonsenseqa": ("multiple_choice", 5),
        "imdb": ("classification", 2),
        "race": ("multiple_choice", 4),
        "snli": ("classification", 3),
    }
    assert tasks["race"].choice_columns == ("choice0", "choice1", "choice2", "choice3")
    assert tasks["imdb"].splits == ("train", "validation", "test")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"problem": None}, "the key problem is missing"),
        ({"text": None}, "the key text is missing"),
        ({"problem": "ranking"}, "problem is 'ranking': it must be one of classification, regression"),
        ({"txt": "review"}, "txt is not a key of the configuration. Did you mean 'text'?"),
        ({"text": ["a", "b", "c"]}, "text is .*: it must name one or two columns"),
        ({"labels": []}, "labels is .*: it must list two or more labels"),
        ({"labels": ["a", "a"]}, "labels is .*: a label is listed twice"),
        ({"problem": "regression"}, "labels is .*: a regression has none"),
        ({"problem": "multiple_choice"}, "choices is .*: multiple_choice needs it"),
        ({"problem": "multiple_choice", "choices": ["a"]}, "choices is .*: it must be 2, one for each label"),
        ({"choices": "options"}, "choices is .* no other problem has it"),
        ({"label_range": [5, 1]}, "label_range is .*: it must be the lowest and highest number"),
        ({"label_range": ["low", "high"]}, "label_range is .*: it must be the lowest and highest number"),
        ({"validation_share": 1.0}, "validation_share is 1.0: it must be above 0 and below 1"),
        ({"files": None}, "files is .*: name files, or a data set of the Hub"),
        (
            {"files": {"dev": "a.csv", "train": "b.csv"}},
            "files is .*: 'dev' must be train, validation, test, or start",
        ),
        ({"files": {"test": "a.csv"}}, "files is .*: the split train is missing"),
        ({"file_columns": {"text": "review"}}, "text is renamed, but is no column of the task"),
        ({"files": {"train": None}}, "files is {'train': None}: a split has a file or a list"),
        ({"files": {"train": []}}, "a split has a file or a list"),
        ({"files": {"train": {"a": "b"}}}, "a split has a file or a list"),
        ({"file_columns": {"review": 5}}, "file_columns is {'review': 5}: a name must be text"),
        ({"labels": [["a"], ["b"]]}, "labels is .*: each must be text, a number, or true or false"),
        ({"labels": {"a": "bad", "b": "bad"}}, "labels is .*: two labels have the same name"),
        ({"text": ["review", "review"]}, "text is .*: the columns review, review, .* are not all different"),
        ({"label": "review"}, "text is 'review': the columns review, review are not all different"),
        ({"labels": "good"}, "labels is 'good': it must be a list or a mapping"),
    ],
)
def test_what_can_be_wrong_with_a_description(tmp_path: Path, values: dict, message: str) -> None:
    path = describe(tmp_path, **values)
    with pytest.raises(UserError, match=message):
        read_task(path)
