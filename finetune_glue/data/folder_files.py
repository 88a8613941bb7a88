"""A folder in the place of a file, as IMDb and RACE are published."""

from pathlib import Path

from common.errors import UserError
from common.files import is_folder
from finetune_glue.data.json_files import parsed_json
from finetune_glue.data.lines import lines_of
from finetune_glue.data.records import texts_of_row
from finetune_glue.data.rows import Rows
from finetune_glue.data.tasks import Task


def read_folder(task: Task, folder: Path) -> list[Rows]:
    """The rows of the `.txt` files below a folder, in the order of the files' names.

    Of a classification it holds a folder for each label, and each file there is a text. Of a multiple choice each file
    is a JSON object, in which the label and other columns list what belongs to one question after the other.

    Raises:
        UserError: naming the file, for what cannot be read, and for tasks that are neither.
    """
    if task.problem == "multiple_choice":
        return [_read_questions(task, path) for path in files_below(folder)]
    if task.problem == "regression" or len(task.text_columns) > 1:
        raise UserError(f"{folder} is a folder, but {task.name} is neither a classification of one text nor a choice.")
    return [_read_texts(task, folder, id) for id in range(len(task.labels))]


def files_below(folder: Path) -> list[Path]:
    """The `.txt` files below a folder in the order of their names."""
    paths = sorted(path for path in folder.rglob("*.txt") if path.is_file())
    if not paths:
        raise UserError(f"{folder} holds no .txt files.")
    return paths


def _text(path: Path) -> str:
    return "".join(line for _, line in lines_of(path))


def _read_texts(task: Task, folder: Path, id: int) -> Rows:
    names = dict.fromkeys((task.label_names[id], task.labels[id]))
    of_label = next((folder / name for name in names if is_folder(folder / name)), None)
    if of_label is None:
        raise UserError(
            f"{folder} has no folder {' or '.join(names)}: it must hold one for each label of {task.name}."
        )
    texts = [_text(path) for path in files_below(of_label)]
    count = len(texts)
    labels = [task.labels[id]] * count
    return Rows(str(of_label), {task.text_columns[0]: texts}, labels, list(range(count)), range(1, count + 1), "file")


def _read_questions(task: Task, path: Path) -> Rows:
    columns = task.source.file_columns
    assert columns is not None
    article = parsed_json(_text(path), path)
    labels = article.get(columns.label) if isinstance(article, dict) else None
    if not labels or not isinstance(labels, list):
        raise UserError(
            f"{path} must hold a JSON object, and its {columns.label} the label of each question in a list."
        )
    lists = {name: values for name, values in article.items() if isinstance(values, list)}
    for name, values in lists.items():
        if len(values) != len(labels):
            raise UserError(f"{path}: {name} lists {len(values)}, but {columns.label} lists {len(labels)}.")
    rows = []
    for place in range(len(labels)):
        row = article | {name: values[place] for name, values in lists.items()}
        rows.append(texts_of_row(task, columns, row, f"{path}, question {place + 1}"))
    texts = {name: [row[name] for row in rows] for name in rows[0]}
    count = len(labels)
    return Rows(str(path), texts, labels, list(range(count)), range(1, count + 1), "question")
