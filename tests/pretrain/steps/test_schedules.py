"""Schedules: their shapes and ends in each unit, and the length of a run."""

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

from common.config.yaml_config import ConfigurationError
from pretrain import training
from pretrain.checkpointing.folders import read_state
from pretrain.steps.batches import BatchSizes
from pretrain.steps.schedules import Schedule


PEAK = 0.8
KINDS = ["linear", "cosine", "trapezoidal"]


@pytest.fixture
def build(build_config: Callable, tmp_path: Path) -> Callable[..., Schedule]:
    """A schedule of rows of 32 tokens, 16 a step; without a length of 100 steps."""

    def build(**changes) -> Schedule:
        config = build_config(tmp_path, learning_rate=PEAK, **({"max_steps": 100, "warmup_steps": None} | changes))
        config.validate()
        return Schedule.from_config(config, BatchSizes.from_config(config))

    return build


def rates(schedule: Schedule, steps: int) -> list[float]:
    return [schedule.learning_rate(step, 0.0) for step in range(steps)]


def test_linear(build: Callable):
    """The rate reaches the peak at the last step of the warm-up, and would reach 0 at the step after the last."""
    schedule = build(max_steps=12, warmup_steps=4)
    expected = [0.2, 0.4, 0.6, 0.8, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    assert rates(schedule, 12) == pytest.approx(expected)
    assert rates(build(max_steps=4, warmup_steps=0), 4) == pytest.approx([0.8, 0.6, 0.4, 0.2])
    assert rates(build(max_steps=4, warmup_steps=4), 4) == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert rates(build(max_steps=1), 1) == pytest.approx([0.8])


def test_cosine(build: Callable):
    schedule = build(lr_scheduler_type="cosine", max_steps=12, warmup_steps=4)
    falling = [0.8 * (1 + math.cos(math.pi * k / 8)) / 2 for k in range(8)]
    assert rates(schedule, 12) == pytest.approx([0.2, 0.4, 0.6, 0.8, *falling])


def test_trapezoidal(build: Callable):
    schedule = build(lr_scheduler_type="trapezoidal", max_steps=20, warmup_steps=4, decay_steps=9)
    falling = [0.8 * (1 - math.sqrt(k / 9)) for k in range(9)]
    assert rates(schedule, 20) == pytest.approx([0.2, 0.4, 0.6, 0.8, *[0.8] * 7, *falling])
    assert rates(build(lr_scheduler_type="trapezoidal", decay_steps=0), 100)[6:] == [PEAK] * 94


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("minimum", [0.0, 0.08])
@pytest.mark.parametrize("unit", ["steps", "tokens"])
def test_every_step_moves_the_weights(build: Callable, kind: str, minimum: float, unit: str):
    length = {"max_steps": 100} if unit == "steps" else {"max_steps": None, "max_tokens": 100 * 16 * 32}
    all_rates = rates(build(lr_scheduler_type=kind, min_learning_rate=minimum, **length), 100)
    peak = all_rates.index(max(all_rates))
    assert max(all_rates) == pytest.approx(PEAK)
    assert all(first < second for first, second in pairwise(all_rates[: peak + 1]))
    assert all(first >= second for first, second in pairwise(all_rates[peak:]))
    assert all_rates[0] > 0
    assert minimum < all_rates[-1] < minimum + 0.1 * PEAK


@pytest.mark.parametrize("kind", KINDS)
def test_defaults_of_warm_up_and_decay(build: Callable, kind: str):
    all_rates = rates(build(lr_scheduler_type=kind, max_steps=200), 200)
    assert all_rates[11] == pytest.approx(PEAK) and all_rates[10] < PEAK  # 6 % of the run
    if kind == "trapezoidal":
        assert all_rates[11:181] == [PEAK] * 170
        assert all_rates[181] < PEAK  # the last 10 %
    hours = build(lr_scheduler_type=kind, max_steps=None, max_train_hours=10.0)
    assert hours.learning_rate(5, 3600 * 0.3) == pytest.approx(PEAK / 2)
    assert hours.learning_rate(5, 3600 * 0.6) == pytest.approx(PEAK)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_curve_in_each_unit(build: Callable, kind: str):
    """A step of 512 tokens that takes 36 seconds; the warm-up in hours lags by one step, whose length is unknown."""
    units = {"steps": 1, "tokens": 512, "hours": 0.01}
    schedules = {}
    for unit, size in units.items():
        decay = {} if kind != "trapezoidal" else {f"decay_{unit}": 25 * size}
        key = "max_train_hours" if unit == "hours" else f"max_{unit}"
        changes = {"max_steps": None, key: 100 * size, f"warmup_{unit}": 20 * size, **decay}
        schedules[unit] = build(lr_scheduler_type=kind, min_learning_rate=0.1, **changes)
    for step in range(100):
        expected = schedules["steps"].learning_rate(step, 0.0)
        assert schedules["tokens"].learning_rate(step, 0.0) == pytest.approx(expected)
        assert schedules["hours"].share(step, 36.0 * step) == pytest.approx(step / 100)
        if step >= 20:
            assert schedules["hours"].learning_rate(step, 36.0 * step) == pytest.approx(expected)
        elif step > 0:
            before = schedules["steps"].learning_rate(step - 1, 0.0)
            assert schedules["hours"].learning_rate(step, 36.0 * step) == pytest.approx(before)
    for unit, schedule in schedules.items():
        assert schedule.total_steps == (None if unit == "hours" else 100)
        assert not schedule.finished(99, 3599.0)
        assert schedule.finished(100, 3600.0)
        assert schedule.share(100, 3600.0) == 1.0


def test_hours_begin_above_zero_and_end_in_time(build: Callable):
    schedule = build(max_steps=None, max_train_hours=2.0, warmup_hours=0.5, lr_scheduler_type="cosine")
    assert schedule.learning_rate(0, 0.0) == pytest.approx(0.01 * PEAK)
    assert schedule.learning_rate(1, 1800.0) == pytest.approx(PEAK)
    assert not schedule.finished(10**6, 7199.9)
    assert schedule.finished(3, 7200.0)
    assert schedule.learning_rate(7, 7300.0) == 0.0  # the last step may end late
    assert schedule.share(7, 7300.0) == 1.0


@pytest.mark.parametrize("tokens", [1, 511, 512, 513, 20_000, 100_000, 10**12])
@pytest.mark.parametrize("ramp", [{}, {"batch_size_start": 3, "batch_size_ramp_steps": 20}])
def test_length_in_tokens(build: Callable, tokens: int, ramp: dict):
    """The run ends with the first step that has brought it to the number of tokens, with a ramp, too."""
    schedule = build(max_steps=None, max_tokens=tokens, **ramp)
    steps = schedule.total_steps
    places = [schedule.sizes.rows_before(step) * 32 for step in (steps - 1, steps)]
    assert places[0] < tokens <= places[1]
    assert not schedule.finished(steps - 1, 0.0)
    assert schedule.finished(steps, 0.0)
    assert 0 < schedule.learning_rate(steps - 1, 0.0) <= PEAK
    if ramp and tokens == 20_000:
        assert steps > build(max_steps=None, max_tokens=tokens).total_steps == 40


def test_a_ramp_stretches_the_warm_up_in_tokens(build: Callable):
    """The warm-up lasts until its tokens are seen, not for a number of steps."""
    ramp = {"batch_size_start": 4, "batch_size_ramp_steps": 30}
    schedule = build(max_steps=None, max_tokens=512 * 100, warmup_tokens=512 * 10, **ramp)
    seen = [schedule.sizes.rows_before(step + 1) * 32 for step in range(40)]
    assert seen[10] < 512 * 10
    for step in range(40):
        if seen[step] < 512 * 10:
            assert schedule.learning_rate(step, 0.0) == pytest.approx(PEAK * seen[step] / (512 * 10))
    assert max(rates(schedule, 40)) == pytest.approx(PEAK, rel=0.02)


def test_warm_up_and_decay_longer_than_the_run(build: Callable):
    with pytest.raises(ConfigurationError, match=r"warmup_steps \(60\) and decay_steps \(50\) .* max_steps \(100\)"):
        build(lr_scheduler_type="trapezoidal", warmup_steps=60, decay_steps=50)
    build(lr_scheduler_type="trapezoidal", warmup_steps=50, decay_steps=50)
    build(warmup_steps=95)


def test_the_rate_is_a_function_of_step_and_time(build: Callable):
    """Asked in any order, twice, and far into a long run, where it takes no longer."""
    schedule = build(max_steps=10**9, warmup_steps=1000)
    steps = [999_999_999, 5, 10**8, 5, 0]
    assert [schedule.learning_rate(step, 0.0) for step in steps] == [
        schedule.learning_rate(step, 1e9) for step in steps
    ]
    assert schedule.learning_rate(999_999_999, 0.0) == pytest.approx(PEAK / 1e9, rel=1e-2)


@pytest.mark.slow
def test_a_run_in_tokens_ends_with_the_step_that_reaches_them(build_config: Callable, train: Callable, tmp_path: Path):
    """With the ramp of the batch size, under which tokens are not proportional to steps."""
    changes = {"max_steps": None, "warmup_steps": None, "batch_size_start": 4, "batch_size_ramp_steps": 6}
    config = build_config(tmp_path, max_tokens=4000, warmup_tokens=600, save_steps=5, eval_steps=0, **changes)
    rows = [4, 4, 8, 8, 12, 12, *[16] * 5]  # 4,096 tokens
    metrics = train(config)
    rates = [record["learning_rate"] for record in metrics if "loss" in record]
    assert len(rates) == len(rows)
    before = [32 * sum(rows[:step]) for step in range(len(rows) + 1)]
    for step, rate in enumerate(rates):
        height = min(1.0, (4000 - before[step]) / 3400)
        assert rate == pytest.approx(5e-3 * min(1.0, before[step + 1] / 600) * height)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == [f"checkpoint-{n}" for n in (10, 11, 5)]
    assert metrics[-1]["step"] == 11 and metrics[-1]["validation_loss"] > 0


@pytest.mark.slow
def test_a_run_in_hours_ends_by_itself_and_goes_on_for_longer(
    build_config: Callable, train: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    """Each step takes 100 seconds, each evaluation 5,000, which do not count; the number of steps is nowhere known."""
    now = 0.0
    optimizer_step, evaluate = training.optimizer_step, training.evaluate

    def slow(work: Callable, seconds: float) -> Callable:
        def slowed(*arguments, **more):
            nonlocal now
            now += seconds
            return work(*arguments, **more)

        return slowed

    monkeypatch.setattr(training, "time", SimpleNamespace(perf_counter=lambda: now))
    monkeypatch.setattr(training, "optimizer_step", slow(optimizer_step, 100.0))
    monkeypatch.setattr(training, "evaluate", slow(evaluate, 5000.0))
    hour = 1000 / 3600
    config = build_config(
        tmp_path, max_steps=None, warmup_steps=None, max_train_hours=hour, warmup_hours=0.2 * hour,
        decay_hours=0.4 * hour, lr_scheduler_type="trapezoidal", eval_steps=4, dataloader_num_workers=1,
    )  # fmt: skip
    metrics = train(config)
    # The time before a step is known when the next one begins.
    heights = [0.01, 0.01, 0.5, *[1.0] * 5, *(1 - math.sqrt(k / 4) for k in (1, 2, 3, 4))]
    assert [r["learning_rate"] for r in metrics if "loss" in r] == pytest.approx([5e-3 * h for h in heights])
    assert [r["step"] for r in metrics if "validation_loss" in r] == [4, 8, 12]
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-12"]
    assert read_state(tmp_path / "checkpoint-12")["progress"]["seconds"] == 1100.0
    assert (tmp_path / "model/config.json").exists()

    assert train(config) == metrics
    assert "Going on from step 12\n" in capsys.readouterr().out
    config.max_train_hours = 1.5 * hour
    longer = [r for r in train(config) if "loss" in r]
    # The twelfth step, which ended the run, is not in what the checkpoint says.
    assert [r["step"] for r in longer] == list(range(1, 19))
    heights = [1.0, 1.0, *(1 - math.sqrt(k / 4) for k in (1, 2, 3, 4))]
    assert [r["learning_rate"] for r in longer[12:]] == pytest.approx([5e-3 * h for h in heights])


@pytest.mark.slow
def test_processes_agree_on_the_time(build_config: Callable, python: Callable, write_config: Callable, tmp_path: Path):
    """With clocks that differ, both have the same rates and end at the same step."""
    changes = {"max_steps": None, "warmup_steps": None, "eval_steps": 0}
    config = build_config(tmp_path / "run", max_train_hours=1.0 / 3600, **changes)
    file = write_config(config, tmp_path / "run.yaml")
    program = tmp_path / "program.py"
    program.write_text(f"""
import os, time
from pretrain import run_mlm
from pretrain.steps.schedules import Schedule

counter, rank, learning_rate = time.perf_counter, int(os.environ["RANK"]), Schedule.learning_rate
time.perf_counter = lambda: counter() * (1 + 5 * rank)

def noted(self, step, seconds):
    rate = learning_rate(self, step, seconds)
    with open({str(tmp_path)!r} + f"/rates-{{rank}}", "a") as file:
        print(step, rate, file=file)
    return rate

Schedule.learning_rate = noted
if __name__ == "__main__":
    run_mlm.main(run_mlm.load_config([{str(file)!r}]))
""")
    launcher = ("-m", "accelerate.commands.launch", "--config_file", "configs/accelerate/cpu_2_processes.yaml")
    finished = python(*launcher, program)
    assert finished.returncode == 0, finished.stderr
    first, second = ((tmp_path / f"rates-{rank}").read_text() for rank in (0, 1))
    assert first == second and first.count("\n") > 5
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-*")
    assert read_state(checkpoint)["progress"]["step"] == first.count("\n")
