"""Training: one curve whatever the processes, micro-batches, and restarts."""

import json
import math
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from modeling_luna import LunaConfig, LunaForMaskedLM
from modeling_luna.modeling_luna import LunaLayer, LunaLMHead, LunaMLP
from pretrain import training as training_module
from pretrain.checkpointing.checkpoints import DivergenceError
from pretrain.checkpointing.folders import ResumeError, find_checkpoints, read_state, write_state
from pretrain.data.packed_data import PackedRows
from pretrain.preparation import prepare
from pretrain.steps.optimizers import build_optimizer


DROPOUT = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
TWO_PROCESSES = ("-m", "accelerate.commands.launch", "--config_file", "configs/accelerate/cpu_2_processes.yaml")


def read_metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def losses(metrics: list[dict], key: str = "loss") -> dict[int, float]:
    """The losses by step; each step must be there once."""
    points = [(record["step"], record[key]) for record in metrics if key in record]
    assert len(points) == len(dict(points))
    return dict(points)


def assert_same_curve(metrics: list[dict], expected: list[dict], relative: float):
    for key in ("loss", "validation_loss"):
        assert losses(metrics, key) == pytest.approx(losses(expected, key), rel=relative, abs=0)


@pytest.fixture(scope="module")
def curve_config(build_config: Callable) -> Callable:
    """Thirty steps without dropout over rows of which the last is padded, several times over."""

    def build(output_dir: Path, **changes):
        return build_config(output_dir, max_steps=30, mask_probability=0.3, **changes)

    return build


@pytest.fixture
def reference(curve_config: Callable, train: Callable, tmp_path: Path) -> list[dict]:
    """One process, the whole batch at once."""
    return train(curve_config(tmp_path / "reference"))


def test_one_process_learns_and_the_corpus_has_a_padded_row(reference: list[dict], curve_config: Callable, tmp_path):
    curve = losses(reference)
    assert list(curve) == list(range(1, 31))
    assert list(losses(reference, "validation_loss")) == [10, 20, 30]
    assert sum(curve[step] for step in (28, 29, 30)) / 3 < curve[1] - 1.0

    config = curve_config(tmp_path)
    prepared = prepare(config)
    for split in ("train", "validation"):
        rows = PackedRows.open(prepared, split, config.max_length)
        assert rows.pad_token_id in rows[[len(rows) - 1]].ids
        assert len(rows) % 16 and len(rows) < 30 * 16 / 3


def test_accumulation_does_not_change_the_curve(reference, curve_config: Callable, train: Callable, tmp_path: Path):
    metrics = train(curve_config(tmp_path / "run", per_device_train_batch_size=4))
    assert_same_curve(metrics, reference, 1e-4)


