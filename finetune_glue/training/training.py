"""One fine-tuning: a cell's model is trained, judged and, if wanted, saved into the cell's folder."""

import importlib.metadata
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import modeling_luna
from common.checksums import digests
from common.contents import digest_of_files
from common.errors import UserError
from common.files import remove_folder, write_folder, write_text
from common.hardware import describe_hardware
from experiments.cell_folder import MODEL, PREDICTIONS
from experiments.cells import Cell
from experiments.made_from import difference
from experiments.progress import ignore
from finetune_glue.data.encoding import EncodedRows, encode
from finetune_glue.data.task_data import TaskData
from finetune_glue.data.tasks import Task
from finetune_glue.training.batches import padding_share
from finetune_glue.training.cell_trainer import CellTrainer, Log, Steps
from finetune_glue.training.metrics import check_metrics, evaluate, is_constant, predicted, score
from finetune_glue.training.model_names import UNTRAINED
from finetune_glue.training.settings import Hyperparameters
from finetune_glue.training.starting_model import WEIGHTS, StartingModel, load_starting_model, loaded_content


LOG = "log.jsonl"
PACKAGES = ("accelerate", "datasets", "numpy", "scikit-learn", "scipy", "tokenizers", "torch", "transformers")


@dataclass(frozen=True)
class Split:
    """Rows of a cell.

    Args:
        task: that they belong to: the cell's, or one whose rows are only predicted.
        index: (rows,), their numbers in the file or for the GLUE server.
        encoded: their tokens and labels.
    """

    task: Task
    index: list[int]
    encoded: EncodedRows


def run_cell(
    cell: Cell[Task, Hyperparameters],
    data: TaskData,
    *,
    diagnostics: Sequence[TaskData] = (),
    save_model: bool = True,
    init_from: Path | None = None,
    trust_remote_code: bool = False,
    per_device_train_batch_size: int | None = None,
    mixed_precision: str | None = None,
    on_progress: Callable[[str, int, int], object] = ignore,
    encoded: dict[tuple, dict[str, Split]] | None = None,
) -> dict:
    """Fine-tune a cell's model, and leave result, log, predictions and model in its folder.

    To be called by all processes of a launch; the main one writes.

    Args:
        diagnostics: data of tasks without training data, which the model is judged on, too.
        save_model: whether `model/` is written.
        init_from: folder of a fine-tuned model whose encoder it starts from, instead of the pretrained one.
        trust_remote_code: whether the model may run Python code that it brings along.
        per_device_train_batch_size: rows that a process takes at once, at most; the others follow.
        mixed_precision: `bf16` or `no`; none: what the launcher says.
        on_progress: called with what is going on, and how much of how much of it is done (0 of 0: not known).
        encoded: what earlier cells on the same data have tokenised; this one adds to it.

    Returns:
        What `result.json` has.

    Raises:
        UserError: for a model or data that cannot be used, and where the loss is no number any more.
    """
    started = time.perf_counter()
    check_metrics(cell.task)
    on_progress("loading the model", 0, 0)
    start = load_starting_model(
        cell.model, cell.task, cell.hyperparameters.model, cell.seed, init_from, trust_remote_code
    )
    made_from = cell.made_from | {"model": loaded_content(start, cell.model, trust_remote_code)}
    if difference({"model": cell.made_from.get("model")}, made_from):
        raise UserError(f"The model {cell.model} has changed while this call was running: it must be started again.")
    encoded = {} if encoded is None else encoded
    same = (cell.task.name, cell.model.removeprefix(UNTRAINED), _max_length(cell, start), start.vocab_size)
    if same not in encoded:
        encoded[same] = encode_splits(cell, start, [data, *diagnostics], on_progress)
    splits = encoded[same]
    trainer = CellTrainer(
        start,
        cell.task,
        splits[cell.task.train_split].encoded,
        splits[cell.task.validation_splits[0]].encoded,
        cell.hyperparameters,
        cell.seed,
        cell.folder,
        per_device_train_batch_size,
        mixed_precision,
    )
    main = trainer.is_world_process_zero()
    notes = [*data.notes, *start.notes, *(slow := _slow_warmup(cell, trainer.args.max_steps))]
    if main:
        for note in slow:
            print(f"    {cell.task.title}: {note}", flush=True)
        remove_folder(cell.folder / PREDICTIONS)  # of an earlier call that came to nothing
        trainer.add_callback(Log(cell.folder / LOG))
        trainer.add_callback(Steps(on_progress))
    trainer.train()
    trainer.selection.restore(start.model)
    logits = {
        name: trainer.logits_of(split.encoded) for name, split in splits.items() if name != cell.task.train_split
    }
    result = _result(cell, data, start, splits, logits, trainer, made_from, notes)
    if main:
        for name, values in logits.items():
            path = cell.folder / PREDICTIONS / f"{name}.tsv"
            write_predictions(path, cell.task, splits[name].index, values)
            result["predictions"][name] = digest_of_files([path])
        if save_model:
            write_folder(cell.folder / MODEL, lambda folder: _save(start, folder))
            written = digests(cell.folder / MODEL)
            result["weights"] = {name: digest for name, digest in written.items() if name.endswith(WEIGHTS)}
        result["seconds"] = round(time.perf_counter() - started, 3)
        result = cell.finish(result)
    return result


