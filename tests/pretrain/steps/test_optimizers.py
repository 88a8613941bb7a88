"""Optimisers: their updates against their formulas, weight decay, state, and sharded weights."""

import copy
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from sharded_two_ranks import run_two_ranks
from torch import nn

from pretrain.steps.optimizers import build_optimizer


RATE, BETAS, EPSILON, DECAY = 0.05, (0.9, 0.98), 1e-6, 0.1
KINDS = ["adamw", "stable_adamw"]


@pytest.fixture
def build(build_config: Callable, tmp_path: Path) -> Callable[..., torch.optim.Optimizer]:
    def build(model: nn.Module, kind: str) -> torch.optim.Optimizer:
        config = build_config(tmp_path, optimizer=kind, learning_rate=RATE, weight_decay=DECAY)
        return build_optimizer(model, config)

    return build


def build_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 3, bias=False))


def gradients(model: nn.Module, step: int) -> list[torch.Tensor]:
    """They grow suddenly at the third step, and are small again after it."""
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(p.shape, generator=generator) * (100 if step == 2 else 1) for p in model.parameters()]


def update(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range):
    for step in steps:
        for parameter, gradient in zip(model.parameters(), gradients(model, step), strict=True):
            parameter.grad = gradient
        optimizer.step()


def expected_weights(model: nn.Module, steps: int, clipped: bool) -> tuple[list[torch.Tensor], list[float]]:
    """AdamW, and algorithm 2 of Wortsman et al., which divides the rate by the RMS of gradient / sqrt(second moment)
    where that is above 1. Also the RMS of each step and parameter."""
    weights = [parameter.detach().double() for parameter in model.parameters()]
    firsts, seconds = ([torch.zeros_like(weight) for weight in weights] for _ in range(2))
    sizes = []
    for step in range(steps):
        for number, gradient in enumerate(gradients(model, step)):
            g, t = gradient.double(), step + 1
            firsts[number] = BETAS[0] * firsts[number] + (1 - BETAS[0]) * g
            seconds[number] = BETAS[1] * seconds[number] + (1 - BETAS[1]) * g**2
            first, second = firsts[number] / (1 - BETAS[0] ** t), seconds[number] / (1 - BETAS[1] ** t)
            size = math.sqrt((g**2 / second.clamp(min=EPSILON**2)).mean())
            rate = RATE / max(1.0, size) if clipped else RATE
            decay = DECAY if weights[number].ndim > 1 else 0.0
            weights[number] = weights[number] * (1 - rate * decay) - rate * first / (second.sqrt() + EPSILON)
            sizes.append(size)
    return weights, sizes


@pytest.mark.parametrize("kind", KINDS)
def test_updates_equal_the_formula(build: Callable, kind: str):
    model = build_model()
    expected, sizes = expected_weights(model, steps=5, clipped=kind == "stable_adamw")
    assert max(sizes) > 1.5 and min(sizes) < 0.1, "the case reaches both sides of the limit"
    update(model, build(model, kind), range(5))
    for parameter, weight in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.double(), weight, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_can_be_saved_and_loaded(build: Callable, kind: str):
    """By `state_dict`, and from the moments and the number of updates alone, which is what a checkpoint holds."""
    model = build_model()
    optimizer = build(model, kind)
    update(model, optimizer, range(3))
    weights, state = [p.detach().clone() for p in model.parameters()], copy.deepcopy(optimizer.state_dict())
    moments = [
        {name: value.clone() for name, value in optimizer.state[p].items() if name in ("exp_avg", "exp_avg_sq")}
        for p in model.parameters()
    ]
    assert all(len(of_parameter) == 2 for of_parameter in moments)
    update(model, optimizer, range(3, 6))
    expected = [p.detach().clone() for p in model.parameters()]

    for whole_state in (True, False):
        with torch.no_grad():
            for parameter, weight in zip(model.parameters(), weights, strict=True):
                parameter.copy_(weight)
        fresh = build(model, kind)
        if whole_state:
            fresh.load_state_dict(state)
        elif kind == "stable_adamw":
            assert all(group["step"] == 6 for group in optimizer.param_groups)
            assert all(group["step"] == 0 for group in fresh.param_groups)
            for group in fresh.param_groups:
                group["step"] = 3
            for parameter, of_parameter in zip(model.parameters(), moments, strict=True):
                fresh.state[parameter] = {**of_parameter, "kahan_comp": None}
        else:
            assert all(optimizer.state[p]["step"] == 6 for p in model.parameters())
            for parameter, of_parameter in zip(model.parameters(), moments, strict=True):
                fresh.state[parameter] = {**of_parameter, "step": torch.tensor(3.0)}
        update(model, fresh, range(3, 6))
        assert all(torch.equal(p, e) for p, e in zip(model.parameters(), expected, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_parameters_are_left_out(build: Callable, kind: str):
    model = build_model()
    model[0].weight.requires_grad_(False)
    optimizer = build(model, kind)
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert len(held) == 4 and not any(parameter is model[0].weight for parameter in held)


def test_weight_decay_where_a_process_holds_no_part_of_a_matrix(build: Callable):
    """DeepSpeed ZeRO-3 leaves an empty tensor and the shape of the whole."""
    model = build_model()
    model[0].weight.data = torch.empty(0)
    model[0].weight.ds_shape = torch.Size([5, 4])
    decayed = build(model, "adamw").param_groups[0]
    assert decayed["weight_decay"] == DECAY
    assert any(parameter is model[0].weight for parameter in decayed["params"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_sharded_weights_get_the_same_updates(tmp_path: Path, environment: dict[str, str], kind: str):
    """The RMS of a matrix is that of the whole, of which each process holds a part."""
    assert max(run_two_ranks("optimizer", kind, tmp_path, environment)) < 1e-6
