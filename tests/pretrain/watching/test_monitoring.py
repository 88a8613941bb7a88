"""What is logged while a run goes on, also when it is resumed or the disk fails."""

import dataclasses
import io
import json
import math
import re
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from run_records import timeless

from common import signs_of_life
from common.durations import duration
from common.flops import training_flops
from modeling_luna import LunaConfig, LunaForMaskedLM
from pretrain.steps.batches import BatchSizes
from pretrain.steps.optimization import StepResult
from pretrain.steps.schedules import Schedule
from pretrain.watching import device_totals, monitoring
from pretrain.watching.metrics import read_metrics
from pretrain.watching.monitoring import Monitor
from pretrain.watching.progress import Progress


MANIFEST = {
    "fingerprint": "f",
    "splits": {"train": {"tokens": 5000, "documents": 50}, "validation": {"tokens": 100, "documents": 5}},
}
ROWS, TOKENS, PLACES, LABELLED = 16, 480, 512, 72
PEAK = 1e9


class Clock:
    """A time that goes on by hand."""

    def __init__(self):
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(monitoring, "time", clock)
    monkeypatch.setattr(monitoring, "peak_flops", lambda device, precision: PEAK)
    return clock


@pytest.fixture
def build_monitor(build_config: Callable, tmp_path: Path, clock: Clock) -> Callable:
    """A monitor of a tiny run and its progress."""
    config = build_config(tmp_path / "run")
    model = LunaForMaskedLM(LunaConfig(**config.model, vocab_size=400))
    (tmp_path / "run").mkdir()

    def build(
        step: int = 0,
        device: str = "cpu",
        processes: int = 1,
        main: bool = True,
        total: int | None = 20,
        hours: float | None = None,
        progress: Progress | None = None,
        expected: float | None = None,
        **more,
    ):
        for key, value in more.items():
            setattr(config, key, value)
        accelerator = SimpleNamespace(
            device=torch.device(device),
            num_processes=processes,
            is_main_process=main,
            mixed_precision="no",
            unwrap_model=lambda model: model,
        )
        progress = progress or Progress(step=step)
        config.max_steps, config.max_train_hours, config.warmup_steps = total, hours, None
        schedule = Schedule.from_config(config, BatchSizes.from_config(config))
        return Monitor(config, accelerator, model, progress, MANIFEST, schedule, expected), progress

    return build


def result(
    loss: float,
    norm: float = 1.0,
    skipped: bool = False,
    correct: int | None = None,
    stops: int = 0,
    device: str = "cpu",
    seconds: float = 0.0,
) -> StepResult:
    """Of a step of a batch of a fixed size."""
    numbers = {"tokens": TOKENS, "places": PLACES, "labelled": LABELLED, "rows": ROWS, "stops": stops}
    numbers["microseconds"] = round(1e6 * seconds)
    numbers |= {"loss": loss, "gradient_norm": norm, "skipped": skipped, "correct": correct}
    return StepResult(**{k: None if v is None else torch.tensor(v, device=device) for k, v in numbers.items()})


def do_step(
    monitor: Monitor,
    progress: Progress,
    step_result: StepResult,
    seconds: float = 1.0,
    waited: float = 0.0,
    last: bool = False,
    stopping: bool = False,
):
    monitoring.time.now += seconds
    progress.step += 1
    monitor.step_done(progress, step_result, 0.5, waited, last, stopping)


def metrics(tmp_path: Path) -> list[dict]:
    return read_metrics(tmp_path / "run" / "metrics.jsonl")


