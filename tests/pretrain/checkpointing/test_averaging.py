"""Averages of weights: their values, swapping them in, state, and wrapped models."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from run_records import timeless
from safetensors.torch import load_file
from sharded_two_ranks import run_two_ranks
from torch import nn

from modeling_luna import LunaConfig, LunaForMaskedLM
from pretrain.checkpointing.averaging import WeightAverage


@pytest.fixture
def build(build_config: Callable, tmp_path: Path) -> Callable[..., WeightAverage]:
    def build(model: nn.Module, kind: str | None, **changes) -> WeightAverage:
        return WeightAverage.from_config(build_config(tmp_path, weight_averaging=kind, **changes), model)

    return build


def build_model(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(3, 2).to(dtype)


def set_weights(model: nn.Module, step: int):
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))


def run(model: nn.Module, average: WeightAverage, steps: range) -> dict[int, torch.Tensor]:
    """Give the model other weights at each step; those of `weight` by step, in float64."""
    seen = {}
    for step in steps:
        set_weights(model, step)
        average.update(step)
        seen[step] = model.weight.detach().double()
    return seen


def test_exponential(build: Callable):
    model = build_model()
    average = build(model, "exponential", averaging_decay=0.4)
    seen = run(model, average, range(1, 9))
    expected = seen[1]
    for n, step in enumerate(range(2, 9), start=1):
        decay = min(0.4, (1 + n) / (10 + n))  # 0.4 from the sixth on
        expected = decay * expected + (1 - decay) * seen[step]
    assert average.count == 8
    torch.testing.assert_close(average.tensors()["weight"].double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("start, interval, steps", [(0, 1, range(1, 11)), (4, 3, (4, 7, 10)), (5, 2, (5, 7, 9))])
def test_stage(build: Callable, start: int, interval: int, steps: range):
    """The plain mean, from the first step that counts on."""
    model = build_model()
    average = build(model, "stage", averaging_start_step=start, averaging_interval=interval)
    seen = run(model, average, range(1, 11))
    assert average.count == len(steps)
    expected = torch.stack([seen[step] for step in steps]).mean(dim=0)
    torch.testing.assert_close(average.tensors()["weight"].double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["exponential", "stage"])
def test_the_first_weights_that_count_replace_those_of_the_start(build: Callable, kind: str):
    model = build_model()
    average = build(model, kind, averaging_start_step=3)
    run(model, average, range(1, 3))
    assert average.count == 0
    assert torch.equal(average.tensors()["weight"], model.weight)  # the present ones as long as none count
    run(model, average, range(3, 4))
    assert average.count == 1
    assert torch.equal(average.tensors()["weight"], model.weight)


@pytest.mark.parametrize("kind", ["exponential", "stage"])
def test_an_average_goes_on_after_loading(build: Callable, kind: str):
    model = build_model()
    average = build(model, kind)
    assert not dict(average.state())  # nothing counts yet
    run(model, average, range(1, 5))
    state = {name: tensor.clone() for name, tensor in average.state()}
    run(model, average, range(5, 9))
    again = build(build_model(), kind)
    again.load_state(state)
    again.model = model
    run(model, again, range(5, 9))
    assert again.count == average.count == 8
    assert all(torch.equal(again.tensors()[name], average.tensors()[name]) for name in ("weight", "bias"))
    assert not any(tensor.data_ptr() == state[name].data_ptr() for name, tensor in again.tensors().items())


@pytest.mark.parametrize("kind", ["exponential", "stage"])
def test_weights_of_half_precision_are_averaged_in_float32(build: Callable, kind: str):
    """A mean of many numbers of 8 bits needs more than 8 bits."""
    model, exact = build_model(torch.bfloat16), build_model()
    averages = [build(m, kind, averaging_decay=0.99) for m in (model, exact)]
    for step in range(1, 200):
        set_weights(model, step)
        exact.load_state_dict(model.state_dict())
        for average in averages:
            average.update(step)
    rounded, expected = (average.tensors()["weight"] for average in averages)
    assert rounded.dtype == torch.float32
    assert torch.equal(rounded, expected)
    assert not torch.equal(rounded, rounded.bfloat16().float())


def test_swapping_in(build: Callable):
    model = build_model()
    average = build(model, "stage")
    run(model, average, range(1, 4))
    before, parameter = model.weight.detach().clone(), model.weight
    mean = average.tensors()["weight"].clone()
    with average.swapped_in():
        assert model.weight is parameter
        assert torch.equal(model.weight, mean)
    assert torch.equal(model.weight, before)
    with pytest.raises(RuntimeError, match="evaluation fails"), average.swapped_in():
        raise RuntimeError("evaluation fails")
    assert torch.equal(model.weight, before)
    assert torch.equal(average.tensors()["weight"], mean)
    with build(model, "stage").swapped_in():  # nothing counts yet
        assert torch.equal(model.weight, before)
    assert model.weight.requires_grad


def test_nothing_asked_for(build: Callable):
    assert build(build_model(), None) is None


def test_a_tied_weight_counts_once(build: Callable):
    config = LunaConfig(
        vocab_size=40, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        projection_length=4, max_position_embeddings=16,
    )  # fmt: skip
    model = LunaForMaskedLM(config)
    average = build(model, "stage")
    average.update(1)
    with torch.no_grad():
        model.luna.embeddings.word_embeddings.weight.add_(1.0)
    average.update(2)
    tensors = average.tensors()
    assert tensors.keys() == dict(model.named_parameters()).keys()
    assert "lm_head.decoder.weight" not in tensors
    before = model.lm_head.decoder.weight.detach().clone()
    with average.swapped_in():
        torch.testing.assert_close(model.lm_head.decoder.weight, before - 0.5)
        assert model.lm_head.decoder.weight is model.luna.embeddings.word_embeddings.weight


def test_names_below_ddp_are_those_of_the_model(build: Callable, tmp_path: Path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        average = build(nn.parallel.DistributedDataParallel(build_model()), "exponential")
        assert list(average.tensors()) == ["weight", "bias"]
    finally:
        torch.distributed.destroy_process_group()


def read_files(run: Path, step: int) -> dict[str, bytes]:
    names = (
        f"checkpoint-{step}/model.safetensors", f"checkpoint-{step}/training_state/optimizer.safetensors",
        f"checkpoint-{step}/training_state/average.safetensors", "model/model.safetensors",
    )  # fmt: skip
    return {name: (run / name).read_bytes() for name in names}


@pytest.mark.parametrize("optimizer, kind", [("stable_adamw", "exponential"), ("adamw", "stage")])
@pytest.mark.slow
def test_a_run_saves_the_average_and_goes_on_with_it(
    build_config: Callable, train: Callable, tmp_path: Path, optimizer: str, kind: str
):
    """The model at the end has the averaged weights, that of a checkpoint those that are trained; a run that was
    killed after step 8 ends with the same bytes. Dropout is on."""
    config = build_config(
        tmp_path / "run", {"hidden_dropout_prob": 0.1}, max_steps=12, save_steps=4, eval_steps=4, learning_rate=2e-2,
        optimizer=optimizer, weight_averaging=kind, averaging_start_step=6, averaging_interval=2,
    )  # fmt: skip
    expected = train(config)
    keys = [record.keys() & {"validation_loss", "averaged_validation_loss"} for record in expected]
    assert [len(found) for found in keys if found] == [1, 2, 2]  # no weights count yet at step 4
    assert not (tmp_path / "run/checkpoint-4/training_state/average.safetensors").exists()
    files = read_files(tmp_path / "run", 12)

    trained = load_file(tmp_path / "run/checkpoint-12/model.safetensors")
    state = load_file(tmp_path / "run/checkpoint-12/training_state/average.safetensors")
    saved = load_file(tmp_path / "run/model/model.safetensors")
    assert state.pop("count") == 4
    assert all(torch.equal(saved[name], average) for name, average in state.items())
    assert not all(torch.equal(saved[name], trained[name]) for name in saved)
    assert f"{expected[-1]['averaged_validation_loss']:.4f}" in (tmp_path / "run/model/README.md").read_text()
    assert expected[-1]["averaged_validation_loss"] != expected[-1]["validation_loss"]

    for name in ("checkpoint-12", "model"):
        shutil.rmtree(tmp_path / "run" / name)
    again = train(config)
    assert timeless(again) == timeless(expected)
    assert read_files(tmp_path / "run", 12) == files


@pytest.mark.slow
def test_two_processes_and_fsdp2_save_the_same_average(
    build_config: Callable, train: Callable, python: Callable, write_config: Callable, tmp_path: Path
):
    changes = {"max_steps": 12, "save_steps": 8, "optimizer": "stable_adamw", "weight_averaging": "exponential"}
    expected = train(build_config(tmp_path / "one", **changes))
    for mode, launches in (("cpu_2_processes", 1), ("fsdp2", 2)):
        run = tmp_path / mode
        config = write_config(build_config(run, **changes), tmp_path / "run.yaml")
        launch = ("-m", "accelerate.commands.launch", "--config_file", f"configs/accelerate/{mode}.yaml")
        for going_on in range(launches):
            finished = python(*launch, "pretrain/run_mlm.py", config)
            assert finished.returncode == 0, finished.stderr
            assert ("Going on from step 8" in finished.stdout) == bool(going_on)
            last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
            for key in ("validation_loss", "averaged_validation_loss"):
                assert last[key] == pytest.approx(expected[-1][key], rel=1e-4)
            for name in ("model/model.safetensors", "checkpoint-12/training_state/average.safetensors"):
                whole, found = load_file(tmp_path / "one" / name), load_file(run / name)
                assert found.keys() == whole.keys()
                assert all((found[key] - whole[key]).abs().max() < 1e-3 for key in whole)
            shutil.rmtree(run / "checkpoint-12")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["exponential", "stage"])
def test_sharded_weights_have_the_same_average(tmp_path: Path, environment: dict[str, str], kind: str):
    """Also when it is swapped in between steps, and when it is loaded from whole tensors."""
    assert max(run_two_ranks("weight_averaging", kind, tmp_path, environment)) < 2e-6
