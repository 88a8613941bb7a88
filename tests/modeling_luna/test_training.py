# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""Training: dropout, gradient checkpointing, initialisation, and a gradient for every parameter."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from modeling_luna import LunaForMaskedLM, LunaModel


DROPOUT = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.3, "activation_dropout": 0.1}
VARIANTS = {
    "default": {},
    "all": {
        "tie_key_value": False,
        "position_embedding_type": "sinusoidal",
        "normalize_before": True,
        "conv_kernel_size": 3,
    },
    "fixed-sparse": {"dynamic_projection": False, "sparse_prediction": True, "num_pack_attention_heads": 2},
    "one-layer": {"num_hidden_layers": 1},
}


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    input_ids = torch.randint(3, 53, (3, 9), generator=torch.Generator().manual_seed(4))
    mask = (torch.arange(9) < torch.tensor([9, 4, 6])[:, None]).long()
    labels = torch.where((torch.arange(9) % 2 == 0) & mask.bool(), input_ids, -100)
    return {"input_ids": input_ids, "attention_mask": mask, "labels": labels}


def train_once(model: LunaForMaskedLM, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    model.train()
    torch.manual_seed(5)
    loss = model(**batch).loss
    loss.backward()
    return loss, [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("field", DROPOUT)
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_each_dropout_acts_in_training_alone(tiny_model: Callable, batch: dict, field: str, implementation: str):
    model = tiny_model(LunaForMaskedLM, implementation, **{field: 0.5})
    reference = tiny_model(LunaForMaskedLM, implementation)(**batch).loss
    torch.testing.assert_close(model(**batch).loss, reference, rtol=0, atol=0)
    assert (train_once(model, batch)[0] - reference).abs() > 1e-3


@pytest.mark.parametrize("variant", VARIANTS)
def test_sdpa_with_dropout_equals_eager(tiny_model: Callable, batch: dict, variant: str):
    """On a CPU, sdpa with dropout takes the eager path, with a mask of booleans."""
    batch["attention_mask"][2] = 0
    batch["labels"][2] = -100
    results = [
        train_once(tiny_model(LunaForMaskedLM, implementation, **VARIANTS[variant], **DROPOUT), batch)
        for implementation in ("eager", "sdpa")
    ]
    assert all(gradient.isfinite().all() for gradient in results[1][1])
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_checkpointing_gives_the_same_gradients(
    tiny_model: Callable, batch: dict, implementation: str, variant: str, use_reentrant: bool
):
    model = tiny_model(LunaForMaskedLM, implementation, **VARIANTS[variant], **DROPOUT)
    checkpointed = copy.deepcopy(model)
    checkpointed.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    calls = []
    for layer in checkpointed.luna.layers:
        layer.mlp.register_forward_hook(lambda *_: calls.append(1))
    expected, result = train_once(model, batch), train_once(checkpointed, batch)
    assert len(calls) == 2 * len(checkpointed.luna.layers), "each layer runs once more in the backward pass"
    torch.testing.assert_close(result, expected, rtol=0, atol=0)


@pytest.mark.parametrize("use_reentrant", [None, False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_has_a_gradient(tiny_model: Callable, batch: dict, variant: str, use_reentrant: bool | None):
    model = tiny_model(LunaForMaskedLM, **VARIANTS[variant], **DROPOUT)
    if use_reentrant is not None:
        model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    train_once(model, batch)
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    unread = "luna.packed_final_layer_norm" if model.config.normalize_before else "luna.layers.{}.packed_layer_norm"
    unread = unread.format(model.config.num_hidden_layers - 1)
    zero = {name for name, parameter in model.named_parameters() if parameter.grad.eq(0).all()}
    assert zero == {f"{unread}.weight", f"{unread}.bias"}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("state", ["last_hidden_state", "packed_last_hidden_state"])
def test_every_parameter_has_a_gradient_where_one_state_is_used(
    tiny_model: Callable, batch: dict, variant: str, state: str
):
    model = tiny_model(**VARIANTS[variant]).train()
    getattr(model(batch["input_ids"], batch["attention_mask"]), state).pow(3).sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    assert model.embeddings.packed_embeddings.grad.ne(0).any()
    assert model.embeddings.word_embeddings.weight.grad.ne(0).any()


def test_initialisation_follows_the_config(tiny_config: Callable):
    torch.manual_seed(10)
    config = tiny_config(hidden_size=96, intermediate_size=192, vocab_size=500, initializer_range=0.07)
    model = LunaForMaskedLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            assert parameter.eq(0).all(), name
        elif "layer_norm" in name:
            assert parameter.eq(1).all(), name
        else:
            assert parameter.std().item() == pytest.approx(0.07, rel=0.1), name
    for embedding in (model.luna.embeddings.word_embeddings, model.luna.embeddings.position_embeddings):
        assert embedding.weight[1].eq(0).all()


def test_overfits_one_batch(tiny_config: Callable, batch: dict):
    torch.manual_seed(11)
    model = LunaForMaskedLM(tiny_config(initializer_range=0.2)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    first = model(**batch).loss.item()
    for _ in range(60):
        loss = model(**batch).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert first > 3.0
    assert loss.item() < 0.2


def test_bfloat16_training_step_is_finite(tiny_model: Callable, batch: dict):
    model = tiny_model(LunaForMaskedLM, "sdpa", **DROPOUT).bfloat16()
    loss, gradients = train_once(model, batch)
    assert loss.isfinite()
    assert all(gradient.isfinite().all() and gradient.dtype == torch.bfloat16 for gradient in gradients)


def test_gradients_through_inputs_embeds(tiny_model: Callable):
    """Every token reaches every other one through P."""
    model: LunaModel = tiny_model()
    embeddings = torch.randn(1, 9, 24, requires_grad=True)
    model(inputs_embeds=embeddings).last_hidden_state[0, 0].pow(3).sum().backward()
    assert embeddings.grad.abs().amax(dim=-1).gt(1e-6).all()
