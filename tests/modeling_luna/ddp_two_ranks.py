# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""Training steps under DistributedDataParallel; started by test_ddp.py, once for each rank.

Arguments: a file for the ranks to meet in, the rank, a file for the result. Each of the `runs` has two steps. The
result has for each of them the losses, the gradients of the first step and the parameters after the last one.
"""

import os
import sys

import torch
import torch.distributed as dist
from head_tasks import HEAD_TASKS, head_batch, head_model, number_of_labels
from torch.nn.parallel import DistributedDataParallel


STEPS, ROWS, WORLD_SIZE = 2, 4, 2
DROPOUT = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}


def runs() -> dict[str, tuple[str, dict]]:
    """Name of a run -> task and configuration. `base` is the encoder alone."""
    heads = {task: (task, {}) for task in HEAD_TASKS}
    return heads | {"base": ("masked_lm", {}), "dropout": ("masked_lm", DROPOUT)}


def build(run: str) -> torch.nn.Module:
    task, fields = runs()[run]
    model = head_model(task, **fields)
    return model.luna if run == "base" else model


def loss_of(model: torch.nn.Module, run: str, first: int, last: int, num_items: int) -> torch.Tensor:
    """The share that the examples from `first` to before `last` have in the loss of `num_items` labels."""
    batch = head_batch(runs()[run][0], first, last)
    if run == "base":
        return model(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state.pow(3).sum() / 1000
    return model(**batch, num_items_in_batch=num_items).loss


def train(run: str, rank: int = 0, world_size: int = 1) -> dict:
    """On one rank of `world_size`; on one process without DistributedDataParallel."""
    torch.manual_seed(1 + rank)
    model = build(run).train()
    trained = model if world_size == 1 else DistributedDataParallel(model)
    assert world_size == 1 or not trained.find_unused_parameters
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    rows = ROWS // world_size
    losses, gradients = [], {}
    for step in range(STEPS):
        num_items = number_of_labels(head_batch(runs()[run][0], step * ROWS, (step + 1) * ROWS))
        first = step * ROWS + rank * rows
        loss = loss_of(trained, run, first, first + rows, num_items)
        (loss * world_size).backward()  # the gradients of the ranks are averaged
        losses.append(loss.item())
        if step == 0:
            gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
        optimizer.step()
        optimizer.zero_grad()
    return {"losses": losses, "gradients": gradients, "parameters": model.state_dict()}


def main(meeting_file: str, rank: int, result_file: str):
    dist.init_process_group("gloo", init_method=f"file://{meeting_file}", rank=rank, world_size=WORLD_SIZE)
    # torch may hang where a DistributedDataParallel outlives its process group: `train` lets go of it first.
    torch.save({run: train(run, rank, WORLD_SIZE) for run in runs()}, result_file)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
    os._exit(0)  # the threads of gloo sometimes abort a process that is done
