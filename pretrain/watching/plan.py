"""What a run prints before its first step: the plan, with the time that it is expected to take."""

import time
from collections.abc import Callable

import torch
from accelerate import Accelerator

from common.architectures import describe_shape
from common.durations import duration
from common.hardware import describe_hardware
from pretrain.configuration import PretrainConfig
from pretrain.steps.batches import BatchPlan
from pretrain.steps.optimization import to_device
from pretrain.steps.schedules import Schedule


TIMINGS = 3  # of which the fastest counts
WORTH_SAYING = 1.5  # times as fast with fewer threads


def print_plan(
    config: PretrainConfig,
    model,
    manifest: dict | None,
    plan: BatchPlan,
    accelerator: Accelerator,
    seconds: float,
    schedule: Schedule,
    advice: str | None = None,
):
    """Model, data and steps in a few lines, before the first step.

    Args:
        manifest: of the prepared data; None where they are still to be prepared.
        seconds: the expected time of one row.
        advice: about the threads.
    """
    sources = ", ".join(source.path for source in config.sources())
    if schedule.total_steps is None:
        rows = round(3600 * schedule.length / seconds)
        steps, expected = f"as many as {schedule.length:g} h allow, of", f"about {rows:,} rows"
    else:
        rows = plan.sizes.rows_before(schedule.total_steps)
        steps, expected = f"{schedule.total_steps:,} of", f"about {duration(seconds * rows)}"
    tokens = rows * config.max_length
    data, share = f"{sources}: still to be prepared", ""
    if manifest is not None:
        train, validation = manifest["splits"]["train"], manifest["splits"]["validation"]
        data = (
            f"{sources}: {train['tokens']:,} tokens in {train['documents']:,} documents to learn from, "
            f"{validation['tokens']:,} in {validation['documents']:,} held out"
        )
        share = f", {tokens / train['tokens']:.1f} times the data"
    rising = "" if plan.sizes.ramp_steps == 0 else f"{plan.sizes.start:,} to "
    lengthening = "" if config.max_length_start is None else f"{config.max_length_start:,} to "
    precision = "fp32" if accelerator.mixed_precision == "no" else accelerator.mixed_precision
    options = model.config
    start = f" from {config.init_from}" if config.init_from else ""
    name, own = config.model_type, ""
    if name == "luna":
        name = "Luna"
        own = f"projection length {options.projection_length}, convolution {options.conv_kernel_size or 'none'}, "
    lines = {
        "Model": f"{name}{start}, {model.num_parameters():,} parameters: {describe_shape(options)}, {own}vocabulary "
        f"{options.vocab_size:,}",
        "Data": data,
        "Steps": f"{steps} {rising}{config.batch_size:,} rows of {lengthening}{config.max_length:,} tokens: "
        f"{tokens:,} tokens{share}",
        "Processes": f"{accelerator.num_processes} on {accelerator.device.type} in {precision}, each "
        f"{plan.num_micro_batches(config.batch_size)} x {plan.micro_batch_size} rows a step",
        "Hardware": describe_hardware(accelerator),
        "Expected": f"{expected} ({config.max_length / seconds:,.0f} tokens/s)"
        + (f", an evaluation every {config.eval_steps:,} steps" if config.eval_steps else ", one evaluation"),
        "Folder": config.output_dir,
    }
    if advice:
        lines["Threads"] = advice
    print("\n" + "\n".join(f"{name:<11} {text}" for name, text in lines.items()) + "\n", flush=True)


def measure_row(model, batch: dict, accelerator: Accelerator) -> tuple[float, str | None]:
    """Seconds of the forward and backward passes of all processes for a row, from one micro-batch, before training;
    and a line about fewer threads where a single process on a CPU is faster with them.

    The model is not wrapped yet. It keeps its weights, has no gradients afterwards, and the random state is as before.
    """
    model.train()
    device = accelerator.device
    inputs = to_device(batch, device)

    def compute():
        with accelerator.autocast():
            loss = model(**inputs).loss
        loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    alone = device.type == "cpu" and accelerator.num_processes == 1
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        times = time_by_threads(compute, others=alone)
    model.zero_grad(set_to_none=True)
    return times[max(times)] / (len(batch["labels"]) * accelerator.num_processes), _advice_on_threads(times)


def time_by_threads(work: Callable[[], object], others: bool = True) -> dict[int, float]:
    """The seconds that some work takes by the number of threads of this process: the present number, and half of it,
    and so on as long as that is faster.

    Where other programs use the cores, threads that wait for each other spin, and fewer of them can be several times
    as fast.

    Args:
        others: whether other numbers than the present one are tried.
    """
    present = threads = torch.get_num_threads()
    times: dict[int, float] = {}
    try:
        while threads and (not times or min(times, key=lambda number: times[number]) == min(times)):
            torch.set_num_threads(threads)
            times[threads] = min(_time(work) for _ in range(TIMINGS))
            threads = threads // 2 if others else 0
    finally:
        torch.set_num_threads(present)
    return times


def _time(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _advice_on_threads(times: dict[int, float]) -> str | None:
    present, best = max(times), min(times, key=lambda number: times[number])
    ratio = times[present] / times[best]
    if ratio < WORTH_SAYING:
        return None
    return (
        f"{best} of the {present} threads {'is' if best == 1 else 'are'} {ratio:.1f} times as fast as all of them, as "
        f"other programs use the cores: start with OMP_NUM_THREADS={best} (results then differ in their last digits)"
    )
