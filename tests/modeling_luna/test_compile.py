# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""torch.compile: one graph, without breaks, for every number of rows and tokens."""

from collections.abc import Callable, Iterator

import pytest
import torch
from rows import SLOTS, VARIANTS

from modeling_luna import (
    LunaForMaskedLM,
    LunaForMultipleChoice,
    LunaForQuestionAnswering,
    LunaForSequenceClassification,
    LunaForTokenClassification,
    LunaModel,
    attention_luna,
)


TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
# Rows and tokens; the lengths lie below, at and above the number of slots.
SHAPES = ((2, 9), (3, SLOTS), (4, 4), (2, 20), (5, 2), (2, 32), (3, SLOTS + 1))
DOCUMENTS = ((3, SLOTS, 11), (5, 2), (1, 20, 2, 2), (4, 4, 4))
HEADS = {
    "masked_lm": (LunaForMaskedLM, {}),
    "token": (LunaForTokenClassification, {}),
    "question_answering": (LunaForQuestionAnswering, {}),
    **{
        pooling: (LunaForSequenceClassification, {"classifier_pooling": pooling})
        for pooling in ("cls", "mean", "packed_max", "packed_attention")
    },
}
FAST_HEADS = ("masked_lm", "packed_attention")


@pytest.fixture(autouse=True)
def empty_compiler_cache() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def padded_attention(monkeypatch: pytest.MonkeyPatch):
    """An uncompiled model that pads documents for attention, as a compiled one does: slots that no token uses, which
    hold no meaning, are then the same, too."""
    monkeypatch.setattr(attention_luna, "attends_by_document", lambda encoder, documents: False)


class CountingBackend:
    """Runs graphs as they are, and keeps them."""

    def __init__(self):
        self.graphs = []

    def __call__(self, graph: torch.fx.GraphModule, inputs: list) -> Callable:
        self.graphs.append(graph)
        return graph.forward


def some_slow(names: dict, fast: tuple[str, ...]) -> list:
    return [pytest.param(name, marks=() if name in fast else pytest.mark.slow) for name in names]


def batch_of(rows: int, tokens: int, padding: int = 2) -> dict[str, torch.Tensor]:
    input_ids = torch.randint(3, 53, (rows, tokens), generator=torch.Generator().manual_seed(tokens))
    mask = torch.ones_like(input_ids)
    mask[0, max(1, tokens - padding) :] = 0
    return {"input_ids": input_ids, "attention_mask": mask}


def documents_of(lengths: tuple[int, ...]) -> dict[str, torch.Tensor | int]:
    return {
        "input_ids": batch_of(1, sum(lengths))["input_ids"],
        "cu_seq_lens_q": torch.tensor((0, *lengths)).cumsum(0).int(),
        "max_length_q": max(lengths),
    }


def assert_one_graph(model: LunaModel, batches: list[dict], **kwargs):
    backend = CountingBackend()
    compiled = torch.compile(model, fullgraph=True, backend=backend, **kwargs)
    for batch in batches:
        torch.testing.assert_close(compiled(**batch).to_tuple(), model(**batch).to_tuple(), **TOLERANCE)
    assert len(backend.graphs) == 1


@torch.no_grad()
@pytest.mark.parametrize(("implementation", "variant"), [("eager", "default"), ("sdpa", "default"), ("sdpa", "all")])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.slow
def test_compiled_forward(tiny_model: Callable, implementation: str, variant: str, masked: bool):
    model = tiny_model(attn_implementation=implementation, **VARIANTS[variant])
    batch = batch_of(3, 9)
    if not masked:
        del batch["attention_mask"]
    result = torch.compile(model, fullgraph=True, backend="eager")(**batch)
    torch.testing.assert_close(result.to_tuple(), model(**batch).to_tuple(), **TOLERANCE)


