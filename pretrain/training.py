"""The training loop."""

from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import nn, optim
from torch.utils.data import DataLoader

from pretrain.checkpoints import Checkpoints, find_checkpoints
from pretrain.configuration import PretrainConfig
from pretrain.errors import UserError
from pretrain.monitoring import Monitor
from pretrain.optimization import evaluate, learning_rate, optimizer_step
from pretrain.packed_data import EvaluationBatches, TrainingBatches


class DivergenceError(UserError):
    """Too many steps in a row without a finite loss and gradient."""


@dataclass
class Run:
    """The parts of a run, prepared by the accelerator."""

    accelerator: Accelerator
    config: PretrainConfig
    model: nn.Module
    optimizer: optim.Optimizer
    training: TrainingBatches
    validation: EvaluationBatches
    checkpoints: Checkpoints
    monitor: Monitor


def train(run: Run, start: int) -> float:
    """Train from step `start` to the end and return the validation loss there.

    Raises:
        DivergenceError: after `max_skipped_steps` steps in a row whose loss or gradient was not finite.
    """
    config, monitor = run.config, run.monitor
    validation_loss = None
    if start:
        monitor.say(f"Going on from step {start:,} of {config.max_steps:,}")
    run.model.train()
    for step, batch in enumerate(_batches(run, start), start=start):
        rate = learning_rate(step, config)
        for group in run.optimizer.param_groups:
            group["lr"] = rate
        result = optimizer_step(run.accelerator, run.model, run.optimizer, batch, config.max_grad_norm)
        done = step + 1
        monitor.step_done(done, result, rate)
        _check_divergence(run)

        last = done == config.max_steps
        if last or (config.eval_steps and done % config.eval_steps == 0):
            validation_loss = monitor.untimed(evaluate, run.accelerator, run.model, run.validation)
            monitor.evaluated(done, validation_loss)
        if last or (config.save_steps and done % config.save_steps == 0):
            monitor.untimed(run.checkpoints.save, done, {"steps": done, "validation_loss": validation_loss})
    monitor.close()
    if validation_loss is None:  # there was nothing left to do
        validation_loss = evaluate(run.accelerator, run.model, run.validation)
    return validation_loss


def _batches(run: Run, start: int) -> DataLoader:
    """The batches of the steps from `start` on. Item k depends on k alone, so starting late costs nothing."""
    return DataLoader(
        run.training,
        batch_size=None,
        sampler=range(start, run.config.max_steps),
        num_workers=run.config.dataloader_num_workers,
        pin_memory=run.accelerator.device.type == "cuda",
        multiprocessing_context="fork" if run.config.dataloader_num_workers else None,
        generator=torch.Generator(),  # its own: making an iterator draws a number, which dropout would miss
    )


def _check_divergence(run: Run):
    if run.monitor.skipped_in_a_row < run.config.max_skipped_steps:
        return
    good = find_checkpoints(run.checkpoints.folder)
    raise DivergenceError(
        f"{run.monitor.skipped_in_a_row} steps in a row had a loss or gradient that was not finite. "
        + (f"The last good checkpoint is {good[-1]}. " if good else "There is no checkpoint yet. ")
        + "Lower the learning_rate or lengthen the warm-up."
    )
