# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""A model in float64 computes in float64 throughout, as numerical checks of gradients need it."""

import math
from collections.abc import Callable

import numpy
import pytest
import torch
from head_tasks import HEAD_TASKS, head_batch, head_model
from rows import VARIANTS, padded, random_rows
from torch.autograd import gradcheck
from torch.func import functional_call

from modeling_luna import LunaForQuestionAnswering, LunaForSequenceClassification, LunaModel
from modeling_luna.modeling_luna import sinusoids


FLOAT64 = {"atol": 1e-12, "rtol": 1e-12}
POOLINGS = ("cls", "mean", "packed_max", "packed_attention")
MODELS = {name: (LunaModel, fields) for name, fields in VARIANTS.items()}
MODELS["absorbed"] = (LunaModel, {"projection_length": 3})
MODELS |= {pooling: (LunaForSequenceClassification, {"classifier_pooling": pooling}) for pooling in POOLINGS}
MODELS["answer"] = (LunaForQuestionAnswering, {})


def batch_of(inputs: str) -> dict[str, torch.Tensor | int]:
    """Rows with padding, one of which is padding alone, or documents in a row."""
    if inputs == "documents":
        return {
            "input_ids": torch.cat(random_rows()).unsqueeze(0),
            "cu_seq_lens_q": torch.tensor([0, *(len(row) for row in random_rows())]).cumsum(0),
        }
    input_ids, mask = padded(random_rows(), extra=2)
    if inputs == "padding alone":
        mask[1] = 0
    return {"input_ids": input_ids, "attention_mask": mask}


@torch.no_grad()
@pytest.mark.parametrize("inputs", ["padding", "padding alone", "documents"])
@pytest.mark.parametrize("name", MODELS)
def test_eager_equals_sdpa(tiny_model: Callable, name: str, inputs: str):
    model_class, fields = MODELS[name]
    batch = batch_of(inputs)
    results = []
    for implementation in ("eager", "sdpa"):
        output = tiny_model(model_class, implementation, **fields).double()(**batch)[0]
        assert output.dtype == torch.float64
        assert output.isfinite().all()
        if "attention_mask" in batch:  # what is computed for padding is finite, but holds no meaning
            mask = batch["attention_mask"].bool()
            output = output[mask if output.shape[:2] == mask.shape else mask.any(dim=1)]
        results.append(output)
    torch.testing.assert_close(*results, **FLOAT64)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_those_of_finite_differences(tiny_model: Callable, name: str, implementation: str):
    model_class, fields = MODELS[name]
    model = tiny_model(model_class, implementation, **fields).double()
    mask = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]])
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(2, 4, 24, dtype=torch.float64, generator=generator, requires_grad=True)
    prefix = "" if model_class is LunaModel else "luna."
    parameters = {
        prefix + name: model.get_parameter(prefix + name)
        for name in ("embeddings.packed_embeddings", "layers.0.pack_attention.q_proj.weight")
    }

    def second_row(embeddings: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        values = dict(zip(parameters, weights, strict=True))
        inputs = {"inputs_embeds": embeddings, "attention_mask": mask}
        output = functional_call(model, values, args=(), kwargs=inputs)[0][1]
        return output[1:] if len(output) == 4 else output

    assert gradcheck(second_row, (embeddings, *parameters.values()), fast_mode=True)


@pytest.mark.parametrize("task", HEAD_TASKS)
def test_loss(task: str):
    losses = []
    for implementation in ("eager", "sdpa"):
        model = head_model(task).double()
        model.set_attn_implementation(implementation)
        losses.append(model(**head_batch(task, 0, 4)).loss)
    assert losses[0].dtype == torch.float64
    torch.testing.assert_close(*losses, **FLOAT64)
    torch.testing.assert_close(
        losses[0].float(), head_model(task)(**head_batch(task, 0, 4)).loss, atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_sinusoids(dtype: torch.dtype):
    positions = torch.tensor([[0, 1, 517, 100_003]])
    frequencies = numpy.exp(-math.log(10_000) / 11 * numpy.arange(12))
    angles = positions.numpy()[..., None] * frequencies
    expected = torch.from_numpy(numpy.concatenate((numpy.sin(angles), numpy.cos(angles)), axis=-1))
    found = sinusoids(positions, torch.empty(24, dtype=dtype))
    assert found.dtype == dtype
    tolerance = {torch.float64: 1e-10, torch.float32: 2e-2, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=0)
