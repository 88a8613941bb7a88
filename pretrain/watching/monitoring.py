"""What a run shows while it trains: a progress line, and metrics as JSON lines."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn
from tqdm import tqdm

from common.durations import duration
from common.flops import training_flops
from common.hardware import GIB, describe_hardware, peak_memory
from common.peak_speed import peak_flops
from common.signs_of_life import with_progress
from pretrain.configuration import PretrainConfig
from pretrain.steps.batches import EvaluationBatches
from pretrain.steps.optimization import StepResult
from pretrain.steps.schedules import Schedule
from pretrain.watching.device_totals import DeviceTotals, Totals
from pretrain.watching.health import COLLAPSED
from pretrain.watching.metrics import METRICS_FILE, MetricsFile, finite, perplexity
from pretrain.watching.progress import Progress
from pretrain.watching.trackers import Trackers


SECONDS_BETWEEN_LINES = 15  # where the output is a file and no progress bar is drawn
SLOW = 1 / 3  # of the speed in the plan


class Monitor:
    """Progress and metrics of a run. Every process has one; the main one alone writes and prints.

    Args:
        config, accelerator: of the run.
        model: as the accelerator has wrapped it.
        progress: what was done before; metrics of later steps, which will be done again, are dropped. At each log its
            counts are brought up to date, on all processes alike.
        manifest: of the prepared data.
        schedule: of the run.
        expected: tokens per second of the plan, where it is known.

    Attributes:
        totals: of the steps since the last log, on the device.
        longest_skipped: the longest series of skipped steps that ended or went on between the last two logs.
    """

    def __init__(
        self,
        config: PretrainConfig,
        accelerator: Accelerator,
        model: nn.Module,
        progress: Progress,
        manifest: dict,
        schedule: Schedule,
        expected: float | None = None,
    ):
        self.config = config
        self._expected = expected
        self._slow_lines = 0  # in a row
        self.device = accelerator.device
        self.num_processes = accelerator.num_processes
        self.active = accelerator.is_main_process
        self.model_config = accelerator.unwrap_model(model).config
        self.schedule = schedule
        self.start = progress.step
        self.totals = DeviceTotals(self.device, progress.skipped_in_a_row, progress.window)
        self.longest_skipped = progress.skipped_in_a_row
        self._waited = progress.window.get("waited", 0.0)
        self._peak: float | None = None
        sent: dict[str, int] = {}
        if self.active:
            self.bar = tqdm(
                total=schedule.total_steps,
                initial=progress.step,
                unit="step",
                disable=not sys.stderr.isatty(),
                dynamic_ncols=True,
            )
            self._file = MetricsFile(Path(config.output_dir) / METRICS_FILE, progress.step)
            self._file_failed = False
            sent = self._file.dropped
            self._peak = peak_flops(self.device, accelerator.mixed_precision)
            if self._peak is None:
                self.say(f"No peak speed of {torch.cuda.get_device_name(self.device)} is known: there is no MFU")
        facts = {
            "hardware": describe_hardware(accelerator),
            "data_fingerprint": manifest["fingerprint"],
            "train_tokens": manifest["splits"]["train"]["tokens"],
        }
        self._trackers = Trackers(config, accelerator, progress, facts, sent, self.say)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self.started = self.last_line = time.perf_counter()
        self.last_log = self.started - progress.window.get("seconds", 0.0)

    def logs(self, step: int) -> bool:
        """Whether the metrics of a step are logged, `step` being the number of steps done after it.

        So it is at each `save_steps`, too, since what is logged there is in the checkpoint's card.
        """
        intervals = [self.config.logging_steps, self.config.save_steps]
        return step == self.schedule.total_steps or any(interval and step % interval == 0 for interval in intervals)

    def step_done(
        self,
        progress: Progress,
        result: StepResult,
        learning_rate: float,
        waited: float,
        last: bool = False,
        stopping: bool = False,
    ):
        """Take in the result of the last step of `progress`.

        Args:
            waited: seconds that the step waited for its data.
            last: whether the run is over; then the step is logged.
            stopping: whether this launch ends here. Its sums since the last log go into `progress.window`, so that the
                records are those of a run that was not stopped.
        """
        self.totals.add(result)
        self._waited += waited
        if self.active:
            self.bar.update()
        if last or self.logs(progress.step):
            self._log_training(progress, result, learning_rate)
        elif stopping:
            window = self.totals.window()
            self._read_totals(progress, result)
            seconds = time.perf_counter() - self.last_log
            progress.window = window | {"seconds": seconds, "waited": self._waited}

    def _read_totals(self, progress: Progress, result: StepResult) -> Totals:
        totals = self.totals.read(result)
        progress.skipped_in_a_row = totals.skipped_in_a_row
        progress.seconds = totals.seconds
        self.longest_skipped = totals.longest_skipped
        return totals

    def _log_training(self, progress: Progress, result: StepResult, learning_rate: float):
        steps = self.totals.steps
        totals = self._read_totals(progress, result)
        progress.tokens += totals.tokens
        progress.labelled += totals.labelled
        progress.skipped += totals.skipped
        progress.window = {}
        now = time.perf_counter()
        seconds, self.last_log = now - self.last_log, now
        waited, self._waited = self._waited, 0.0
        if not self.active:
            return
        if totals.skipped:
            self.say(
                f"{totals.skipped} of the {steps} steps up to {progress.step:,} skipped, as loss or gradient was not "
                f"finite ({progress.skipped} so far, {progress.skipped_in_a_row} in a row)"
            )
        speed = totals.tokens / seconds
        self._write(
            {
                "step": progress.step,
                "loss": totals.loss,
                "accuracy": totals.accuracy,
                "perplexity": perplexity(totals.loss),
                "gradient_norm": totals.gradient_norm,
                "learning_rate": learning_rate,
                "tokens": progress.tokens,
                "labelled_tokens": progress.labelled,
                "training_seconds": round(progress.seconds, 1),
                "tokens_per_second": round(speed),
                "tokens_per_second_per_device": round(speed / self.num_processes),
                "mfu": self._mfu(totals, seconds),
                "padding_share": round(1 - totals.tokens / totals.places, 4),
                "data_wait_share": round(waited / seconds, 4),
                "peak_memory_gib": round(peak_memory(self.device) / GIB, 3),
                "skipped_steps": progress.skipped,
            }
        )
        self._show(progress, totals.loss, speed, now)
        self._warn_where_slow(speed)

    def _warn_where_slow(self, speed: float):
        """Say once that the run is slow, where two lines of metrics in a row are."""
        if self._expected is None:
            return
        self._slow_lines = self._slow_lines + 1 if speed < SLOW * self._expected else 0
        if self._slow_lines == 2:
            self.say(
                f"warning: {speed:,.0f} tokens/s are {speed / self._expected:.0%} of what the plan expects "
                f"({self._expected:,.0f}): something else uses this machine"
                + (", where fewer threads (OMP_NUM_THREADS) can be faster" if self.device.type == "cpu" else "")
            )
            self._expected = None

    def _mfu(self, totals: Totals, seconds: float) -> float | None:
        """The share of the devices' peak that went into the model's own operations; of Luna's alone are they known."""
        if self._peak is None or self.config.model_type != "luna":
            return None
        flops = training_flops(self.model_config, totals.rows, totals.places // totals.rows, totals.labelled)
        return round(flops / (seconds * self._peak * self.num_processes), 4)

    def _show(self, progress: Progress, loss: float | None, speed: float, now: float):
        left = duration(self._seconds_left(progress, now))
        line = f"loss {'none' if loss is None else f'{loss:.3f}'}, {speed:,.0f} tokens/s"
        # A bar without a total knows no end.
        self.bar.set_postfix_str(line if self.schedule.total_steps is not None else f"{line}, {left} left")
        if self.bar.disable and now - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = now
            self.say(f"step {self.schedule.place(progress.step)}  {line}, {left} left")

    def _seconds_left(self, progress: Progress, now: float) -> float:
        end = self.schedule.total_steps
        if end is None:
            return max(0.0, 3600 * self.schedule.length - progress.seconds)
        first, done, last = (self.schedule.sizes.rows_before(step) for step in (self.start, progress.step, end))
        return (now - self.started) / (done - first) * (last - done)

    def evaluated(self, progress: Progress, metrics: dict):
        """Take in the metrics of an evaluation: numbers, or lists of them for the layers."""
        if not self.active:
            return
        record = {"step": progress.step, **metrics}
        line = f"step {self.schedule.place(progress.step)}  "
        if "validation_loss" in metrics:
            record["validation_perplexity"] = perplexity(metrics["validation_loss"])
            line += f"validation loss {metrics['validation_loss']:.3f}"
        if metrics.get("validation_accuracy") is not None:
            line += f", accuracy {metrics['validation_accuracy']:.1%}"
        if "averaged_validation_loss" in metrics:
            line += f", of the averaged weights {metrics['averaged_validation_loss']:.3f}"
        ranks = metrics.get("effective_rank")
        if ranks:
            line += f", effective rank of P {min(ranks):.1f} to {max(ranks):.1f}"
        self._write(record)
        self.say(line)
        collapsed = [number for number, rank in enumerate(ranks or []) if rank < COLLAPSED]
        if collapsed and self.model_config.projection_length > 2:
            self.say(
                f"warning: slots have collapsed in layer{'s' if len(collapsed) > 1 else ''} "
                f"{', '.join(map(str, collapsed))}: the effective rank of P is below {COLLAPSED} there"
            )

    def shown(self, batches: EvaluationBatches) -> Iterator[dict]:
        """The batches of an evaluation, with a sign of life while it takes long."""
        items: Iterator[dict] = iter(batches)
        if not self.active:
            return items
        return with_progress(items, "Evaluation", "batches", total=len(batches), say=self.say)

    def untimed(self, work: Callable, *arguments):
        """Do something that is not training, such as an evaluation, without counting its time as training."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # what is still to be done belongs to training
        started = time.perf_counter()
        result = work(*arguments)
        self.last_log += time.perf_counter() - started
        return result

    def say(self, line: str):
        """Print a line above the progress bar. A run outlives the terminal that it was started from."""
        if self.active:
            with suppress(OSError):
                tqdm.write(line, file=sys.stdout)
                sys.stdout.flush()

    def close(self):
        self._trackers.close()
        if self.active:
            self.bar.close()

    def _write(self, record: dict):
        """Add a record to the metrics and send it to the trackers, null where a number is not finite, which JSON does
        not know. A disk that takes none does not end the run."""
        record = {name: finite(value) for name, value in record.items()}
        try:
            self._file.append(record)
            self._file_failed = False
        except OSError as error:
            if not self._file_failed:
                self.say(f"warning: {self._file.path} cannot be written ({error}); metrics are kept in memory")
            self._file_failed = True
        self._trackers.log(record)
