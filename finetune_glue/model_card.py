"""The model card of a fine-tuned model: Markdown with the metadata block of the Hub, its results as `model-index`."""

import json
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from common.cards import luna
from common.cards.card import card_text, facts_table, shown
from experiments.results import Group, Run
from experiments.tables import metric_name, parts_of, written
from finetune_glue.data.tasks import TASKS, Task


METRIC_IDS = {"pearson": "pearsonr", "spearman": "spearmanr"}  # where the Hub has other names
GLUE_CITATION = """@inproceedings{wang2019glue,
  title     = {{GLUE}: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding},
  author    = {Wang, Alex and Singh, Amanpreet and Michael, Julian and Hill, Felix and Levy, Omer and
               Bowman, Samuel R.},
  booktitle = {International Conference on Learning Representations},
  year      = {2019},
  url       = {https://arxiv.org/abs/1804.07461}
}"""
TEXTS = ("The moon follows the earth around the sun.", "The earth has a moon.")  # of the examples
PIPELINES = {"classification": "text-classification", "regression": "text-classification"}
MULTIPLE_CHOICE = "multiple-choice"  # has no pipeline


def model_card(group: Group, run: Run, settings: int = 1, repository: str | None = None) -> str:
    """The card's text.

    Args:
        group: the seeds that were run with the same setting.
        run: the one that the card is of.
        settings: number of those that the setting was chosen from.
        repository: id on the Hub, if there is to be one.
    """
    result, task = _result(run), group.task
    assert isinstance(task, Task)
    name = repository.split("/")[-1] if repository else f"{group.model}-{task.name}"
    sections = {
        "Use": _usage(result, task, repository or "PATH_OR_ID"),
        "Task and data": _data(result, task),
        "Results": _results(group, run, settings),
        "Training": _training(result, run),
        "Limits": "The model knows this task alone, as its training data pose it, with whatever is wrong or one-sided "
        "in them and in the text that its base model has learnt from.",
        "Versions": facts_table(result.get("versions", {})),
        "Citation": "\n\n".join(f"```bibtex\n{entry}\n```" for entry in _citations(result, task)),
    }
    return card_text(_metadata(run, task, name), _introduction(result, task), sections)


def _metadata(run: Run, task: Task, name: str) -> ModelCardData:
    result = _result(run)
    return ModelCardData(
        language="en" if task.name in TASKS else None,
        library_name="transformers",
        pipeline_tag=PIPELINES.get(task.problem, MULTIPLE_CHOICE),
        tags=[*(luna.TAGS if _is_luna(result) else []), *(["glue"] if task.name in TASKS else [])] or None,
        datasets=[dataset] if (dataset := _dataset(result, task)) else None,
        base_model=_hub_id(result["model"]),
        metrics=[METRIC_IDS.get(metric, metric) for metric in task.metrics],
        model_name=name,
        eval_results=[
            _evaluation(task, split, metric, value, result)
            for split, metric in parts_of(task)
            if (value := run.metric(split, metric)) is not None
        ],
    )


def _evaluation(task: Task, split: str, metric: str, value: float, result: dict) -> EvalResult:
    dataset = _dataset(result, task)
    return EvalResult(
        task_type=PIPELINES.get(task.problem, MULTIPLE_CHOICE),
        dataset_type=dataset or task.name,
        dataset_name=f"GLUE {task.title}" if task.name in TASKS else task.title,
        dataset_config=task.source.hub_config if dataset else None,
        dataset_split=task.source.hub_splits.get(split, split) if dataset else split,
        dataset_revision=_revision(result, task),
        metric_type=METRIC_IDS.get(metric, metric),
        metric_name=metric_name(metric),
        metric_value=round(value, 4),
    )


def _introduction(result: dict, task: Task) -> str:
    of_glue = ", a task of the [GLUE benchmark](https://gluebenchmark.com)" if task.name in TASKS else ""
    size = f" of {result['num_parameters']:,} parameters" if result.get("num_parameters") else ""
    if _is_luna(result):
        return f"A {luna.LINK} encoder{size}, fine-tuned on {task.title}{of_glue}. {luna.ATTENTION}"
    kind = f" of the type `{result['model_type']}`" if result.get("model_type") else ""
    return f"An encoder{kind}{size}, fine-tuned on {task.title}{of_glue}."


def _usage(result: dict, task: Task, place: str) -> str:
    if not _is_luna(result):
        return f"```python\n{_example(task, place, '')}\n```"
    return luna.usage(_example(task, place, ""), _example(task, place, ", trust_remote_code=True"))


def _example(task: Task, place: str, trust: str) -> str:
    if task.problem == "multiple_choice":
        choices = [f"choice {number + 1}" for number in range(len(task.choice_columns))]
        return (
            "from transformers import AutoModelForMultipleChoice, AutoTokenizer\n\n"
            f'model = AutoModelForMultipleChoice.from_pretrained("{place}"{trust})\n'
            f'tokenizer = AutoTokenizer.from_pretrained("{place}"{trust})\n'
            f"choices = {json.dumps(choices)}\n"
            'batch = tokenizer(["the question"] * len(choices), choices, padding=True, return_tensors="pt")\n'
            "scores = model(**{name: value[None] for name, value in batch.items()}).logits[0]\n"
            "print(choices[scores.argmax()])"
        )
    text = json.dumps(TEXTS[0])
    if len(task.text_columns) > 1:
        text = f'{{"text": {text}, "text_pair": {json.dumps(TEXTS[1])}}}'
    plain = ', function_to_apply="none"' if task.problem == "regression" else ""  # the number itself, no probability
    return (
        "from transformers import pipeline\n\n"
        f'predict = pipeline("text-classification", model="{place}"{trust})\nprint(predict({text}{plain}))'
    )


