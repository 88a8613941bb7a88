# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""Tensor parallelism and DeepSpeed ZeRO-3, each on two real processes."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rows import VARIANTS
from safetensors.torch import load_file

from modeling_luna import LunaForMaskedLM, LunaForSequenceClassification, LunaModel


SCRIPT = Path(__file__).parent / "parallel_two_ranks.py"
SHARDED = ("word_embeddings", "unpack_attention", "mlp", "lm_head.decoder")
CLASSIFIER = {"classifier_pooling": "packed_attention"}
needs_deepspeed = pytest.mark.skipif(
    not importlib.util.find_spec("deepspeed") or not shutil.which("g++") or not shutil.which("ninja"),
    reason="needs deepspeed, and g++ and ninja, which it compiles with",
)


def run_two_ranks(
    task: str, model_class: type, tmp_path: Path, environment: dict[str, str], timeout: int
) -> list[dict]:
    """What each of the two ranks printed."""
    arguments = [task, model_class.__name__, str(tmp_path / "model"), str(tmp_path / "saved")]
    ranks = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(tmp_path / "meeting"), str(rank), *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        streams = [rank.communicate(timeout=timeout) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    for rank, (_, errors) in zip(ranks, streams, strict=True):
        assert rank.returncode == 0, errors
    return [json.loads(output.splitlines()[-1]) for output, _ in streams]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_class", "fields"),
    [
        (LunaModel, {}),
        (LunaModel, {"tie_key_value": False}),
        (LunaForMaskedLM, {}),
        (LunaForMaskedLM, {"tie_word_embeddings": False, "vocab_size": 54}),
        (LunaForMaskedLM, VARIANTS["all"] | {"vocab_size": 54}),
        (LunaForSequenceClassification, CLASSIFIER),
    ],
)
def test_tensor_parallelism(
    tiny_model: Callable, tmp_path: Path, subprocess_environment: dict[str, str], model_class: type, fields: dict
):
    """Outputs and all gradients are those of one process, for a vocabulary of an odd size (53), too."""
    model = tiny_model(model_class, "sdpa", **fields)
    model.save_pretrained(tmp_path / "model")
    first, second = run_two_ranks("tensor_parallel", model_class, tmp_path, subprocess_environment, timeout=120)

    expected = [name for name, _ in model.named_parameters() if any(part in name for part in SHARDED)]
    assert first["sharded"] == second["sharded"] == sorted(expected)
    num_sharded = sum(model.get_parameter(name).numel() for name in expected)
    row_biases = sum(model.get_parameter(n).numel() for n in expected if n.endswith(("out_proj.bias", "fc2.bias")))
    assert first["held"] + second["held"] == num_sharded + row_biases  # each process has these biases whole
    for rank in (first, second):
        assert rank["outputs"] < 2e-5
        assert rank["gradients"] < 2e-5
        assert rank.get("tied", True) == (model_class is not LunaForMaskedLM or model.config.tie_word_embeddings)
    saved = load_file(tmp_path / "saved/model.safetensors")
    torch.testing.assert_close(saved, load_file(tmp_path / "model/model.safetensors"), atol=0, rtol=0)


@pytest.mark.slow
@needs_deepspeed
@pytest.mark.parametrize("task", ["zero3", "zero3_resized"])
def test_zero3(tiny_model: Callable, tmp_path: Path, subprocess_environment: dict[str, str], task: str):
    """Two steps with the rows of both ranks are those of one process; the tied weight remains one."""
    tiny_model(LunaForMaskedLM, "sdpa").save_pretrained(tmp_path / "model")
    # Compiling takes a minute and more where two processes share two cores with others.
    first, second = run_two_ranks(task, LunaForMaskedLM, tmp_path, subprocess_environment, timeout=400)
    resized = task == "zero3_resized"
    assert first["losses"] != second["losses"], "each rank has its own rows"
    for rank in (first, second):
        assert rank["zero3"]
        assert all(rank["tied"])
        assert rank["held"] == [0, 0]
        assert rank["losses"][1] < rank["losses"][0]
        assert resized or rank["difference"] < 1e-5

    assert "lm_head.decoder.weight" not in load_file(tmp_path / "saved/model.safetensors")
    trained = LunaForMaskedLM.from_pretrained(tmp_path / "saved")
    assert trained.lm_head.decoder.weight is trained.luna.embeddings.word_embeddings.weight
    sizes = (trained.config.vocab_size, trained.config.max_position_embeddings)
    assert sizes == ((60, 64) if resized else (53, 32))
    with torch.no_grad():
        assert trained(torch.arange(3, 3 + sizes[1] // 2).unsqueeze(0)).logits.isfinite().all()


@pytest.mark.slow
def test_example_of_the_documentation(tiny_model: Callable, tmp_path: Path, subprocess_environment: dict[str, str]):
    page = (Path(__file__).parents[2] / "docs/exporting.md").read_text()
    (block,) = re.findall(r"^```sh\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    tiny_model(LunaForMaskedLM, "sdpa").save_pretrained(tmp_path / "runs/demo/model")
    binaries = f"{Path(sys.executable).parent}:{subprocess_environment['PATH']}"
    done = subprocess.run(
        ["bash", "-c", block],
        env=subprocess_environment | {"PATH": binaries},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "logits: (1, 4, 53)" in done.stdout.splitlines(), done.stderr