@torch.no_grad()
def test_compiled_model_does_not_remember_the_mask(tiny_model: Callable):
    """Shapes never depend on the data: batches of one size and other padding share one graph."""
    model = tiny_model(attn_implementation="sdpa")
    assert_one_graph(model, [batch_of(2, 9, padding) for padding in (0, 2, 5, 8, 9)])


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("masked", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("variant", ["default", pytest.param("all", marks=pytest.mark.slow)])
def test_one_graph_for_all_shapes(tiny_model: Callable, implementation: str, masked: bool, variant: str):
    batches = [batch_of(*shape) for shape in SHAPES]
    if not masked:
        batches = [{"input_ids": batch["input_ids"]} for batch in batches]
    assert_one_graph(tiny_model(attn_implementation=implementation, **VARIANTS[variant]), batches, dynamic=True)


@torch.no_grad()
@pytest.mark.parametrize("head", some_slow(HEADS, FAST_HEADS))
@pytest.mark.slow
def test_one_graph_for_all_shapes_in_heads(tiny_model: Callable, head: str):
    model_class, fields = HEADS[head]
    model = tiny_model(model_class, "sdpa", **fields)
    assert_one_graph(model, [batch_of(*shape) for shape in SHAPES], dynamic=True)


@torch.no_grad()
@pytest.mark.slow
def test_one_graph_for_all_shapes_in_multiple_choice(tiny_model: Callable):
    model = tiny_model(LunaForMultipleChoice, "sdpa", classifier_pooling="packed_max")
    # The first batch must not have as many questions as choices: torch would take the two for one number.
    batches = [batch_of(2 * rows, tokens) for rows, tokens in reversed(SHAPES)]
    batches = [{name: value.unflatten(0, (-1, 2)) for name, value in batch.items()} for batch in batches]
    assert_one_graph(model, batches, dynamic=True)


@torch.no_grad()
@pytest.mark.slow
def test_marked_dimensions(tiny_model: Callable):
    """A graph that would hold for some lengths alone is refused where both dimensions are marked."""
    batches = [batch_of(*shape) for shape in SHAPES]
    for batch in batches:
        for tensor in batch.values():
            torch._dynamo.mark_dynamic(tensor, (0, 1))
    assert_one_graph(tiny_model(attn_implementation="sdpa"), batches)


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["sdpa", pytest.param("eager", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_one_graph_for_all_documents(tiny_model: Callable, implementation: str, padded_attention):
    batches = [documents_of(lengths) for lengths in DOCUMENTS]
    assert_one_graph(tiny_model(attn_implementation=implementation), batches, dynamic=True)


@torch.no_grad()
@pytest.mark.slow
def test_documents_with_positions_and_padding(tiny_model: Callable, padded_attention):
    batches = [documents_of(lengths) for lengths in DOCUMENTS]
    for lengths, batch in zip(DOCUMENTS, batches, strict=True):
        batch["position_ids"] = torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0)
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        batch["attention_mask"][0, -1] = 0
    assert_one_graph(tiny_model(attn_implementation="sdpa", conv_kernel_size=3), batches, dynamic=True)


@torch.no_grad()
@pytest.mark.parametrize("head", some_slow(HEADS, ("packed_max",)))
@pytest.mark.slow
def test_one_graph_for_all_documents_in_heads(tiny_model: Callable, head: str, padded_attention):
    model_class, fields = HEADS[head]
    model = tiny_model(model_class, "sdpa", **fields)
    assert_one_graph(model, [documents_of(lengths) for lengths in DOCUMENTS], dynamic=True)


@torch.no_grad()
@pytest.mark.slow
def test_positions_of_one_document(tiny_model: Callable):
    """Positions that rise pass; those that restart end with an error instead of states that mix the documents."""
    model = tiny_model(attn_implementation="sdpa")
    batch = batch_of(2, 9, padding=0)
    batch["attention_mask"][0, :3] = 0
    batch["position_ids"] = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=True)
    torch.testing.assert_close(compiled(**batch).to_tuple(), model(**batch).to_tuple(), **TOLERANCE)
    batch["position_ids"][1, 4:] -= 4
    with pytest.raises(RuntimeError, match="Several documents in a row: give cu_seq_lens"):
        compiled(**batch)


@torch.no_grad()
@pytest.mark.slow
def test_recorded_outputs(tiny_model: Callable):
    """Transformers puts its hooks in place in the first call that asks for these outputs, which is not compiled."""
    model = tiny_model(attn_implementation="eager")
    wanted = ("hidden_states", "packed_hidden_states", "attentions", "pack_attentions")
    flags = {f"output_{name}": True for name in wanted}
    outputs = model(**batch_of(1, 2), **flags)
    assert all(len(outputs[name]) >= model.config.num_hidden_layers for name in wanted)
    assert_one_graph(model, [batch_of(*shape) | flags for shape in SHAPES], dynamic=True)


@pytest.mark.parametrize(
    ("sparse", "use_reentrant"), [(False, None), (False, False), pytest.param(True, None, marks=pytest.mark.slow)]
)
@pytest.mark.slow
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


def loss_and_gradients(run: Callable, model: LunaForMaskedLM, batch: dict) -> tuple[torch.Tensor, list[torch.Tensor]]:
    model.zero_grad()
    loss = run(**batch).loss
    loss.backward()
    return loss, [parameter.grad for parameter in model.parameters()]


def labelled(batch: dict) -> dict:
    """With a label at every third token."""
    input_ids = batch["input_ids"]
    unlabelled = (torch.arange(input_ids.numel()) % 3 > 0).view_as(input_ids)
    if "attention_mask" in batch:
        unlabelled |= batch["attention_mask"] == 0
    return batch | {"labels": input_ids.masked_fill(unlabelled, -100)}


@pytest.mark.slow
def test_one_graph_for_every_number_of_labels(tiny_model: Callable):
    fields = {"sparse_prediction": True, "conv_kernel_size": 3, "num_hidden_layers": 1}
    model = tiny_model(LunaForMaskedLM, "sdpa", **fields).train()
    backend = CountingBackend()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    for shape in SHAPES[:3]:
        batch = labelled(batch_of(*shape))
        expected = loss_and_gradients(model, model, batch)
        torch.testing.assert_close(loss_and_gradients(compiled, model, batch), expected, **TOLERANCE)
    assert len(backend.graphs) == 1


@pytest.mark.slow
@pytest.mark.parametrize("inputs", ["padding", "full rows", "documents"])
def test_inductor_trains_with_dynamic_shapes(tiny_model: Callable, inputs: str):
    """With convolutions, whose backward pass inductor cannot take there."""
    model = tiny_model(LunaForMaskedLM, "sdpa", sparse_prediction=True, conv_kernel_size=5).train()
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    if inputs == "documents":
        batches = [documents_of(lengths) for lengths in DOCUMENTS]
    else:
        batches = [batch_of(*shape) for shape in SHAPES]
    for batch in batches:
        if inputs == "full rows":
            del batch["attention_mask"]
        batch = labelled(batch)
        expected = loss_and_gradients(model, model, batch)
        torch.testing.assert_close(loss_and_gradients(compiled, model, batch), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["default", "all"])
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


@torch.no_grad()
@pytest.mark.slow
def test_inductor_with_dynamic_shapes(tiny_model: Callable):
    model = tiny_model(LunaForMaskedLM, "sdpa")
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    for shape in SHAPES:
        batch = batch_of(*shape)
        torch.testing.assert_close(compiled(**batch).logits, model(**batch).logits, atol=1e-4, rtol=1e-4)
