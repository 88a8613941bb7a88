# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""A model goes on with longer rows: its learned positions repeat."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from modeling_luna import LunaForMaskedLM, LunaForSequenceClassification, LunaModel


POSITIONS = 32


@torch.no_grad()
@pytest.mark.parametrize("model_class", [LunaModel, LunaForMaskedLM, LunaForSequenceClassification])
@pytest.mark.parametrize(("pad_token_id", "offset"), [(1, 2), (None, 0)])
def test_positions_repeat(tiny_model: Callable, model_class: type, pad_token_id: int | None, offset: int):
    model = tiny_model(model_class, pad_token_id=pad_token_id)
    input_ids = torch.randint(3, 53, (2, POSITIONS))
    before = model(input_ids).to_tuple()
    old = model.get_position_embeddings().weight.clone()

    model.resize_position_embeddings(75)
    assert model.config.max_position_embeddings == model.base_model.config.max_position_embeddings == 75
    new = model.get_position_embeddings()
    assert new.padding_idx == pad_token_id
    assert new.weight.shape == (75 + offset, 24)
    assert torch.equal(new.weight[:offset], old[:offset])
    for position in range(75):
        assert torch.equal(new.weight[offset + position], old[offset + position % POSITIONS])
    torch.testing.assert_close(model(input_ids).to_tuple(), before, atol=0, rtol=0)
    assert model(torch.randint(3, 53, (1, 75)))[0].isfinite().all()
    with pytest.raises(ValueError, match=r"more tokens than max_position_embeddings \(75\)"):
        model(torch.full((1, 76), 5))


def test_new_positions_learn_and_are_saved(tiny_model: Callable, tmp_path: Path):
    model = tiny_model(LunaForMaskedLM)
    model.resize_position_embeddings(64)
    input_ids = torch.randint(3, 53, (1, 64))
    model(input_ids, labels=input_ids).loss.backward()
    gradient = model.get_position_embeddings().weight.grad
    assert (gradient[2:].abs().sum(1) > 0).all()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    model.save_pretrained(tmp_path)
    loaded = LunaForMaskedLM.from_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(loaded(input_ids).logits, model(input_ids).logits, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_fewer_positions_keep_the_first(tiny_model: Callable):
    model = tiny_model()
    input_ids = torch.randint(3, 53, (2, 10))
    before = model(input_ids).last_hidden_state
    model.resize_position_embeddings(10)
    assert torch.equal(model(input_ids).last_hidden_state, before)
    assert model.get_position_embeddings().num_embeddings == 12
    with pytest.raises(ValueError, match="max_position_embeddings"):
        model(torch.full((1, 11), 5))


@torch.no_grad()
def test_sinusoidal_positions_go_on(tiny_model: Callable):
    model = tiny_model(position_embedding_type="sinusoidal")
    input_ids = torch.randint(3, 53, (1, 50))
    before = model(input_ids).last_hidden_state
    assert model.get_position_embeddings() is None
    model.resize_position_embeddings(50)
    assert model.config.max_position_embeddings == 50
    assert torch.equal(model(input_ids).last_hidden_state, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtype_and_frozen_positions_stay_so(tiny_model: Callable, dtype: torch.dtype):
    model = tiny_model().to(dtype)
    model.get_position_embeddings().weight.requires_grad_(False)
    model.resize_position_embeddings(40)
    weight = model.get_position_embeddings().weight
    assert weight.dtype == dtype
    assert not weight.requires_grad


@pytest.mark.parametrize("positions", [0, -3, True, 40.0, "40"])
def test_no_number_of_positions(tiny_model: Callable, positions: object):
    model = tiny_model()
    old = model.get_position_embeddings()
    with pytest.raises(ValueError, match=f"an int of at least 1, not {positions!r}"):
        model.resize_position_embeddings(positions)
    assert model.config.max_position_embeddings == POSITIONS
    assert model.get_position_embeddings() is old
