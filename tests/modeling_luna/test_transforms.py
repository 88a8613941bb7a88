# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""The transforms of torch.func take the model: per-sample gradients, forward-mode and second derivatives."""

from collections.abc import Callable

import pytest
import torch
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap

from modeling_luna import (
    LunaForMaskedLM,
    LunaForMultipleChoice,
    LunaForQuestionAnswering,
    LunaForSequenceClassification,
    LunaForTokenClassification,
    LunaPreTrainedModel,
)


TOLERANCE = {"atol": 1e-5, "rtol": 1e-4}
ROWS, TOKENS = 3, 9
CLASSES = torch.tensor([0, 1, 1])
TOKEN_CLASSES = torch.arange(ROWS * TOKENS).view(ROWS, TOKENS) % 2
POOLINGS = ("cls", "mean", "packed_max", "packed_attention")
HEADS = {
    "masked_lm": (LunaForMaskedLM, {}, {"labels": TOKEN_CLASSES}),
    "masked_lm-sparse": (LunaForMaskedLM, {"sparse_prediction": True}, {"labels": TOKEN_CLASSES}),
    "masked_lm-absorbed": (LunaForMaskedLM, {"projection_length": 2}, {"labels": TOKEN_CLASSES}),
    "token-convolution": (LunaForTokenClassification, {"conv_kernel_size": 3}, {"labels": TOKEN_CLASSES}),
    "choice": (LunaForMultipleChoice, {"normalize_before": True}, {"labels": CLASSES}),
    "answer": (LunaForQuestionAnswering, {}, {"start_positions": CLASSES, "end_positions": CLASSES + 1}),
    **{
        pooling: (LunaForSequenceClassification, {"classifier_pooling": pooling}, {"labels": CLASSES})
        for pooling in POOLINGS
    },
}
over_heads = pytest.mark.parametrize("head", HEADS)
over_implementations = pytest.mark.parametrize("implementation", ["eager", "sdpa"])


def batch_of(head: str, masked: bool = True) -> dict[str, torch.Tensor]:
    shape = (ROWS, 2, TOKENS) if head == "choice" else (ROWS, TOKENS)
    input_ids = torch.randint(3, 53, shape, generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(input_ids)
    mask[0, ..., 6:] = mask[1, ..., :5] = 0
    return {"input_ids": input_ids} | ({"attention_mask": mask} if masked else {}) | HEADS[head][2]


def build(tiny_model: Callable, head: str, implementation: str, **fields) -> LunaPreTrainedModel:
    return tiny_model(HEADS[head][0], implementation, **HEADS[head][1], **fields)


def loss_of(model: LunaPreTrainedModel, parameters: dict, example: dict[str, torch.Tensor]) -> torch.Tensor:
    """The loss of a batch of one."""
    batch = {name: value.unsqueeze(0) for name, value in example.items()}
    return functional_call(model, parameters, args=(), kwargs=batch).loss


def sample_gradients(model: LunaPreTrainedModel, batch: dict, **options) -> dict[str, torch.Tensor]:
    def loss(parameters: dict, example: dict) -> torch.Tensor:
        return loss_of(model, parameters, example)

    return vmap(grad(loss), in_dims=(None, 0), **options)(dict(model.named_parameters()), batch)


@over_heads
@over_implementations
@pytest.mark.parametrize("masked", [True, False])
def test_gradients_of_samples_are_those_of_a_loop(tiny_model: Callable, head: str, implementation: str, masked: bool):
    model, batch = build(tiny_model, head, implementation), batch_of(head, masked)
    gradients = sample_gradients(model, batch)
    for row in range(ROWS):
        model.zero_grad()
        model(**{name: value[row : row + 1] for name, value in batch.items()}).loss.backward()
        expected = {name: parameter.grad for name, parameter in model.named_parameters()}
        torch.testing.assert_close({name: values[row] for name, values in gradients.items()}, expected, **TOLERANCE)


@over_implementations
@pytest.mark.parametrize(("randomness", "differ"), [("different", True), ("same", False)])
def test_dropout_under_vmap(tiny_model: Callable, implementation: str, randomness: str, differ: bool):
    dropout = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2, "activation_dropout": 0.2}
    model = build(tiny_model, "cls", implementation, **dropout).train()
    batch = {name: value[:1].expand(ROWS, *value.shape[1:]) for name, value in batch_of("cls").items()}
    gradients = sample_gradients(model, batch, randomness=randomness)["luna.layers.0.mlp.fc1.weight"]
    assert torch.equal(gradients[0], gradients[1]) != differ
    assert torch.equal(gradients[1], gradients[2]) != differ


