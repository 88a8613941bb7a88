# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""One graph, without breaks, from torch.compile and torch.export."""

from collections.abc import Callable, Iterator

import pytest
import torch

from modeling_luna import LunaForMaskedLM, LunaModel


VARIANTS = {
    "default": {},
    "all": {
        "dynamic_projection": False,
        "tie_key_value": False,
        "position_embedding_type": "sinusoidal",
        "normalize_before": True,
        "conv_kernel_size": 3,
    },
}
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(autouse=True)
def empty_compiler_cache() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def batch_of(rows: int, tokens: int, padding: int = 2) -> dict[str, torch.Tensor]:
    input_ids = torch.randint(3, 53, (rows, tokens), generator=torch.Generator().manual_seed(tokens))
    mask = torch.ones_like(input_ids)
    mask[0, tokens - padding :] = 0
    return {"input_ids": input_ids, "attention_mask": mask}


@torch.no_grad()
@pytest.mark.parametrize(("implementation", "variant"), [("eager", "default"), ("sdpa", "default"), ("sdpa", "all")])
@pytest.mark.parametrize("masked", [True, False])
def test_compiled_forward(tiny_model: Callable, implementation: str, variant: str, masked: bool):
    model = tiny_model(attn_implementation=implementation, **VARIANTS[variant])
    batch = batch_of(3, 9)
    if not masked:
        del batch["attention_mask"]
    result = torch.compile(model, fullgraph=True, backend="eager")(**batch)
    expected = model(**batch)
    torch.testing.assert_close(result.to_tuple(), expected.to_tuple(), **TOLERANCE)


@torch.no_grad()
def test_compiled_model_does_not_remember_the_mask(tiny_model: Callable):
    """Shapes never depend on the data: batches of one size and other padding share one graph."""
    model = tiny_model(attn_implementation="sdpa")
    graphs = []

    def backend(graph: torch.fx.GraphModule, _inputs: list) -> Callable:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for padding in (0, 2, 5, 8, 9):
        batch = batch_of(2, 9, padding)
        torch.testing.assert_close(compiled(**batch).to_tuple(), model(**batch).to_tuple(), **TOLERANCE)
    assert len(graphs) == 1


@torch.no_grad()
def test_dynamic_shapes(tiny_model: Callable):
    model = tiny_model(attn_implementation="sdpa")
    compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=True)
    for rows, tokens in ((2, 9), (3, 6), (4, 4), (2, 20)):
        batch = batch_of(rows, tokens)
        torch.testing.assert_close(compiled(**batch).to_tuple(), model(**batch).to_tuple(), **TOLERANCE)


@pytest.mark.parametrize(
    ("sparse", "use_reentrant"), [(False, None), (False, False), pytest.param(True, None, marks=pytest.mark.slow)]
)
def test_compiled_training_step(tiny_model: Callable, sparse: bool, use_reentrant: bool | None):
    model = tiny_model(LunaForMaskedLM, "sdpa", sparse_prediction=sparse).train()
    if use_reentrant is not None:
        model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    batch = batch_of(3, 9)
    batch["labels"] = torch.where(batch["attention_mask"].bool(), batch["input_ids"], -100)
    results = []
    for run in (torch.compile(model, fullgraph=True, backend="aot_eager"), model):
        loss = run(**batch).loss
        loss.backward()
        results.append((loss, [parameter.grad for parameter in model.parameters()]))
        model.zero_grad()
    torch.testing.assert_close(*results, **TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("masked", [True, False])
def test_export(tiny_model: Callable, variant: str, strict: bool, masked: bool):
    model: LunaModel = tiny_model(attn_implementation="sdpa", **VARIANTS[variant])
    example, other = batch_of(3, 9), batch_of(3, 9, padding=6)
    if not masked:
        del example["attention_mask"], other["attention_mask"]
    program = torch.export.export(model, (), example, strict=strict)
    torch.testing.assert_close(program.module()(**other).to_tuple(), model(**other).to_tuple(), **TOLERANCE)


@torch.no_grad()
def test_export_with_dynamic_shapes(tiny_model: Callable):
    model = tiny_model(LunaForMaskedLM, "sdpa")
    rows = torch.export.Dim("rows", min=1, max=64)
    tokens = torch.export.Dim("tokens", min=7, max=32)
    shapes = {"input_ids": {0: rows, 1: tokens}, "attention_mask": {0: rows, 1: tokens}}
    program = torch.export.export(model, (), batch_of(3, 9), dynamic_shapes=shapes)
    for batch in (batch_of(1, 7), batch_of(5, 32, padding=30)):
        torch.testing.assert_close(program.module()(**batch).logits, model(**batch).logits, **TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_inductor(tiny_model: Callable, variant: str):
    model = tiny_model(LunaForMaskedLM, "sdpa", **VARIANTS[variant]).train()
    batch = batch_of(3, 9)
    batch["labels"] = torch.where(batch["attention_mask"].bool(), batch["input_ids"], -100)
    results = []
    for run in (torch.compile(model, fullgraph=True), model):
        outputs = run(**batch)
        outputs.loss.backward()
        results.append((outputs.logits, [parameter.grad for parameter in model.parameters()]))
        model.zero_grad()
    torch.testing.assert_close(*results, atol=1e-4, rtol=1e-4)
