"""Tokens per second of fine-tuning by Trainer against those of a bare loop over the same batches; share of padding.

    python benchmarks/finetuning/measure_speed.py runs/demo/model --task rte --data FOLDER

The bare loop has the same rows in the same batches, the same loss, optimiser and schedule, and nothing else. The two
take turns; the medians of all turns but the first count. Evaluations, loading and tokenisation are left out of both.
"""

import argparse
import itertools
import math
import statistics
import tempfile
import time
from pathlib import Path

import torch
import transformers
from torch.utils.data import DataLoader
from transformers import get_scheduler

from common.errors import UserError, report_user_errors
from finetune_glue.data.description import find_tasks
from finetune_glue.data.encoding import EncodedRows, encode
from finetune_glue.data.task_data import load_task
from finetune_glue.data.tasks import Task
from finetune_glue.training.batches import BatchPlan, TrainingBatches, padding_share
from finetune_glue.training.cell_trainer import CellTrainer
from finetune_glue.training.metrics import summed_loss
from finetune_glue.training.settings import Hyperparameters
from finetune_glue.training.starting_model import StartingModel, load_starting_model


SEED = 1


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder or an id of the Hub")
    parser.add_argument("--task", default="rte", help="of GLUE, or a description file")
    parser.add_argument("--data", default="hub", help="`hub`, or a folder of GLUE's files")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--max_length", type=int, default=512)
    parser.add_argument("--steps", type=int, default=40, help="of each turn")
    parser.add_argument("--turns", type=int, default=6, help="the first does not count")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    hyperparameters = Hyperparameters(
        batch_size=arguments.batch_size, max_length=arguments.max_length, max_steps=arguments.steps
    )
    hyperparameters.validate("arguments")
    if arguments.turns < 2:
        raise UserError(f"--turns is {arguments.turns}: the first does not count, so that it must be at least 2.")
    task, *others = find_tasks([arguments.task])
    if others or task.training_task:
        raise UserError(f"--task {arguments.task}: name one task that has training data.")
    data = load_task(task, arguments.data)
    start = load_starting_model(arguments.model, task, {}, SEED)
    max_length = min(arguments.max_length, start.max_length or arguments.max_length)
    rows = encode(data, task.train_split, start.tokenizer, max_length, start.vocab_size)

    batches = first_batches(rows, hyperparameters)
    turns = [
        (time_trainer(start, task, rows, hyperparameters), time_bare_loop(start, task, rows, hyperparameters, batches))
        for _ in range(arguments.turns)
    ]
    by_trainer, bare = (statistics.median(seconds) for seconds in zip(*turns[1:], strict=True))
    tokens = sum(int(sum(len(ids) for ids in rows[row].columns["input_ids"])) for batch in batches for row in batch)
    print(f"{task.title}, {len(batches)} steps of {arguments.batch_size} rows, {tokens:,} tokens without padding")
    print(f"Trainer    {tokens / by_trainer:10,.0f} tokens/s")
    print(f"bare loop  {tokens / bare:10,.0f} tokens/s")
    print(f"ratio      {bare / by_trainer:10.3f}")
    for name, grouped in (("random rows", False), ("rows of like length", True)):
        share = padding_share(rows.lengths, BatchPlan(arguments.batch_size), SEED, grouped, start.fixed_length)
        print(f"padding    {share:10.1%} in batches of {name}")


def first_batches(rows: EncodedRows, hyperparameters: Hyperparameters) -> list[list[int]]:
    """The rows of each step of a turn, as the Trainer takes them."""
    plan = BatchPlan(hyperparameters.batch_size)
    batches = TrainingBatches(rows.lengths, plan, SEED, hyperparameters.group_by_length)
    epochs = itertools.chain.from_iterable(batches for _ in itertools.count())
    return list(itertools.islice(epochs, hyperparameters.max_steps))


def time_trainer(start: StartingModel, task: Task, rows: EncodedRows, hyperparameters: Hyperparameters) -> float:
    """Seconds of a turn by Trainer."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = CellTrainer(start, task, rows, None, hyperparameters, SEED, Path(folder))
        trainer.train()
    return trainer.clock.seconds


def time_bare_loop(
    start: StartingModel, task: Task, rows: EncodedRows, hyperparameters: Hyperparameters, batches: list[list[int]]
) -> float:
    """Seconds of a turn of a loop that does what has to be done."""
    model = start.model.train()
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=hyperparameters.learning_rate,
        betas=(hyperparameters.adam_beta1, hyperparameters.adam_beta2),
        eps=hyperparameters.adam_epsilon,
        weight_decay=hyperparameters.weight_decay,
        fused=True,
    )
    warmup = math.ceil(hyperparameters.warmup_steps * len(batches))  # a share of them
    schedule = get_scheduler(hyperparameters.lr_scheduler_type, optimizer, warmup, len(batches))
    started = time.perf_counter()
    for inputs in DataLoader(rows, batch_sampler=batches, collate_fn=start.collator()):
        inputs = {name: values.to(model.device) for name, values in inputs.items()}
        labels = inputs.pop("labels")
        loss = summed_loss(task, model(**inputs).logits, labels) / len(labels)
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    loss.item()  # waits for a GPU
    return time.perf_counter() - started


if __name__ == "__main__":
    with report_user_errors("Nothing was kept."):
        main()