@pytest.mark.parametrize(
    "accumulation", [pytest.param(1, marks=pytest.mark.slow), 2], ids=lambda steps: f"{steps}_accumulation_steps"
)
@pytest.mark.slow
def test_two_processes_do_not_change_the_curve(
    reference: list[dict],
    curve_config: Callable,
    python: Callable,
    write_config: Callable,
    tmp_path: Path,
    accumulation: int,
):
    run = tmp_path / "run"
    config = curve_config(run, per_device_train_batch_size=8 // accumulation)
    finished = python(*TWO_PROCESSES, "pretrain/run_mlm.py", write_config(config, tmp_path / "run.yaml"))
    assert finished.returncode == 0, finished.stderr
    assert "2 on cpu" in finished.stdout
    assert_same_curve(read_metrics(run), reference, 1e-4)


@pytest.mark.parametrize("kind", [True, "selective"])
@pytest.mark.slow
def test_gradient_checkpointing_does_not_change_the_curve(
    kind: bool | str, build_config: Callable, train: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    forward = LunaMLP.forward
    calls = 0

    def counted(self, *arguments, **options):
        nonlocal calls
        calls += self.training
        return forward(self, *arguments, **options)

    monkeypatch.setattr(LunaMLP, "forward", counted)
    expected = train(build_config(tmp_path / "plain", model=DROPOUT, max_steps=8))
    calls_without = calls
    metrics = train(build_config(tmp_path / "run", model=DROPOUT, max_steps=8, gradient_checkpointing=kind))
    assert calls - calls_without == 2 * calls_without  # once more in each backward pass
    assert_same_curve(metrics, expected, 1e-6)


@pytest.mark.slow  # compiling takes half a minute
def test_compiling_does_not_change_the_curve(
    build_config: Callable, train: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    compile_module = nn.Module.compile
    compiled = []

    def noted(module: nn.Module):
        compiled.append(type(module))
        compile_module(module)

    monkeypatch.setattr(nn.Module, "compile", noted)
    expected = train(build_config(tmp_path / "plain", max_steps=6))
    assert not compiled
    metrics = train(build_config(tmp_path / "run", max_steps=6, torch_compile=True))
    assert compiled == [LunaLayer, LunaLayer, LunaLMHead]
    assert_same_curve(metrics, expected, 1e-5)


@pytest.mark.slow
def test_bfloat16_is_near_float32(reference: list[dict], curve_config: Callable, train: Callable, tmp_path: Path):
    metrics = train(curve_config(tmp_path / "run", mixed_precision="bf16"))
    assert losses(metrics) != losses(reference)
    assert losses(metrics) == pytest.approx(losses(reference), rel=0.03)
    assert metrics[-1]["validation_loss"] == pytest.approx(reference[-1]["validation_loss"], rel=0.02)


@pytest.mark.slow
def test_workers_do_not_change_the_curve(
    reference: list[dict], curve_config: Callable, train: Callable, tmp_path: Path
):
    assert losses(train(curve_config(tmp_path / "run", dataloader_num_workers=2))) == losses(reference)


@pytest.mark.slow
def test_killed_run_goes_on_to_the_same_end(
    build_config: Callable, python: Callable, train: Callable, write_config: Callable, tmp_path: Path
):
    changes = {"model": DROPOUT, "save_steps": 10, "max_steps": 20, "eval_steps": 10}
    expected = train(build_config(tmp_path / "whole", **changes))

    run = tmp_path / "run"
    config = write_config(build_config(run, **changes), tmp_path / "run.yaml")
    program = f"""
import os, signal, sys
from pretrain import run_mlm
from pretrain.watching.monitoring import Monitor

step_done = Monitor.step_done

def kill_after_13_steps(self, progress, *arguments):
    step_done(self, progress, *arguments)
    if progress.step == 13:
        os.kill(os.getpid(), signal.SIGKILL)

Monitor.step_done = kill_after_13_steps
run_mlm.main(run_mlm.load_config(["{config}"]))
"""
    killed = python("-c", program)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert list(losses(read_metrics(run))) == list(range(1, 14))
    assert not (run / "model").exists()

    resumed = python("pretrain/run_mlm.py", config)
    assert resumed.returncode == 0, resumed.stderr
    assert "Going on from step 10 of 20" in resumed.stdout
    metrics = read_metrics(run)
    for key in ("loss", "validation_loss"):
        assert losses(metrics, key) == losses(expected, key)
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (run, tmp_path / "whole")]
    assert weights[0] == weights[1]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["one_then_two_processes", "two_then_one_process"])
def test_run_goes_on_with_another_number_of_processes(
    reference: list[dict], curve_config: Callable, python: Callable, write_config: Callable, tmp_path: Path, mode: str
):
    """The checkpoint of step 20 of a run that ended is what an interrupted run leaves: the later steps are redone."""
    run = tmp_path / "run"
    config = write_config(curve_config(run, save_steps=20), tmp_path / "run.yaml")
    launchers = [(), TWO_PROCESSES] if mode == "one_then_two_processes" else [TWO_PROCESSES, ()]
    for number, launcher in enumerate(launchers):
        finished = python(*launcher, "pretrain/run_mlm.py", config)
        assert finished.returncode == 0, finished.stderr
        assert ("Going on from step 20" in finished.stdout) == bool(number)
        assert_same_curve(read_metrics(run), reference, 1e-4)
        (run / "checkpoint-30").rename(tmp_path / f"checkpoint-30-{number}")


@pytest.mark.slow
def test_finished_run_started_again_trains_no_further(build_config: Callable, train: Callable, tmp_path: Path, capsys):
    config = build_config(tmp_path, max_steps=6, save_steps=3)
    first = train(config)
    assert train(config) == first
    assert "Going on from step 6 of 6" in capsys.readouterr().out


@pytest.mark.slow
def test_logged_rate_is_that_of_the_step(build_config: Callable, train: Callable, tmp_path: Path):
    config = build_config(tmp_path, max_steps=6, warmup_steps=2)
    metrics = train(config)
    assert list(losses(metrics, "learning_rate").values()) == pytest.approx(
        [0.0025, 0.005, 0.005, 0.00375, 0.0025, 0.00125]
    )


def test_biases_and_norms_have_no_weight_decay(build_config: Callable, tmp_path: Path):
    config = build_config(tmp_path, weight_decay=0.3)
    model = LunaForMaskedLM(LunaConfig(**config.model, vocab_size=50, conv_kernel_size=3))
    decayed, kept = build_optimizer(model, config).param_groups
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.3, 0.0)
    assert (decayed["betas"], decayed["eps"]) == ((0.9, 0.98), 1e-6)
    names = {parameter: name for name, parameter in model.named_parameters()}
    norms = {p for module in model.modules() if isinstance(module, nn.LayerNorm) for p in module.parameters()}
    without_decay = set(kept["params"])
    assert norms <= without_decay
    assert {p for p, name in names.items() if name.endswith("bias")} <= without_decay
    assert all(names[p].endswith("bias") or p in norms for p in without_decay)
    assert len(decayed["params"]) + len(kept["params"]) == len(names)


