"""One cell, fine-tuned by all processes of a launch; test_cell_training.py imports it, and starts it with torchrun.

Arguments: model, folder of GLUE's files, folder of the cell, name of the task.
"""

import os
import sys
from pathlib import Path

import torch.distributed as dist

from experiments.cells import Cell
from finetune_glue.data.task_data import load_task
from finetune_glue.data.tasks import TASKS
from finetune_glue.training.settings import Hyperparameters
from finetune_glue.training.training import run_cell


def run(model: Path, data: Path, folder: Path, task: str) -> dict:
    """A short training without dropout, on steps of 16 rows."""
    hyperparameters = Hyperparameters(
        learning_rate=3e-3,
        batch_size=16,
        adam_epsilon=1e-2,  # so large that gradients of another size give other steps
        num_train_epochs=3.0,
        evaluations_per_epoch=2,
        model={"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    )
    folder.mkdir(parents=True, exist_ok=True)
    cell = Cell(TASKS[task], str(model), "luna", "default", hyperparameters, 1, folder)
    return run_cell(cell, load_task(TASKS[task], str(data)))


def main(model: str, data: str, folder: str, task: str):
    assert run(Path(model), Path(data), Path(folder), task)["hardware"].startswith("2 processes")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
    sys.stdout.flush()
    os._exit(0)  # the threads of gloo sometimes abort a process that is done
