"""The plan of a run: what it shows, and how it times a row."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from modeling_luna import LunaConfig, LunaForMaskedLM
from pretrain.steps.batches import BatchPlan, BatchSizes
from pretrain.steps.schedules import Schedule
from pretrain.watching import plan as plan_module
from pretrain.watching.plan import measure_row, print_plan


MANIFEST = {
    "fingerprint": "f",
    "splits": {"train": {"tokens": 5000, "documents": 50}, "validation": {"tokens": 100, "documents": 5}},
}


class Clock:
    """A time that goes on by hand."""

    def __init__(self):
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


def test_a_row_is_timed_without_a_trace(build_config: Callable, tmp_path: Path):
    torch.manual_seed(0)
    fields = build_config(tmp_path).model | {"hidden_dropout_prob": 0.5}
    model = LunaForMaskedLM(LunaConfig(**fields, vocab_size=400))
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ids = torch.randint(3, 400, (4, 32))
    state = torch.get_rng_state()
    accelerator = SimpleNamespace(device=torch.device("cpu"), num_processes=2, autocast=nullcontext)
    seconds, advice = measure_row(model, {"input_ids": ids, "labels": ids}, accelerator)
    assert 0 < seconds < 10 and advice is None
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("seconds", "advice"),
    [
        ({4: 0.9, 2: 0.8, 1: 0.3}, "1 of the 4 threads is 3.0 times as fast as all of them, as other programs use"),
        ({4: 0.9, 2: 0.5, 1: 0.6}, "2 of the 4 threads are 1.8 times as fast as all of them, as other programs use"),
        ({4: 0.3, 2: 0.6, 1: 1.2}, None),
        ({4: 0.4, 2: 0.3, 1: 0.6}, None),
        ({1: 1.0}, None),
    ],
)
def test_advice_where_fewer_threads_are_faster(
    build_config: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: dict, advice: str | None
):
    """On a clock that each pass moves on by the seconds of the present number of threads."""
    clock, threads = Clock(), [max(seconds)]
    monkeypatch.setattr(plan_module, "time", clock)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[-1])
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    model = LunaForMaskedLM(LunaConfig(**build_config(tmp_path).model, vocab_size=400))

    def pass_time(*arguments):
        clock.now += seconds[threads[-1]]

    model.register_forward_hook(pass_time)
    ids = torch.randint(3, 400, (4, 32))
    accelerator = SimpleNamespace(device=torch.device("cpu"), num_processes=1, autocast=nullcontext)
    row, line = measure_row(model, {"input_ids": ids, "labels": ids}, accelerator)
    assert row == pytest.approx(seconds[max(seconds)] / 4) and threads[-1] == max(seconds)
    assert (line is None) == (advice is None) and (advice is None or line.startswith(advice))


@pytest.mark.parametrize(("total", "hours"), [(20, None), (None, 0.5)])
def test_plan(build_config: Callable, tmp_path: Path, capsys, total: int | None, hours: float | None):
    changes = {"max_steps": total, "max_train_hours": hours, "warmup_steps": None}
    ramps = {"batch_size_start": 4, "batch_size_ramp_steps": 10, "max_length_start": 8, "max_length_ramp_steps": 4}
    config = build_config(tmp_path, **ramps, **changes)
    model = LunaForMaskedLM(LunaConfig(**config.model, vocab_size=400))
    plan = BatchPlan(BatchSizes.from_config(config))
    schedule = Schedule.from_config(config, plan.sizes)
    accelerator = SimpleNamespace(device=torch.device("cpu"), num_processes=1, mixed_precision="no")
    print_plan(config, model, MANIFEST, plan, accelerator, 0.01, schedule)
    output = capsys.readouterr().out
    assert "3,200 tokens/s" in output and f"{model.num_parameters():,} parameters" in output
    rows = plan.sizes.rows_before(20) if total else 180_000
    assert f"{rows * 32:,} tokens, {rows * 32 / 5000:.1f} times the data" in output
    assert "rows of 8 to 32 tokens: " in output
    assert ("20 of 4 to 16 rows" in output) if total else ("as many as 0.5 h allow" in output)
