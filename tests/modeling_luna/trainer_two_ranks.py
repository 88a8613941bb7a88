# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""A short training of each head by Transformers' Trainer; test_trainer.py imports it, and starts it with torchrun.

Argument: a folder for the result `trained.pt`, which has for each task the logged losses and the final weights.
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from head_tasks import HEAD_TASKS, head_examples, head_model
from transformers import Trainer, TrainingArguments


STEPS, ROWS, LEARNING_RATE = 3, 4, 0.01


def train(task: str, folder: Path, batch_size: int, accumulation: int = 1) -> dict:
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    assert world_size * batch_size * accumulation == ROWS
    arguments = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        ddp_backend="gloo" if world_size > 1 else None,
        ddp_find_unused_parameters=False,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        max_steps=STEPS,
        train_sampling_strategy="sequential",
        optim="sgd",
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,  # clipping would hide gradients of a wrong size
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = Trainer(head_model(task), arguments, train_dataset=head_examples(task, STEPS * ROWS))
    assert trainer.accelerator.num_processes == world_size
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"losses": losses, "parameters": trainer.model.state_dict()}


def main(folder: Path):
    trained = {task: train(task, folder, batch_size=ROWS // 2) for task in HEAD_TASKS}
    if dist.get_rank() == 0:
        torch.save(trained, folder / "trained.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    sys.stdout.flush()
    os._exit(0)  # the threads of gloo sometimes abort a process that is done
