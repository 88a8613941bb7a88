"""What a person sees while a run goes on: the plan, a progress line, and metrics as JSON lines."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from tqdm import tqdm

from pretrain.batches import BatchPlan
from pretrain.configuration import PretrainConfig
from pretrain.files import write_text
from pretrain.optimization import StepResult, to_device
from pretrain.progress import Progress


METRICS_FILE = "metrics.jsonl"
SECONDS_BETWEEN_LINES = 15  # where the output is a file and no progress bar is drawn


def duration(seconds: float) -> str:
    """2 h 05 min, 3 min 20 s, or 12 s."""
    minutes, seconds = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"


def print_plan(
    config: PretrainConfig, model, manifest: dict, plan: BatchPlan, accelerator: Accelerator, seconds: float
):
    """Model, data and steps in a few lines, before the first step; `seconds` is the expected time of one row."""
    train, validation = manifest["splits"]["train"], manifest["splits"]["validation"]
    sources = ", ".join(source.path for source in config.sources())
    rows = plan.sizes.rows_before(config.max_steps)
    tokens = rows * config.max_length
    evaluations = -(-config.max_steps // config.eval_steps) if config.eval_steps else 1
    precision = "fp32" if accelerator.mixed_precision == "no" else accelerator.mixed_precision
    options = model.config
    lines = {
        "Model": f"Luna, {model.num_parameters():,} parameters: {options.num_hidden_layers} layers, hidden size "
        f"{options.hidden_size}, {options.num_attention_heads} heads, projection length {options.projection_length}, "
        f"convolution {options.conv_kernel_size or 'none'}, vocabulary {options.vocab_size:,}",
        "Data": f"{sources}: {train['tokens']:,} tokens in {train['documents']:,} documents to learn from, "
        f"{validation['tokens']:,} in {validation['documents']:,} held out",
        "Steps": f"{config.max_steps:,} of {config.batch_size:,} rows of {config.max_length:,} tokens: {tokens:,} "
        f"tokens, {tokens / train['tokens']:.1f} times the data",
        "Processes": f"{accelerator.num_processes} on {accelerator.device.type} in {precision}, each "
        f"{plan.num_micro_batches(config.batch_size)} x {plan.micro_batch_size} rows a step",
        "Expected": f"about {duration(seconds * rows)} ({config.max_length / seconds:,.0f} tokens/s), and "
        f"{evaluations} evaluation{'s' if evaluations > 1 else ''}",
        "Folder": config.output_dir,
    }
    print("\n" + "\n".join(f"{name:<11} {text}" for name, text in lines.items()) + "\n", flush=True)


def measure_row(model, batch: dict, accelerator: Accelerator) -> float:
    """Seconds of the forward and backward passes of all processes for a row, from one micro-batch, before training.

    The model keeps its weights, has no gradients afterwards, and the random state is as before.
    """
    model.train()
    device = accelerator.device
    inputs = to_device(batch, device)
    times = []
    with torch.random.fork_rng():
        for _ in range(3):
            started = time.perf_counter()
            with accelerator.autocast():
                loss = model(**inputs).loss
            loss.backward()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - started)
    model.zero_grad(set_to_none=True)
    return min(times) / (len(batch["labels"]) * accelerator.num_processes)


class Monitor:
    """Progress and metrics of the main process; the others stay silent.

    Args:
        config: of the run.
        start: steps that were done before; metrics of later steps, which will be done again, are dropped.
        active: whether this is the main process.
    """

    def __init__(self, config: PretrainConfig, start: int, active: bool):
        self.config = config
        self.active = active
        self.path = Path(config.output_dir) / METRICS_FILE
        self.start = start
        self.tokens = 0
        self.losses: list[float] = []
        self.started = self.last_log = self.last_line = time.perf_counter()
        if not active:
            return
        kept = [record for record in read_metrics(self.path) if record["step"] <= start]
        write_text(self.path, "".join(json.dumps(record) + "\n" for record in kept))
        self.bar = tqdm(
            total=config.max_steps, initial=start, unit="step", disable=not sys.stderr.isatty(), dynamic_ncols=True
        )

    def step_done(self, progress: Progress, result: StepResult, learning_rate: float):
        """Take in the result of the last step of `progress`."""
        step = progress.step
        self.tokens += result.tokens
        if not result.skipped:
            self.losses.append(result.loss)
        if not self.active:
            return
        self.bar.update()
        if result.skipped:
            self.say(f"step {step}: loss or gradient is not finite; the step was skipped ({progress.skipped} so far)")
        # Also where a checkpoint may be written, so that no mean of losses spans one and a resumed run has the same.
        intervals = [self.config.logging_steps, self.config.save_steps or self.config.max_steps]
        if result.stop or step == self.config.max_steps or any(step % interval == 0 for interval in intervals):
            self._log_training(progress, result, learning_rate)

    def _log_training(self, progress: Progress, result: StepResult, learning_rate: float):
        now, step = time.perf_counter(), progress.step
        record = {
            "step": step,
            "loss": sum(self.losses) / len(self.losses) if self.losses else None,
            "learning_rate": learning_rate,
            "gradient_norm": result.gradient_norm,
            "tokens_per_second": round(self.tokens / (now - self.last_log)),
            "skipped_steps": progress.skipped,
        }
        self.record(record)
        self.losses, self.tokens, self.last_log = [], 0, now
        loss = "none" if record["loss"] is None else f"{record['loss']:.3f}"
        speed = f"{record['tokens_per_second']:,} tokens/s"
        self.bar.set_postfix_str(f"loss {loss}, {speed}")
        if self.bar.disable and now - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = now
            left = (now - self.started) / (step - self.start) * (self.config.max_steps - step)
            place = f"step {step:,}/{self.config.max_steps:,}"
            print(f"{place}  loss {loss}  {speed}  {duration(left)} left", flush=True)

    def evaluated(self, step: int, validation_loss: float):
        """Take in a validation loss."""
        if self.active:
            self.record({"step": step, "validation_loss": validation_loss})
            self.say(f"step {step:,}/{self.config.max_steps:,}  validation loss {validation_loss:.3f}")

    def untimed(self, work: Callable, *arguments):
        """Do something that is not training, such as an evaluation, without counting its time as training."""
        started = time.perf_counter()
        result = work(*arguments)
        self.last_log += time.perf_counter() - started
        return result

    def say(self, line: str):
        """Print a line above the progress bar."""
        if self.active:
            tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()

    def record(self, record: dict):
        """Append a line to the metrics."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def close(self):
        if self.active:
            self.bar.close()


def read_metrics(path: Path) -> list[dict]:
    """The records of a metrics file; a last line cut short by a crash is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records
