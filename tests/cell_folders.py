"""Folders of cells as fine-tuning leaves them, written by hand."""

import dataclasses
import json
from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    AutoConfig,
    AutoModelForMultipleChoice,
    AutoModelForSequenceClassification,
    RobertaTokenizer,
)

import modeling_luna  # noqa: F401 - makes the Auto classes know Luna
from experiments.cell_folder import write_result
from finetune_glue.data.tasks import TASKS, Task


HYPERPARAMETERS = {
    "learning_rate": 2e-5,
    "batch_size": 32,
    "num_train_epochs": 10.0,
    "max_steps": None,
    "warmup_steps": 0.06,
    "weight_decay": 0.1,
    "model": {},
}
TEST_ROWS = 6
NUMBERS = [1.25, 4.5, 0.5, 2.0, 3.0, 5.0]  # what a regression predicts


def own_task(name: str = "polite", **changes) -> Task:
    """A task of one's own."""
    changes = {"title": "Polite", "labels": ("rude", "polite"), "metrics": ("accuracy",)} | changes
    return dataclasses.replace(TASKS["sst2"], name=name, **changes)


def write_cell(
    output_dir: Path,
    task: str | Task,
    seed: int,
    metrics: dict[str, float] | dict[str, dict[str, float]],
    model: str = "luna",
    setting: str = "default",
    test_rows: int | None = TEST_ROWS,
    **changes,
) -> Path:
    """A finished cell: its result, and predictions of its test splits.

    Args:
        metrics: of each validation split, or of the only one.
        test_rows: of each test split; none: there are no predictions.
        changes: other values of the result.
    """
    task = TASKS[task] if isinstance(task, str) else task
    folder = output_dir / "cells" / model / task.name / setting / f"seed-{seed}"
    folder.mkdir(parents=True)
    first = task.validation_splits[0]
    by_split = metrics if first in metrics else {first: metrics}
    splits = dict.fromkeys(task.test_splits, test_rows or 0)
    if task.name == "mnli":
        splits["ax"] = test_rows or 0
    result = {
        "task": task.name,
        "model": f"runs/{model}/model",
        "model_name": model,
        "setting": setting,
        "hyperparameters": HYPERPARAMETERS,
        "seed": seed,
        "metrics": {split: {"loss": 0.5, **values} for split, values in by_split.items()},
        "score": sum(by_split[first][name] for name in task.metrics) / len(task.metrics),
        "best_step": 40,
        "steps": 60,
        "rows": {"train": 1000, **dict.fromkeys(task.validation_splits, 100), **splits},
        "truncated": {"train": 3, first: 0},
        "padding_share": {"random": 0.4, "grouped": 0.1},
        "seconds": 75.0,
        "tokens_per_second": 12345.6,
        "num_parameters": 1_234_567,
        "model_type": "luna",
        "data": "nyu-mll/glue@bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c",
        "hardware": "1 process of 2 threads on a CPU",
        "versions": {"python": "3.11.2", "torch": "2.13.0", "transformers": "5.24.0"},
    }
    if test_rows is not None:
        (folder / "predictions").mkdir()
        for split in splits:
            write_predictions(folder / "predictions" / f"{split}.tsv", task, test_rows)
    write_result(folder, result | changes)
    return folder


def edit_result(folder: Path, **changes):
    """Change a result and its digest; a value of `...` takes the key out."""
    result = json.loads((folder / "result.json").read_text(encoding="utf-8")) | changes
    write_result(folder, {key: value for key, value in result.items() if value is not ... and key != "xxh3"})


def write_predictions(path: Path, task: Task, rows: int):
    """Each label in turn."""
    values = task.labels or [f"{number:.6f}" for number in NUMBERS]
    lines = [f"{index}\t{values[index % len(values)]}\n" for index in range(rows)]
    path.write_text("index\tprediction\n" + "".join(lines), encoding="utf-8")


def write_error(folder: Path, error: str):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "error.json").write_text(json.dumps({"error": error, "traceback": "Traceback ..."}), encoding="utf-8")


def write_model(folder: Path, task: Task, model_type: str = "luna"):
    """A tiny model with a head for the task, and its tokenizer."""
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(["The moon follows the earth."], vocab_size=300, special_tokens=specials)
    folder.mkdir(parents=True, exist_ok=True)
    trained.save_model(str(folder))
    tokenizer = RobertaTokenizer.from_pretrained(folder, model_max_length=64)
    tokenizer.save_pretrained(folder)
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 48, "max_position_embeddings": 66, "initializer_range": 0.2}
    names = task.label_names or task.labels or ("LABEL_0",)
    labels = {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {name: id for id, name in enumerate(names)},
    }
    config = AutoConfig.for_model(model_type, **sizes, **labels)
    if task.problem == "regression":
        config.problem_type = "regression"
    auto_class = (
        AutoModelForMultipleChoice if task.problem == "multiple_choice" else AutoModelForSequenceClassification
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        auto_class.from_config(config).save_pretrained(folder)