def encode_splits(
    cell: Cell[Task, Hyperparameters],
    start: StartingModel,
    all_data: Sequence[TaskData],
    on_progress: Callable[[str, int, int], object] = ignore,
) -> dict[str, Split]:
    """The rows of the cell's task by split, and those of diagnostics by the name of their task.

    Raises:
        UserError: where a split that is needed is not there, or diagnostics have other labels than the task.
    """
    max_length = _max_length(cell, start)
    splits = {}
    for data in all_data:
        task = data.task
        own = task.name == cell.task.name
        if task.labels != cell.task.labels:
            raise UserError(f"{task.name} has the labels {task.labels}, but {cell.task.name} has {cell.task.labels}.")
        wanted = (task.train_split, *task.validation_splits) if own else ()
        for split in wanted:
            if split not in data.splits:
                raise UserError(f"{task.name} has no split {split} in {data.source}: it needs {' and '.join(wanted)}.")
        for split, rows in data.splits.items():
            name = split if own else task.name if len(data.splits) == 1 else f"{task.name}_{split}"
            encoded = encode(data, split, start.tokenizer, max_length, start.vocab_size, on_progress)
            splits[name] = Split(task, rows["index"][:], encoded)
    return splits


def write_predictions(path: Path, task: Task, index: Sequence[int], logits: np.ndarray):
    """Write the label (or number) that is predicted for each row; logits are (rows, labels)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = predicted(task, logits)
    texts = (
        [f"{value:.6f}" for value in values] if task.problem == "regression" else [task.labels[id] for id in values]
    )
    lines = [f"{number}\t{text}\n" for number, text in zip(index, texts, strict=True)]
    write_text(path, "index\tprediction\n" + "".join(lines))


def _result(
    cell: Cell[Task, Hyperparameters],
    data: TaskData,
    start: StartingModel,
    splits: dict[str, Split],
    logits: dict[str, np.ndarray],
    trainer: CellTrainer,
    made_from: dict,
    notes: list[str],
) -> dict:
    """What the result file has, but for the time."""
    if _max_length(cell, start) < cell.hyperparameters.max_length:
        notes.append(
            f"max_length is {cell.hyperparameters.max_length}, but the model has {start.max_length} positions: rows "
            "are cut there"
        )
    metrics = {}
    for name, values in logits.items():
        labels = splits[name].encoded.labels
        if labels is not None:
            metrics[name] = evaluate(splits[name].task, values, labels)
            if is_constant(predicted(cell.task, values)):
                notes.append(f"{name}: all predictions are the same, so that a correlation counts as 0")
    train = splits[cell.task.train_split].encoded
    shares = {
        name: padding_share(train.lengths, trainer.batches.plan, cell.seed, grouped, start.fixed_length)
        for name, grouped in (("random", False), ("grouped", True))
    }
    return {
        **cell.identity(),
        "made_from": made_from,
        "model_name": cell.model_name,
        "setting": cell.setting,
        "metrics": metrics,
        "score": score(cell.task, metrics[cell.task.validation_splits[0]]),
        "best_step": trainer.selection.step or trainer.state.global_step,
        "steps": trainer.state.global_step,
        "history": trainer.selection.history,
        "rows": {name: len(split.encoded) for name, split in splits.items()},
        "truncated": {name: split.encoded.truncated for name, split in splits.items()},
        "padding_share": {name: round(share, 4) for name, share in shares.items()},
        "tokens_per_second": round(trainer.tokens_per_second(), 1),
        "num_parameters": start.model.num_parameters(),
        "model_type": start.model.config.model_type,
        "mixed_precision": trainer.accelerator.mixed_precision,
        "data": data.source,
        "predictions": {},  # the digest of each file
        "notes": notes,
        "hardware": describe_hardware(trainer.accelerator),
        "versions": _versions(),
    }


def _slow_warmup(cell: Cell[Task, Hyperparameters], steps: int) -> list[str]:
    """A note where the training ends before its warm-up does."""
    warmup, rate = cell.hyperparameters.warmup_steps, cell.hyperparameters.learning_rate
    if warmup <= steps or cell.hyperparameters.lr_scheduler_type == "constant":
        return []
    return [
        f"warmup_steps is {warmup:g}, but the training has {steps} steps: it ends below the learning rate {rate:g}"
    ]


def _max_length(cell: Cell[Task, Hyperparameters], start: StartingModel) -> int:
    return min(cell.hyperparameters.max_length, start.max_length or cell.hyperparameters.max_length)


def _save(start: StartingModel, folder: Path):
    start.model.save_pretrained(folder)
    start.tokenizer("")  # its file holds what the last call asked for: rows that were cut would leave a limit there
    start.tokenizer.save_pretrained(folder)


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "modeling_luna": modeling_luna.__version__}
    return versions | {name: importlib.metadata.version(name) for name in PACKAGES}
