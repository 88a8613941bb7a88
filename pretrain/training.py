"""The training loop."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from accelerate import Accelerator
from torch import nn, optim
from torch.utils.data import DataLoader

from pretrain.batches import EvaluationBatches, TrainingBatches
from pretrain.checkpoints import Checkpoints, find_checkpoints
from pretrain.configuration import PretrainConfig
from pretrain.errors import Stopped, UserError
from pretrain.health import packed_health
from pretrain.monitoring import Monitor
from pretrain.optimization import evaluate, learning_rate, optimizer_step, seed_step
from pretrain.progress import Progress
from pretrain.stopping import StopRequest


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
    progress: Progress
    stop: StopRequest


def train(run: Run) -> float:
    """Train from the steps done to the end and return the validation loss there.

    Nothing waits for the device but the steps that are logged, evaluations and checkpoints.

    Raises:
        DivergenceError: after `max_skipped_in_a_row` steps whose loss or gradient was not finite.
        Stopped: where a signal or `max_time` ends the run early, once there is a checkpoint.
    """
    config, monitor, progress = run.config, run.monitor, run.progress
    validation_loss = None
    if progress.step:
        monitor.say(f"Going on from step {progress.step:,} of {config.max_steps:,}")
    run.model.train()
    for step, (waited, micro_batches) in enumerate(_timed(_batches(run)), start=progress.step):
        # Known two steps late, so that nothing has to wait for the device; by all processes at the same step.
        stopping, skipped_in_a_row = monitor.totals.late_news()
        _check_divergence(run, skipped_in_a_row)
        done = step + 1 == config.max_steps
        last = done or stopping
        rate = learning_rate(step, config)
        for group in run.optimizer.param_groups:
            group["lr"] = rate
        seed_step(config.seed, step, run.accelerator.process_index)
        result = optimizer_step(
            run.accelerator,
            run.model,
            run.optimizer,
            micro_batches,
            config.max_grad_norm,
            stop=run.stop.requested(),
            count_correct=last or monitor.logs(step + 1),
        )
        progress.step = step + 1
        monitor.step_done(progress, result, rate, waited, last)
        _check_divergence(run, monitor.longest_skipped)

        saving = last or (config.save_steps and progress.step % config.save_steps == 0)
        if done or (config.eval_steps and progress.step % config.eval_steps == 0):
            metrics = monitor.untimed(evaluate, run.accelerator, run.model, run.validation)
            validation_loss = metrics["validation_loss"]
            if saving and validation_loss < progress.best_loss:
                progress.best_step, progress.best_loss = progress.step, validation_loss
            health = monitor.untimed(packed_health, run.model, run.validation[0], run.accelerator)
            monitor.evaluated(progress, metrics | health)
        if saving:
            summary = {"steps": progress.step, "validation_loss": validation_loss}
            monitor.untimed(run.checkpoints.save, run.model, run.optimizer, progress, summary)
        if stopping and not done:
            raise Stopped(
                f"Stopped at step {progress.step:,} of {config.max_steps:,} with a checkpoint. "
                "The same command goes on from it."
            )
    if validation_loss is None:  # there was nothing left to do
        validation_loss = evaluate(run.accelerator, run.model, run.validation)["validation_loss"]
    return validation_loss


def _batches(run: Run) -> DataLoader:
    """The batches of the steps that are left. Item k depends on k alone, so starting late costs nothing."""
    return DataLoader(
        run.training,
        batch_size=None,
        sampler=range(run.progress.step, run.config.max_steps),
        num_workers=run.config.dataloader_num_workers,
        pin_memory=run.accelerator.device.type == "cuda",
        multiprocessing_context="fork" if run.config.dataloader_num_workers else None,
    )


def _timed(batches: Iterable) -> Iterator[tuple[float, list[dict]]]:
    """Each item with the seconds that it was waited for."""
    iterator = iter(batches)
    while True:
        started = time.perf_counter()
        try:
            batch = next(iterator)
        except StopIteration:
            return
        yield time.perf_counter() - started, batch


def _check_divergence(run: Run, skipped_in_a_row: int):
    if skipped_in_a_row < run.config.max_skipped_in_a_row:
        return
    good = find_checkpoints(run.checkpoints.folder)
    raise DivergenceError(
        f"{skipped_in_a_row} steps in a row had a loss or gradient that was not finite. "
        + (f"The last good checkpoint is {good[-1]}. " if good else "There is no checkpoint yet. ")
        + "Lower the learning_rate or lengthen the warm-up."
    )
