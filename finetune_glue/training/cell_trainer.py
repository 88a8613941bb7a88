"""Transformers' Trainer for a cell: same steps on any number of processes, best weights kept in memory, no noise."""

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from accelerate import DistributedType
from accelerate.utils import set_seed
from torch.utils.data import DataLoader, Subset
from transformers import EvalPrediction, PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from common.errors import UserError
from common.labels import IGNORED
from finetune_glue.data.encoding import EncodedRows
from finetune_glue.data.tasks import Task
from finetune_glue.training.batches import BatchPlan, TrainingBatches
from finetune_glue.training.metrics import evaluate, score, summed_loss
from finetune_glue.training.settings import Hyperparameters
from finetune_glue.training.starting_model import StartingModel


LOG_RECORDS = 100  # of the training loss, about
EVALUATION_ROWS = 2  # times as many as in training, since no gradients are kept


class CellTrainer(Trainer):
    """Trains a model on the rows of a task.

    The loss of a step is the sum over all its rows divided by their number, and which rows these are does not depend
    on the number of processes or on `per_device_train_batch_size`. Nothing is saved.

    Args:
        start: the model.
        task: whose loss and metrics count.
        train: the rows that it learns from.
        validation: rows that it is judged on during training; none: it is not.
        hyperparameters, seed: of the cell.
        output_dir: Trainer wants a folder; nothing is written there.
        per_device_train_batch_size: rows that a process takes at once, at most.
        mixed_precision: `bf16` or `no`; none: what the launcher says.

    Raises:
        UserError: for a launch or a precision that cannot be.
    """

    def __init__(
        self,
        start: StartingModel,
        task: Task,
        train: EncodedRows,
        validation: EncodedRows | None,
        hyperparameters: Hyperparameters,
        seed: int,
        output_dir: Path,
        per_device_train_batch_size: int | None = None,
        mixed_precision: str | None = None,
    ):
        self.task = task
        self.selection = Selection(task, hyperparameters)
        self.clock = Clock()
        arguments = _arguments(hyperparameters, seed, output_dir, mixed_precision)
        plan = BatchPlan.of(
            hyperparameters.batch_size, arguments.world_size, arguments.process_index, per_device_train_batch_size
        )
        self.batches = TrainingBatches(train.lengths, plan, seed, hyperparameters.group_by_length)
        steps = hyperparameters.max_steps or math.ceil(hyperparameters.num_train_epochs * self.batches.steps)
        arguments.gradient_accumulation_steps = plan.accumulation
        arguments.per_device_train_batch_size = plan.micro_batch_size
        arguments.per_device_eval_batch_size = EVALUATION_ROWS * plan.micro_batch_size
        arguments.max_steps = steps
        arguments.logging_steps = max(1, steps // LOG_RECORDS)
        arguments.eval_steps = max(1, round(self.batches.steps / hyperparameters.evaluations_per_epoch))
        if validation is None:
            arguments.eval_strategy = "no"
        if start.model.config.model_type == "luna":
            arguments.ddp_find_unused_parameters = False
        super().__init__(
            start.model,
            arguments,
            data_collator=start.collator(),
            train_dataset=train,
            eval_dataset=None if validation is None else Subset(validation, _long_first(validation).tolist()),
            compute_loss_func=self._loss,
            compute_metrics=self._metrics,
            callbacks=[Seed(seed), self.selection, self.clock, FiniteLoss()],
            preprocess_logits_for_metrics=_first_output,
        )
        self.remove_callback(PrinterCallback)

    def get_train_dataloader(self) -> DataLoader:
        """The batches of this process; accelerate would repeat rows to fill the last ones."""
        assert isinstance(self.train_dataset, EncodedRows)
        return DataLoader(
            self.train_dataset,
            batch_sampler=self.batches,
            collate_fn=self.data_collator,
            pin_memory=torch.cuda.is_available(),
        )

    def floating_point_ops(self, inputs: dict) -> int:
        """Not counted: Trainer goes through all parameters for it at each step."""
        return 0

    def _get_grad_norm(self, model, grad_norm=None):
        """The norm that clipping computed, if any: Trainer would compute it at each step for the log alone."""
        return grad_norm

    def logits_of(self, rows: EncodedRows) -> np.ndarray:
        """(rows, labels), on all processes."""
        order = _long_first(rows)
        sorted_logits = self.predict(Subset(rows, order.tolist())).predictions
        logits = np.empty_like(sorted_logits)
        logits[order] = sorted_logits
        return logits

    def tokens_per_second(self) -> float:
        """Tokens of training, without padding, in the seconds without evaluations; of all processes together."""
        assert isinstance(self.train_dataset, EncodedRows)
        epochs = self.state.epoch or 0.0
        return float(self.train_dataset.starts[-1]) * epochs / max(self.clock.seconds, 1e-9)

    def _loss(self, outputs, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None):
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
        count = num_items_in_batch
        if count is None:
            count = (labels != IGNORED).sum().clamp(min=1)
        return summed_loss(self.task, logits, labels) / count

    def _metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        logits, labels = prediction.predictions, prediction.label_ids
        assert isinstance(logits, np.ndarray) and isinstance(labels, np.ndarray)
        return evaluate(self.task, logits, labels)


class Selection(TrainerCallback):
    """Remembers what each evaluation gave, keeps the best weights, and ends training when none gets better.

    Attributes:
        history: step, epoch and metrics of each evaluation.
        step: that of the best weights; None: those of the last step are taken.
    """

    def __init__(self, task: Task, hyperparameters: Hyperparameters):
        self.task, self.hyperparameters = task, hyperparameters
        self.history: list[dict] = []
        self.step: int | None = None
        self.best = -math.inf
        self.waited = 0
        self.weights: dict[str, torch.Tensor] = {}

    def on_evaluate(self, args, state, control, model=None, metrics=None, **kwargs):
        values = {name: metrics[f"eval_{name}"] for name in (*self.task.metrics, "loss")}
        self.history.append({"step": state.global_step, "epoch": round(state.epoch, 4), **values})
        if not self.hyperparameters.load_best_model_at_end:
            return
        found = score(self.task, values)
        if found > self.best:
            self.best, self.step, self.waited = found, state.global_step, 0
            self.weights = {name: values.detach().to("cpu", copy=True) for name, values in model.state_dict().items()}
            return
        self.waited += 1
        if self.waited == self.hyperparameters.early_stopping_patience:
            control.should_training_stop = True

    def restore(self, model: PreTrainedModel):
        """Give the model its best weights."""
        if self.weights:
            model.load_state_dict(self.weights)
            self.weights = {}


class Seed(TrainerCallback):
    """Seeds dropout, on each process in another way."""

    def __init__(self, seed: int):
        self.seed = seed

    def on_train_begin(self, args, state, control, **kwargs):
        set_seed(self.seed, device_specific=True)


class Clock(TrainerCallback):
    """The seconds of training without those of evaluations."""

    def __init__(self):
        self.seconds = 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        self.seconds = -time.perf_counter()

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        self.seconds -= metrics["eval_runtime"]

    def on_train_end(self, args, state, control, **kwargs):
        self.seconds += time.perf_counter()


class FiniteLoss(TrainerCallback):
    """Ends a training whose loss is no number any more; all processes see the same record."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        for name in ("loss", "eval_loss"):
            if not math.isfinite(logs.get(name, 0.0)):
                raise UserError(
                    f"{name} is {logs[name]} at step {state.global_step} of {state.max_steps}: the training has "
                    f"diverged. Lower learning_rate (it is {args.learning_rate:g}), or set max_grad_norm to 1.0."
                )


class Log(TrainerCallback):
    """Writes what Trainer logs as JSON lines."""

    def __init__(self, path: Path):
        self.path = path

    def on_train_begin(self, args, state, control, **kwargs):
        self.path.write_text("", encoding="utf-8")

    def on_log(self, args, state, control, logs=None, **kwargs):
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": state.global_step, **logs}) + "\n")


class Steps(TrainerCallback):
    """Tells how far training and evaluations are."""

    def __init__(self, on_progress: Callable[[str, int, int], object]):
        self.on_progress = on_progress
        self.evaluated = 0

    def on_step_end(self, args, state, control, **kwargs):
        self.on_progress("training", state.global_step, state.max_steps)

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        self.evaluated += 1
        self.on_progress("evaluation", self.evaluated, len(eval_dataloader))
        self.evaluated %= len(eval_dataloader)


def _arguments(
    hyperparameters: Hyperparameters, seed: int, output_dir: Path, mixed_precision: str | None
) -> TrainingArguments:
    """What does not depend on the rows."""
    gpu = torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(output_dir),
        use_cpu=not gpu,
        ddp_backend="gloo" if not gpu and "WORLD_SIZE" in os.environ else None,
        seed=seed,
        bf16=mixed_precision == "bf16",
        learning_rate=hyperparameters.learning_rate,
        lr_scheduler_type=hyperparameters.lr_scheduler_type,
        warmup_steps=hyperparameters.warmup_steps,
        weight_decay=hyperparameters.weight_decay,
        adam_beta1=hyperparameters.adam_beta1,
        adam_beta2=hyperparameters.adam_beta2,
        adam_epsilon=hyperparameters.adam_epsilon,
        max_grad_norm=hyperparameters.max_grad_norm,
        eval_strategy="steps",
        save_strategy="no",
        logging_nan_inf_filter=False,  # a loss that is no number is to be seen
        remove_unused_columns=False,
        disable_tqdm=True,
    )
    kind = arguments.distributed_state.distributed_type
    if kind in (DistributedType.DEEPSPEED, DistributedType.FSDP):
        raise UserError(f"Fine-tuning runs on one process or under DDP, not under {kind.value}: launch it without.")
    if mixed_precision is not None:
        arguments.mixed_precision = mixed_precision  # else `no` would give way to the launcher's
    arguments._n_gpu = min(arguments.n_gpu, 1)  # one process is one device: no DataParallel over all that it sees
    return arguments


def _long_first(rows: EncodedRows) -> np.ndarray:
    """The order in which rows are evaluated, with little padding; too large a batch shows at once."""
    return np.argsort(-rows.lengths, kind="stable")


def _first_output(logits, labels) -> torch.Tensor:
    return logits[0] if isinstance(logits, tuple) else logits