def test_record_of_the_steps_since_the_last_log(build_monitor: Callable, tmp_path: Path, clock: Clock):
    monitor, progress = build_monitor(logging_steps=2, processes=4)
    do_step(monitor, progress, result(2.0), seconds=4.0, waited=0.5)
    assert metrics(tmp_path) == []
    do_step(monitor, progress, result(4.0, norm=1.5, correct=18, seconds=9.96), seconds=6.0, waited=1.5)
    (record,) = metrics(tmp_path)
    flops = 2 * training_flops(monitor.model_config, ROWS, PLACES // ROWS, LABELLED)
    assert record.pop("peak_memory_gib") > 0.05
    assert record == {
        "step": 2,
        "loss": 3.0,
        "accuracy": 0.25,
        "perplexity": pytest.approx(math.e**3),
        "gradient_norm": 1.5,
        "learning_rate": 0.5,
        "tokens": 2 * TOKENS,
        "labelled_tokens": 2 * LABELLED,
        "training_seconds": 10.0,
        "tokens_per_second": 96,
        "tokens_per_second_per_device": 24,
        "mfu": pytest.approx(flops / (10 * 4 * PEAK), abs=1e-4),
        "padding_share": 0.0625,
        "data_wait_share": 0.2,
        "skipped_steps": 0,
    }

    # The next record holds its own steps alone, but all tokens.
    do_step(monitor, progress, result(1.0), seconds=2.0)
    do_step(monitor, progress, result(1.0), seconds=3.0)
    record = metrics(tmp_path)[1]
    assert (record["loss"], record["tokens"], record["tokens_per_second"]) == (1.0, 4 * TOKENS, 192)
    assert record["accuracy"] is None


@pytest.mark.parametrize("kept", ["the window", "none, as before there was one"])
def test_record_spans_a_stop(build_monitor: Callable, tmp_path: Path, clock: Clock, kept: str):
    monitor, progress = build_monitor(logging_steps=4)
    do_step(monitor, progress, result(0.1), seconds=4.0, waited=1.0)
    do_step(monitor, progress, result(math.nan, skipped=True), seconds=2.0, stopping=True)
    assert metrics(tmp_path) == [] and (progress.tokens, progress.skipped) == (0, 0)
    assert (progress.counted("tokens"), progress.counted("skipped"), progress.skipped_in_a_row) == (2 * TOKENS, 1, 1)

    stored = json.loads(json.dumps(dataclasses.asdict(progress)))  # as in a checkpoint
    if kept != "the window":
        del stored["window"]
    clock.now += 1000.0
    monitor, progress = build_monitor(progress=Progress(**stored))
    do_step(monitor, progress, result(0.2), seconds=1.0)
    do_step(monitor, progress, result(0.7), seconds=1.0)
    (record,) = metrics(tmp_path)
    if kept == "the window":
        assert record["loss"] == float(torch.tensor(0.1) + torch.tensor(0.2) + torch.tensor(0.7)) / 3
        assert (record["tokens"], record["labelled_tokens"], record["skipped_steps"]) == (4 * TOKENS, 4 * LABELLED, 1)
        assert (record["tokens_per_second"], record["data_wait_share"]) == (TOKENS / 2, 0.125)
    else:
        assert record["loss"] == pytest.approx(0.45)
        assert (record["tokens"], record["skipped_steps"], record["tokens_per_second"]) == (2 * TOKENS, 0, TOKENS)
    assert progress.window == {}


def test_untimed_work_does_not_count_as_training(build_monitor: Callable, tmp_path: Path, clock: Clock):
    monitor, progress = build_monitor()

    def evaluate(seconds: float) -> str:
        clock.now += seconds
        return "loss"

    assert monitor.untimed(evaluate, 99.0) == "loss"
    do_step(monitor, progress, result(2.0))
    assert metrics(tmp_path)[0]["tokens_per_second"] == TOKENS


def test_only_steps_that_log_wait_for_the_device(build_monitor: Callable, monkeypatch: pytest.MonkeyPatch):
    """Tensors without values, whose values cannot be asked for."""
    monkeypatch.setattr(device_totals, "send_to_host", lambda numbers: (numbers, None))
    monitor, progress = build_monitor(device="meta", logging_steps=5)
    for _ in range(4):
        do_step(monitor, progress, result(2.0, skipped=True, correct=1, device="meta"))
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        do_step(monitor, progress, result(2.0, device="meta"))


def test_news_come_two_steps_late(build_monitor: Callable):
    """What is asked before step k begins is that of step k - 2, whether steps in between are logged or not."""
    monitor, progress = build_monitor(logging_steps=3)
    bad, news = result(math.nan, skipped=True), []
    last = result(1.0, stops=2, seconds=40.5)
    for step_result in (result(1.0), bad, bad, last, result(1.0), result(1.0), result(1.0)):
        news.append(monitor.totals.late_news())
        do_step(monitor, progress, step_result)
    series = [(False, 0), (False, 0), (False, 0), (False, 1), (False, 2), (True, 2), (False, 2)]
    assert news == [(*pair, 40.5 if pair[0] else 0.0) for pair in series]


@pytest.mark.parametrize("main", [True, False])
def test_skipped_steps_are_counted_and_leave_the_mean_alone(build_monitor: Callable, tmp_path: Path, capsys, main):
    monitor, progress = build_monitor(logging_steps=4, main=main)
    bad = result(math.nan, norm=math.inf, skipped=True)
    for step_result in (result(2.0), bad, bad, result(4.0)):
        do_step(monitor, progress, step_result)
    assert (progress.skipped, progress.skipped_in_a_row, monitor.longest_skipped) == (2, 0, 2)
    for step_result in (result(1.0), result(1.0), bad, bad):
        do_step(monitor, progress, step_result)
    assert (progress.skipped, progress.skipped_in_a_row, monitor.longest_skipped) == (4, 2, 2)
    for step_result in (bad, bad, result(1.0), result(1.0)):  # a series of 4 across a log
        do_step(monitor, progress, step_result)
    assert (progress.skipped, progress.skipped_in_a_row, monitor.longest_skipped) == (6, 0, 4)
    for _ in range(4):
        do_step(monitor, progress, bad)
    assert (progress.skipped, progress.skipped_in_a_row, monitor.longest_skipped) == (10, 4, 4)
    if not main:
        assert metrics(tmp_path) == []
        return
    records = metrics(tmp_path)
    assert [record["loss"] for record in records] == [3.0, 1.0, 1.0, None]
    assert [record["skipped_steps"] for record in records] == [2, 4, 6, 10]
    assert records[-1]["gradient_norm"] is None and records[-1]["perplexity"] is None
    assert "NaN" not in (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8")
    assert "2 of the 4 steps up to 4 skipped" in capsys.readouterr().out


def test_series_of_skipped_steps_goes_on_after_a_resume(build_monitor: Callable):
    monitor, progress = build_monitor(progress=Progress(skipped=7, skipped_in_a_row=7))
    do_step(monitor, progress, result(1.0, skipped=True))
    assert (progress.skipped, progress.skipped_in_a_row, monitor.longest_skipped) == (8, 8, 8)


def test_steps_that_log(build_monitor: Callable, tmp_path: Path):
    monitor, progress = build_monitor(logging_steps=6, save_steps=4)
    assert [step for step in range(1, 21) if monitor.logs(step)] == [4, 6, 8, 12, 16, 18, 20]
    monitor, progress = build_monitor(logging_steps=6, save_steps=0, total=None, hours=1.0)
    assert [step for step in range(1, 21) if monitor.logs(step)] == [6, 12, 18]
    do_step(monitor, progress, result(2.0), last=True)
    assert [record["step"] for record in metrics(tmp_path)] == [1]


def test_resume_drops_what_will_be_done_again(build_monitor: Callable, tmp_path: Path):
    monitor, progress = build_monitor()
    for _ in range(6):
        do_step(monitor, progress, result(2.0))
        if progress.step % 2 == 0:
            monitor.evaluated(progress, {"validation_loss": 3.0})
    path = tmp_path / "run" / "metrics.jsonl"
    before = path.read_bytes().splitlines(keepends=True)
    assert len(before) == 9
    path.write_bytes(path.read_bytes() + b'{"step": 7, "lo')

    monitor, progress = build_monitor(step=4)
    assert path.read_bytes() == b"".join(before[:6])
    monitor.evaluated(progress, {"validation_loss": 9.0})  # there is one of step 4
    do_step(monitor, progress, result(5.0))
    do_step(monitor, progress, result(6.0))
    monitor.evaluated(progress, {"validation_loss": 4.0})
    monitor.evaluated(progress, {"validation_loss": 4.0})
    steps = [(record["step"], "loss" in record) for record in metrics(tmp_path)]
    assert steps == [
        (1, True),
        (2, True),
        (2, False),
        (3, True),
        (4, True),
        (4, False),
        (5, True),
        (6, True),
        (6, False),
    ]

    build_monitor(step=0)
    assert path.read_bytes() == b""


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Files that cannot grow beyond a size: as on a full disk, a part of a line may be written before the error."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk_is_a_warning_and_the_lines_come_later(build_monitor: Callable, tmp_path: Path, capsys):
    monitor, progress = build_monitor()
    do_step(monitor, progress, result(1.0))
    path = tmp_path / "run" / "metrics.jsonl"
    first = path.read_bytes()
    with file_size_limit(len(first) + 100):
        do_step(monitor, progress, result(2.0))
        do_step(monitor, progress, result(3.0))
    assert path.read_bytes() == first
    assert capsys.readouterr().out.count("warning: ") == 1
    do_step(monitor, progress, result(4.0))
    assert [(record["step"], record["loss"]) for record in metrics(tmp_path)] == [(k, float(k)) for k in range(1, 5)]


def test_folder_that_vanished_is_a_warning(build_monitor: Callable, tmp_path: Path, capsys):
    monitor, progress = build_monitor()
    shutil.rmtree(tmp_path / "run")
    do_step(monitor, progress, result(1.0))
    assert "metrics.jsonl cannot be written" in capsys.readouterr().out
    (tmp_path / "run").mkdir()
    do_step(monitor, progress, result(2.0))
    assert [record["step"] for record in metrics(tmp_path)] == [1, 2]


def test_output_that_is_gone_does_not_end_the_run(build_monitor: Callable, tmp_path: Path, monkeypatch):
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    monitor, progress = build_monitor()
    monkeypatch.setattr(monitoring, "SECONDS_BETWEEN_LINES", 0)
    monkeypatch.setattr(sys, "stdout", Gone())
    do_step(monitor, progress, result(1.0))
    monitor.evaluated(progress, {"validation_loss": 2.0})
    assert len(metrics(tmp_path)) == 2


def test_lines_where_there_is_no_terminal(build_monitor: Callable, clock: Clock, capsys):
    monitor, progress = build_monitor(step=5, batch_size_start=4, batch_size_ramp_steps=10)
    do_step(monitor, progress, result(2.0), seconds=30.0)
    first, done, end = (BatchSizes(16, 4, 10).rows_before(step) for step in (5, 6, 20))
    left = duration(30 / (done - first) * (end - done))
    assert capsys.readouterr().out == f"step 6 of 20  loss 2.000, 16 tokens/s, {left} left\n"
    do_step(monitor, progress, result(2.0))
    assert capsys.readouterr().out == ""

    monitor, progress = build_monitor(total=None, hours=2.0)
    do_step(monitor, progress, result(2.0, seconds=1800.0), seconds=1800.0)
    assert capsys.readouterr().out == "step 1  loss 2.000, 0 tokens/s, 1 h 30 min left\n"


def test_progress_bar_on_a_terminal(build_monitor: Callable, clock: Clock, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    for total, hours, shown in ((20, None, "1/20"), (None, 1.0, "1 h 00 min left")):
        monitor, progress = build_monitor(total=total, hours=hours)
        do_step(monitor, progress, result(2.0))
        monitor.bar.refresh()
        assert shown in terminal.getvalue() and "loss 2.000, 480 tokens/s" in terminal.getvalue()
        monitor.close()


def test_evaluations_and_collapsed_slots(build_monitor: Callable, tmp_path: Path, capsys):
    monitor, progress = build_monitor(step=3)
    values = {"validation_loss": 2.0, "validation_accuracy": 0.5}
    monitor.evaluated(progress, values | {"effective_rank": [7.5, 1.6]})
    output = capsys.readouterr().out
    assert output == "step 3 of 20  validation loss 2.000, accuracy 50.0%, effective rank of P 1.6 to 7.5\n"
    (record,) = metrics(tmp_path)
    assert record == {"step": 3, **values, "effective_rank": [7.5, 1.6], "validation_perplexity": math.exp(2.0)}
    progress.step = 4
    monitor.evaluated(progress, values | {"effective_rank": [7.5, 1.4]})
    assert "warning: slots have collapsed in layer 1" in capsys.readouterr().out


def test_validation_loss_that_is_not_finite_is_null(build_monitor: Callable, tmp_path: Path):
    monitor, progress = build_monitor(step=3)
    monitor.evaluated(progress, {"validation_loss": math.nan, "effective_rank": [math.nan, 2.0]})
    record = {"step": 3, "validation_loss": None, "effective_rank": [None, 2.0], "validation_perplexity": None}
    assert metrics(tmp_path) == [record]


def test_a_run_that_becomes_slow_is_said_once(build_monitor: Callable, capsys):
    monitor, progress = build_monitor(logging_steps=1, expected=TOKENS)
    for seconds in (1.0, 4.0, 1.0, 4.0, 4.0, 4.0, 4.0):
        do_step(monitor, progress, result(2.0), seconds=seconds)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert lines == [
        f"warning: 120 tokens/s are 25% of what the plan expects ({TOKENS}): something else uses this machine, where "
        "fewer threads (OMP_NUM_THREADS) can be faster"
    ]


@pytest.mark.slow
def test_metrics_of_a_run_and_its_resume(build_config: Callable, train: Callable, tmp_path: Path):
    config = build_config(tmp_path / "whole", max_steps=8, eval_steps=4, save_steps=4, logging_steps=2)
    whole = train(config)
    training = [record for record in whole if "loss" in record]
    assert [record["step"] for record in training] == [2, 4, 6, 8]
    assert [record["step"] for record in whole if "validation_loss" in record] == [4, 8]
    for record in training:
        assert None not in record.values()
        assert 0 <= record["accuracy"] <= 1 and 0 < record["mfu"] < 1.5 and 0 <= record["padding_share"] < 0.2
    assert training[-1]["tokens"] == pytest.approx(8 * 16 * 32, rel=0.05)
    assert training[-1]["labelled_tokens"] == pytest.approx(0.15 * 8 * 16 * 30, rel=0.1)

    shutil.copytree(tmp_path / "whole", tmp_path / "killed", ignore=shutil.ignore_patterns("checkpoint-8", "model"))
    config.output_dir = str(tmp_path / "killed")
    resumed = train(config)
    assert timeless(resumed) == timeless(whole)


def test_long_evaluations_and_preparations_say_how_far_they_are(
    build_config: Callable, train: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.setattr(signs_of_life, "SECONDS_BETWEEN_LINES", 0)
    train(build_config(tmp_path / "run", prepared_dir=str(tmp_path / "prepared"), max_steps=1, warmup_steps=1))
    output, errors = capsys.readouterr()
    assert re.search(r"^Evaluation: 1 of \d+ batches, .+ left$", output, re.MULTILINE)
    assert re.search(r"^Tokenising: \d+ MB in .+ s$", errors, re.MULTILINE)
