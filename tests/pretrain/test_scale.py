"""Every launch of configs/accelerate on two real processes: one curve, and checkpoints for any launch."""

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from modeling_luna import LunaForMaskedLM
from pretrain.data.tokenizer import train_tokenizer


ONE_PROCESS = "one"  # in that of the test
MANY_NODES = "many_nodes"  # two launchers on this machine
TWO_PROCESSES = ("cpu_2_processes", "ddp", MANY_NODES, "fsdp2", "zero1", "zero2", "zero3", "zero3_offload")
DROPOUT = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
needs_deepspeed = pytest.mark.skipif(
    not importlib.util.find_spec("deepspeed") or not shutil.which("g++") or not shutil.which("ninja"),
    reason="needs deepspeed, and g++ and ninja, which it compiles with",
)
MODES = [pytest.param(mode, marks=needs_deepspeed if "zero" in mode else ()) for mode in TWO_PROCESSES]
pytestmark = pytest.mark.slow


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


@pytest.fixture(scope="module")
def launch(
    environment: dict[str, str],
    build_config: Callable,
    write_config: Callable,
    train_for_module: Callable,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., dict[str, dict[int, float]]]:
    """Run thirty steps by a file of configs/accelerate; the losses and validation losses by step."""
    folder = tmp_path_factory.mktemp("launch")
    variables = environment | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def run(mode: str, output_dir: Path, **changes) -> dict[str, dict[int, float]]:
        values = {
            "max_steps": 30,
            "mask_probability": 0.3,
            "save_steps": 20,
            "per_device_train_batch_size": 4,
        } | changes
        config = build_config(output_dir, **values)
        if mode == ONE_PROCESS:
            train_for_module(config)
        else:
            run_processes(mode, write_config(config, folder / "run.yaml"))
        lines = (output_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines]
        curves = {}
        for key in ("loss", "validation_loss"):
            points = [(record["step"], record[key]) for record in records if key in record]
            curves[key] = dict(points)
            assert len(points) == len(curves[key])  # each step once
        return curves

    def run_processes(mode: str, config: Path):
        launcher = [sys.executable, "-m", "accelerate.commands.launch"]
        launcher += ["--config_file", f"configs/accelerate/{mode}.yaml"]
        port = free_port()
        machines = [["--main_process_port", port, "--machine_rank", rank] for rank in "01"]
        processes = [
            subprocess.Popen(
                [*launcher, *options, "pretrain/run_mlm.py", str(config)],
                cwd=environment["PYTHONPATH"],
                env=variables,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for options in (machines if mode == MANY_NODES else [[]])
        ]
        try:
            outputs = [process.communicate(timeout=400) for process in processes]
        finally:
            for process in processes:
                process.kill()
        output, errors = outputs[0]
        assert not any(process.returncode for process in processes), errors
        assert "2 on cpu" in output

    return run


@pytest.fixture(scope="module")
def one_process(launch: Callable, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """The run of one process: its folder and its curves."""
    folder = tmp_path_factory.mktemp("one") / "run"
    return folder, launch(ONE_PROCESS, folder)


def interrupted(run: Path, to: Path) -> Path:
    """A copy of a run as if it had been killed after its checkpoint of step 20."""
    shutil.copytree(run, to, ignore=shutil.ignore_patterns("checkpoint-30", "model", ".lock"))
    return to


@pytest.mark.parametrize("mode", MODES)
def test_launch_gives_the_curve_of_one_process_and_goes_on_from_its_checkpoint(
    launch: Callable, one_process: tuple[Path, dict], tmp_path: Path, mode: str
):
    folder, expected = one_process
    curves = launch(mode, tmp_path / "run")
    assert list(curves["loss"]) == list(range(1, 31))
    for key in expected:
        assert curves[key] == pytest.approx(expected[key], rel=1e-4, abs=0)

    model, info = LunaForMaskedLM.from_pretrained(tmp_path / "run" / "model", output_loading_info=True)
    assert not any(info.values())
    assert model.config.architectures == ["LunaForMaskedLM"]
    names = ("model/model.safetensors", "checkpoint-30/training_state/optimizer.safetensors")
    for name in names:
        tensors, whole = load_file(tmp_path / "run" / name), load_file(folder / name)
        assert tensors.keys() == whole.keys()
        assert {key: tensor.shape for key, tensor in tensors.items()} == {key: t.shape for key, t in whole.items()}

    # Its own checkpoint in one process, and that of one process in this launch.
    for launcher, source in ((ONE_PROCESS, tmp_path / "run"), (mode, folder)):
        resumed = launch(launcher, interrupted(source, tmp_path / f"resumed-by-{launcher}"))
        for key in expected:
            assert resumed[key] == pytest.approx(expected[key], rel=1e-4, abs=0)


@pytest.mark.parametrize("mode", ["fsdp2", pytest.param("zero3", marks=needs_deepspeed)])
def test_starting_from_a_saved_model(
    launch: Callable, one_process: tuple[Path, dict], sentences: Callable, tmp_path: Path, mode: str
):
    """Longer rows of other texts with another vocabulary, so that the tables are resized before they are sharded."""
    text = sentences(tmp_path / "text.txt", documents=90, seed=1)
    tokenizer = train_tokenizer([text.read_text(encoding="utf-8")], vocab_size=350, max_length=48)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    changes = {
        "init_from": str(one_process[0] / "model"), "tokenizer": str(tmp_path / "tokenizer"), "max_length": 48,
        "data": str(text), "max_steps": 8, "model": {"max_position_embeddings": 48},
    }  # fmt: skip
    expected = launch(ONE_PROCESS, tmp_path / "one", **changes)
    curves = launch(mode, tmp_path / "run", **changes)
    for key in expected:
        assert curves[key] == pytest.approx(expected[key], rel=1e-4, abs=0)
    model = LunaForMaskedLM.from_pretrained(tmp_path / "run" / "model")
    assert (model.config.vocab_size, model.config.max_position_embeddings) == (350, 48)


@needs_deepspeed
def test_deepspeed_refuses_what_it_would_do_wrong(launch: Callable, tmp_path: Path):
    changes = {"optimizer": "stable_adamw", "weight_averaging": "stage", "gradient_checkpointing": "selective"}
    refused = "optimizer stable_adamw and weight_averaging stage and gradient_checkpointing selective"
    with pytest.raises(AssertionError, match=f"cannot do {refused}: leave"):
        launch("zero3", tmp_path / "run", **changes)


def test_selective_checkpointing_does_not_change_the_curve(
    launch: Callable, one_process: tuple[Path, dict], tmp_path: Path
):
    curves = launch("fsdp2", tmp_path / "run", gradient_checkpointing="selective")
    for key, expected in one_process[1].items():
        assert curves[key] == pytest.approx(expected, rel=1e-4, abs=0)


@pytest.mark.parametrize("mode", ["cpu_2_processes", pytest.param("zero2", marks=needs_deepspeed)])
def test_resuming_is_exact_with_dropout(launch: Callable, tmp_path: Path, mode: str):
    curves = launch(mode, tmp_path / "run", model=DROPOUT)
    assert launch(mode, interrupted(tmp_path / "run", tmp_path / "resumed"), model=DROPOUT) == curves
    weights = [(tmp_path / run / "model" / "model.safetensors").read_bytes() for run in ("run", "resumed")]
    assert weights[0] == weights[1]
