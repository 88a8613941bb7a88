"""The training loop."""

import sys
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass

from accelerate import Accelerator
from torch import nn, optim

from common.errors import Stopped
from pretrain.checkpointing.averaging import WeightAverage
from pretrain.checkpointing.checkpoints import Checkpoints, DivergenceError
from pretrain.checkpointing.folders import ResumeError
from pretrain.configuration import PretrainConfig
from pretrain.steps.batches import EvaluationBatches, TrainingBatches
from pretrain.steps.loading import load_batches
from pretrain.steps.optimization import evaluate, optimizer_step, seed_step
from pretrain.steps.schedules import Schedule
from pretrain.stopping import StopRequest
from pretrain.watching.health import packed_health
from pretrain.watching.monitoring import Monitor
from pretrain.watching.progress import Progress


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
    schedule: Schedule
    average: WeightAverage | None


def train(run: Run) -> float:
    """Train from the steps done to the end and return the validation loss of what is to be saved: the averaged
    weights, or those of the last step.

    Nothing waits for the device but the steps that are logged, evaluations and checkpoints.

    Raises:
        ResumeError: where more steps are done than the run is long.
        DivergenceError: after `max_skipped_in_a_row` steps whose loss or gradient was not finite, or where a number of
            a checkpoint would not be.
        Stopped: where a signal or `max_time` ends the run early, once there is a checkpoint.
        LostProcess: where a worker that makes batches was killed.
    """
    config, progress, schedule = run.config, run.progress, run.schedule
    if schedule.total_steps is not None and progress.step > schedule.total_steps:
        raise ResumeError(
            f"{config.output_dir} has done {progress.step:,} steps, more than max_steps or max_tokens allow "
            f"({schedule.total_steps:,}): raise it, or name another --output_dir."
        )
    if progress.step:
        run.monitor.say(f"Going on from step {schedule.place(progress.step)}")
    with closing(_batches(run)) as batches:
        metrics = _train_steps(run, batches)
    metrics = metrics or _evaluate(run)  # where there was nothing left to do
    return metrics.get("averaged_validation_loss", metrics["validation_loss"])


def _train_steps(run: Run, batches: Iterator[list[dict]]) -> dict[str, float] | None:
    """Do the steps of these batches, and return the last validation metrics, if there are any."""
    config, monitor, progress, schedule = run.config, run.monitor, run.progress, run.schedule
    metrics = None
    clock = time.perf_counter() - progress.seconds
    run.model.train()
    for step, (waited, micro_batches) in enumerate(_timed(batches), start=progress.step):
        # Known two steps late, so that nothing has to wait for the device; by all processes at the same step.
        stopping, skipped_in_a_row, seconds = monitor.totals.late_news()
        _check_divergence(run, skipped_in_a_row, progress.step - 1)
        progress.seconds = max(progress.seconds, seconds)
        done = schedule.finished(step + 1, progress.seconds)
        rate = schedule.learning_rate(step, progress.seconds)
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
            seconds=time.perf_counter() - clock,
            count_correct=done or monitor.logs(step + 1),
        )
        progress.step = step + 1
        if run.average is not None:
            run.average.update(progress.step)
        monitor.step_done(progress, result, rate, waited, done, stopping)
        _check_divergence(run, monitor.longest_skipped, progress.step)

        paused = time.perf_counter()
        saving = done or stopping or (config.save_steps and progress.step % config.save_steps == 0)
        if done or (config.eval_steps and progress.step % config.eval_steps == 0):
            metrics = monitor.untimed(_evaluate, run)
            if saving and metrics["validation_loss"] < progress.best_loss:
                progress.best_step, progress.best_loss = progress.step, metrics["validation_loss"]
            health = monitor.untimed(packed_health, run.model, run.validation[0], run.accelerator)
            monitor.evaluated(progress, metrics | health)
        if saving:
            summary = {"steps": progress.step, "validation_loss": metrics["validation_loss"] if metrics else None}
            monitor.untimed(run.checkpoints.save, run.model, run.optimizer, progress, summary, run.average)
        clock += time.perf_counter() - paused
        if done:
            break
        if stopping:
            raise Stopped(
                f"Stopped at step {schedule.place(progress.step)} with a checkpoint. The same command goes on from it."
            )
    return metrics


def _evaluate(run: Run) -> dict[str, float]:
    """The validation metrics of the weights that are trained, and those of their average."""
    monitor = run.monitor
    metrics = evaluate(run.accelerator, run.model, monitor.shown(run.validation))
    if run.average is not None and run.average.count:
        with run.average.swapped_in():
            averaged = evaluate(run.accelerator, run.model, monitor.shown(run.validation))
        metrics |= {f"averaged_{name}": value for name, value in averaged.items()}
    return metrics


def _batches(run: Run) -> Generator[list[dict], None, None]:
    """The batches of the steps that are left, without end where their number is not known. Item k depends on k alone,
    so starting late costs nothing."""
    step, seconds = run.progress.step, run.progress.seconds
    end = step if run.schedule.finished(step, seconds) else run.schedule.total_steps or sys.maxsize
    return load_batches(run.training, range(step, end), run.config.dataloader_num_workers, run.stop)


def _timed(batches: Iterator[list[dict]]) -> Iterator[tuple[float, list[dict]]]:
    """Each item with the seconds that it was waited for."""
    while True:
        started = time.perf_counter()
        try:
            batch = next(batches)
        except StopIteration:
            return
        yield time.perf_counter() - started, batch


def _check_divergence(run: Run, skipped_in_a_row: int, steps: int):
    """End the run where so many of its steps were skipped one after the other, `steps` being those done by then.

    They all had the weights of the step before the first of them.
    """
    if skipped_in_a_row >= run.config.max_skipped_in_a_row:
        what = f"{skipped_in_a_row} steps in a row had a loss or gradient that was not finite."
        raise DivergenceError(f"{what} {run.checkpoints.advice(steps - skipped_in_a_row)}")