def test_step_that_is_not_finite_is_skipped_and_counted(
    build_config: Callable, train: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    forward = LunaForMaskedLM.forward
    calls = 0

    def not_finite_at_step_3(self, **inputs):
        nonlocal calls
        output = forward(self, **inputs)
        if self.training:
            calls += 1
            if calls == 3 + 3:  # three calls measure the speed first
                output.loss = output.loss * float("nan")
        return output

    monkeypatch.setattr(LunaForMaskedLM, "forward", not_finite_at_step_3)
    metrics = [record for record in train(build_config(tmp_path, max_steps=6, eval_steps=0)) if "loss" in record]
    assert [record["skipped_steps"] for record in metrics] == [0, 0, 1, 1, 1, 1]
    assert [record["loss"] is None for record in metrics] == [False, False, True, False, False, False]
    assert metrics[-1]["loss"] < metrics[0]["loss"]


def test_run_that_diverges_ends_with_the_last_good_checkpoint(
    build_config: Callable, train: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = build_config(tmp_path, max_steps=20, save_steps=4, max_skipped_in_a_row=3, eval_steps=0)
    forward = LunaForMaskedLM.forward
    calls = 0

    def not_finite_from_step_6(self, **inputs):
        nonlocal calls
        output = forward(self, **inputs)
        calls += self.training
        if calls >= 3 + 6:
            output.loss = output.loss * float("inf")
        return output

    monkeypatch.setattr(LunaForMaskedLM, "forward", not_finite_from_step_6)
    with pytest.raises(DivergenceError, match=r"3 steps in a row .*/checkpoint-4\. .*learning_rate"):
        train(config)
    metrics = read_metrics(tmp_path)
    assert [record["skipped_steps"] for record in metrics] == [0] * 5 + [1, 2, 3]
    assert not (tmp_path / "model").exists()


def test_rate_far_too_high_diverges(build_config: Callable, train: Callable, tmp_path: Path):
    with pytest.raises(DivergenceError, match="There is no checkpoint yet"):
        train(build_config(tmp_path, learning_rate=1e6, max_grad_norm=1e6, warmup_steps=0, max_skipped_in_a_row=2))


@pytest.fixture
def broken_at_step_3(monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Multiply all weights after the third update; what they are then is found by the steps that follow."""

    def install(factor: float):
        update, calls = training_module.optimizer_step, 0

        def broken(accelerator, model, *arguments, **options):
            nonlocal calls
            result = update(accelerator, model, *arguments, **options)
            calls += 1
            if calls == 3:
                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter.mul_(factor)
            return result

        monkeypatch.setattr(training_module, "optimizer_step", broken)

    return install


@pytest.mark.parametrize("factor", [1e30, math.inf])
def test_last_good_checkpoint_is_one_of_good_weights(
    broken_at_step_3: Callable, build_config: Callable, train: Callable, tmp_path: Path, factor: float
):
    """Not one that has those of the steps that were skipped; weights that are not finite are not written."""
    broken_at_step_3(factor)
    config = build_config(tmp_path, save_steps=1, save_total_limit=2, eval_steps=0, max_skipped_in_a_row=4)
    with pytest.raises(DivergenceError) as error:
        train(config)
    names = [folder.name for folder in find_checkpoints(tmp_path)]
    good = f"The last good checkpoint is {tmp_path}/checkpoint-2. "
    if factor == 1e30:
        assert names == [f"checkpoint-{step}" for step in (2, 3, 4, 5, 6)]
        assert f"4 steps in a row had a loss or gradient that was not finite. {good}To resume from it, delete " in str(
            error.value
        )
        assert "delete checkpoint-3, checkpoint-4, checkpoint-5, checkpoint-6. Lower the learning_rate" in str(
            error.value
        )
    else:
        assert names == ["checkpoint-1", "checkpoint-2"]
        assert "After step 3 luna.embeddings." in str(error.value)
        assert f"holds numbers that are not finite. {good}Lower the learning_rate" in str(error.value)
    assert json.loads((tmp_path / "status.json").read_text(encoding="utf-8"))["state"] == "failed"


@pytest.mark.slow
def test_checkpoint_that_is_not_finite_is_not_gone_on_from(
    build_config: Callable, train: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
):
    """An earlier release may have written it."""
    train(build_config(tmp_path, max_steps=6, save_steps=3))
    folder = tmp_path / "checkpoint-6"
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.dense.bias"][3] = math.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    state = {key: value for key, value in read_state(folder).items() if key not in ("files", "xxh3")}
    (folder / "training_state" / "progress.json").unlink()
    write_state(folder, state)
    with pytest.raises(
        ResumeError, match="checkpoint-6 is damaged: lm_head.dense.bias in model.safetensors holds numbers that"
    ):
        train(build_config(tmp_path, max_steps=6))
    train(build_config(tmp_path, max_steps=6, on_bad_checkpoint="previous"))
    assert "Going on from step 3 of 6" in capsys.readouterr().out