@over_heads
@over_implementations
def test_forward_mode_equals_reverse_mode(tiny_model: Callable, head: str, implementation: str):
    model, batch = build(tiny_model, head, implementation), batch_of(head)
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    generator = torch.Generator().manual_seed(1)
    directions = {name: torch.randn(value.shape, generator=generator) for name, value in parameters.items()}

    def loss(parameters: dict) -> torch.Tensor:
        return functional_call(model, parameters, args=(), kwargs=batch).loss

    _, slope = jvp(loss, (parameters,), (directions,))
    gradient = jacrev(loss)(parameters)
    torch.testing.assert_close(slope, sum((gradient[name] * directions[name]).sum() for name in gradient), **TOLERANCE)


@over_heads
def test_jacobian_and_hessian(tiny_model: Callable, head: str):
    model, batch = build(tiny_model, head, "sdpa"), batch_of(head)
    reference = build(tiny_model, head, "eager")
    name = "luna.embeddings.packed_layer_norm.bias"
    value = model.get_parameter(name).detach()

    def loss(value: torch.Tensor, model: LunaPreTrainedModel = model) -> torch.Tensor:
        return functional_call(model, {name: value}, args=(), kwargs=batch).loss

    torch.testing.assert_close(jacfwd(loss)(value), jacrev(loss)(value), **TOLERANCE)
    expected = torch.autograd.functional.hessian(lambda value: loss(value, reference), value)
    torch.testing.assert_close(hessian(loss)(value), expected, **TOLERANCE)


def test_several_models_at_once(tiny_model: Callable):
    models = [tiny_model(LunaForMaskedLM, "sdpa", seed=seed) for seed in range(3)]
    parameters = {
        name: torch.stack([model.get_parameter(name).detach() for model in models])
        for name, _ in models[0].named_parameters()
    }
    batch = batch_of("masked_lm")
    logits = vmap(lambda values: functional_call(models[0], values, args=(), kwargs=batch).logits)(parameters)
    for model, found in zip(models, logits, strict=True):
        torch.testing.assert_close(found, model(**batch).logits, **TOLERANCE)


def test_ids_are_checked_under_vmap(tiny_model: Callable):
    batch = batch_of("cls")
    batch["input_ids"][2, 4] = 53
    with pytest.raises(ValueError, match=r"input_ids must lie between 0 and 52; found \d+ to 53"):
        sample_gradients(build(tiny_model, "cls", "sdpa"), batch)


@pytest.mark.parametrize("masked", [True, False])
def test_positions_under_vmap(tiny_model: Callable, masked: bool):
    model, batch = build(tiny_model, "cls", "sdpa"), batch_of("cls", masked)
    shifted = {"position_ids": torch.arange(TOKENS).expand(ROWS, -1) + torch.tensor([[0], [4], [7]])}
    gradients = sample_gradients(model, batch | shifted)["luna.embeddings.packed_embeddings"]
    for row in range(ROWS):
        model.zero_grad()
        model(**{name: value[row : row + 1] for name, value in (batch | shifted).items()}).loss.backward()
        expected = model.luna.embeddings.packed_embeddings.grad
        torch.testing.assert_close(gradients[row], expected, **TOLERANCE)
    restarting = {"position_ids": (torch.arange(TOKENS) % 7).expand(ROWS, -1)}
    with pytest.raises(ValueError, match=r"torch\.func\.vmap takes rows of one document"):
        sample_gradients(model, batch_of("cls", masked=False) | restarting)


def test_documents_in_a_row(tiny_model: Callable):
    """Where no vmap is at work, the documents are found as ever."""
    model, input_ids = build(tiny_model, "masked_lm", "sdpa"), batch_of("masked_lm")["input_ids"]
    batch = {"input_ids": input_ids, "labels": TOKEN_CLASSES, "position_ids": (torch.arange(TOKENS) % 4)[None]}
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    gradients = grad(lambda values: functional_call(model, values, args=(), kwargs=batch).loss)(parameters)
    model(**batch).loss.backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    torch.testing.assert_close(gradients, expected, **TOLERANCE)
