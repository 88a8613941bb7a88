"""Each operation of a training step, forward and backward, is counted in its part."""

from collections import Counter

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.speed.models import ModelName, new_config, new_model
from benchmarks.speed.profile_step import (
    BACKWARD,
    Trainee,
    find_parts,
    marked_parts,
    parts_of,
    parts_table,
    seconds_by_part,
)


LAYERS = 2


@pytest.fixture(scope="module", params=["head", "no head"])
def profiled(request: pytest.FixtureRequest) -> tuple[Trainee, list]:
    """A tiny model, and the events of one of its steps."""
    torch.manual_seed(0)
    name = ModelName.parse("luna-16")
    config = new_config(name, 32, dropout=0.1, layers=LAYERS, size="tiny")
    head = request.param == "head"
    model = new_model(name, config, head)
    trainee = Trainee(model, torch.randint(4, config.vocab_size, (2, 32)), head, "cpu", "float32")
    trainee.step()
    with marked_parts(model), profile(activities=[ProfilerActivity.CPU]) as profiler:
        trainee.step()
    return trainee, list(profiler.events())


def test_a_matrix_product_counts_in_its_part_forward_and_backward(profiled: tuple[Trainee, list]):
    trainee, events = profiled
    linear = Counter(part for module, part in parts_of(trainee.model).items() if isinstance(module, nn.Linear))
    assert linear["projections"] == 5 * LAYERS and linear["FFN"] == 2 * LAYERS
    if trainee.head:
        linear["head"] = 2
    parts = find_parts(events)
    assert Counter(part for part, event in parts if event.name == "aten::addmm") == linear
    assert Counter(part for part, event in parts if event.name == f"{BACKWARD}AddmmBackward0") == linear


def test_norms_dropout_and_attention_have_their_backward(profiled: tuple[Trainee, list]):
    trainee, events = profiled
    found = [(part, event.name) for part, event in find_parts(events) if event.name.startswith(BACKWARD)]
    nodes = Counter((part, name.removeprefix(BACKWARD)) for part, name in found)
    assert nodes["norms", "NativeLayerNormBackward0"] == 3 * LAYERS
    assert nodes["embeddings", "NativeLayerNormBackward0"] == 2
    assert nodes["head", "NativeLayerNormBackward0"] == trainee.head
    assert nodes["pack", "SoftmaxBackward0"] == nodes["unpack", "SoftmaxBackward0"] == LAYERS
    assert nodes["dropout", "MulBackward0"] > 0
    assert nodes["FFN", "GeluBackward0"] == LAYERS
    assert nodes["head", "NllLossBackward0"] == trainee.head


def test_no_time_is_lost_or_counted_twice(profiled: tuple[Trainee, list]):
    trainee, events = profiled
    seconds = seconds_by_part(events, "cpu")
    whole = sum(event.cpu_time_total for event in events if event.cpu_parent is None) / 1e6
    assert sum(seconds.values()) == pytest.approx(whole, rel=0.01)
    assert set(seconds) >= {"data", "embeddings", "projections", "pack", "unpack", "FFN", "norms", "optimizer", "rest"}
    assert ("head" in seconds) == trainee.head


def test_table_of_parts():
    table = parts_table(Counter({"FFN": 0.3, "rest": 0.1}), {"FFN": 10_000_000_000, "convolution": 0}, 400e9)
    assert table.splitlines()[2:] == [
        "| FFN | 300.0 | 75.0% | 50% |",
        "| rest | 100.0 | 25.0% |  |",
        "| sum | 400.0 | 100.0% | 38% |",
    ]