def _data(result: dict, task: Task) -> str:
    columns = " and ".join(f"`{column}`" for column in task.text_columns)
    if task.problem == "regression":
        within = f" from {task.label_range[0]:g} to {task.label_range[1]:g}" if task.label_range else ""
        what = f"The model reads {columns} and gives a number{within}."
    elif task.problem == "multiple_choice":
        what = f"The model reads {columns} and chooses one of {len(task.choice_columns)} texts."
    else:
        names = dict(zip(task.labels, task.label_names or task.labels, strict=True))
        labels = ", ".join(label if label == name else f"{label} ({name})" for label, name in names.items())
        what = f"The model reads {columns} and gives one of the labels {labels}."
    lines = [what, f"Data: {_source(result, task)}."]
    if result.get("rows"):
        rows, cut = result["rows"], result.get("truncated", {})
        length = result["hyperparameters"].get("max_length")
        heading = f"longer than {length} tokens and cut" if length else "too long and cut"
        table = [f"| split | rows | {heading} |", "|---|---:|---:|"]
        table += [f"| {split} | {count:,} | {cut.get(split, 0):,} |" for split, count in rows.items() if count]
        lines.append("\n".join(table))
    return "\n\n".join(lines)


def _source(result: dict, task: Task) -> str:
    hub, revision = _dataset(result, task), _revision(result, task)
    if not revision:
        return f"files in `{shown(result.get('data'))}`"
    config = f", configuration {task.source.hub_config}" if task.source.hub_config else ""
    return f"[{hub}](https://huggingface.co/datasets/{hub}){config}, commit {revision}"


def _dataset(result: dict, task: Task) -> str | None:
    """The data set of the Hub that a task is; GLUE's are even if they were read from files."""
    hub = (task.source.hub or "").partition("@")[0]
    return hub if task.name in TASKS or str(result.get("data")).startswith(f"{hub}@") else None


def _revision(result: dict, task: Task) -> str | None:
    """The commit of the data, where they came from the Hub."""
    dataset, _, revision = str(result.get("data")).partition("@")
    return revision if revision and dataset == _dataset(result, task) else None


def _results(group: Group, run: Run, settings: int) -> str:
    count = len(group.finished)
    header = ["split", "metric", "this model"] + (
        [f"median ± standard deviation of {count} seeds"] if count > 1 else []
    )
    lines = ["| " + " | ".join(header) + " |", "|---|---|---:|" + ("---:|" if count > 1 else "")]
    for split, metric in parts_of(group.task):
        value = run.metric(split, metric)
        row = [split, metric_name(metric), "-" if value is None else f"{100 * value:.1f}"]
        if count > 1:
            row.append(written(group.metric(split, metric)))
        lines.append("| " + " | ".join(row) + " |")
    text = "Times 100:\n\n" + "\n".join(lines)
    chosen = [f"the best of {count} seeds"] if count > 1 and run is group.best else []
    chosen += [f"the best of {settings} settings"] if settings > 1 else []
    if chosen:
        text += (
            f"\n\nThis is {' and '.join(chosen)}, judged by these very rows, so its own figures are a little too "
            "good: the median over seeds is the fairer one."
        )
    return text


def _training(result: dict, run: Run) -> str:
    started = f"`{shown(result['model'])}`"
    if result.get("init_from_task"):
        started += f", fine-tuned on {TASKS[result['init_from_task']].title} first"
    facts = {
        "base model": started,
        "seed": run.seed,
        "steps": result.get("steps"),
        "weights of step": result.get("best_step"),
        "time": f"{result['seconds']:,.0f} s" if result.get("seconds") else None,
        "tokens/s": f"{result['tokens_per_second']:,.0f}" if result.get("tokens_per_second") else None,
        "hardware": result.get("hardware"),
    }
    recipe = {key: value for key, value in result["hyperparameters"].items() if key != "model"}
    recipe |= {f"model.{key}": value for key, value in result["hyperparameters"].get("model", {}).items()}
    return (
        f"{facts_table(facts)}\n\nThe hyper-parameters, by the keys of the configuration (a step is an update by "
        f"`batch_size` rows):\n\n{facts_table(recipe)}"
    )


def _citations(result: dict, task: Task) -> list[str]:
    return ([luna.CITATION] if _is_luna(result) else []) + ([GLUE_CITATION] if task.name in TASKS else [])


def _hub_id(model: str) -> str | None:
    """The id of a base model on the Hub; none of one in a folder."""
    name = model.partition("@")[0]
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return None if Path(name).exists() else name


def _result(run: Run) -> dict:
    assert run.result is not None
    return run.result


def _is_luna(result: dict) -> bool:
    return result.get("model_type") == "luna"
