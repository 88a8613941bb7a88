# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""Input that cannot work gets an error that says what to do."""

import re
from collections.abc import Callable

import pytest
import torch

from modeling_luna import LunaForMaskedLM, LunaModel
from modeling_luna.modeling_luna import AUTO_CLASSES


VOCABULARY, POSITIONS = 53, 32


@pytest.fixture(scope="module")
def model(tiny_model: Callable) -> LunaModel:
    return tiny_model()


@pytest.mark.parametrize("model_class", AUTO_CLASSES.values())
def test_exactly_one_of_ids_and_embeddings(tiny_model: Callable, model_class: type):
    model = tiny_model(model_class)
    shape = (1, 1, 4) if model_class is AUTO_CLASSES["AutoModelForMultipleChoice"] else (1, 4)
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model()
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model(torch.full(shape, 5), inputs_embeds=torch.zeros(*shape, 24))


@pytest.mark.parametrize("shape", [(2, 8), (1, 9), (9, 2), (2, 1, 9, 9), (9,)])
def test_shape_of_the_mask(model: LunaModel, shape: tuple[int, ...]):
    with pytest.raises(ValueError, match=re.escape(f"(batch, n) = (2, 9), not {shape}")):
        model(torch.full((2, 9), 5), attention_mask=torch.ones(shape))


def test_shape_of_the_mask_beside_embeddings(model: LunaModel):
    with pytest.raises(ValueError, match=r"\(batch, n\) = \(2, 9\), not \(2, 8\)"):
        model(inputs_embeds=torch.zeros(2, 9, 24), attention_mask=torch.ones(2, 8))


@pytest.mark.parametrize("bad", [-1, VOCABULARY])
def test_id_out_of_range(model: LunaModel, bad: int):
    message = f"tokenizer.*input_ids must lie between 0 and 52; found {min(bad, 5)} to {max(bad, 5)}"
    with pytest.raises(ValueError, match=message):
        model(torch.tensor([[5, bad, 5]]))


@torch.no_grad()
def test_longest_row_that_fits(model: LunaModel):
    assert model(torch.full((1, POSITIONS), 5)).last_hidden_state.shape == (1, POSITIONS, 24)


@pytest.mark.parametrize("masked", [True, False])
def test_row_that_is_too_long(model: LunaModel, masked: bool):
    input_ids = torch.full((2, POSITIONS + 1), 5)
    mask = torch.ones_like(input_ids) if masked else None
    with pytest.raises(ValueError, match=r"more tokens than max_position_embeddings \(32\).*max_length=32"):
        model(input_ids, attention_mask=mask)


@torch.no_grad()
@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_does_not_count_as_length(model: LunaModel, side: str):
    row = torch.arange(3, 3 + 20).unsqueeze(0)
    padding = torch.ones(1, POSITIONS, dtype=torch.long)
    input_ids = torch.cat((row, padding) if side == "right" else (padding, row), dim=1)
    mask = (input_ids != 1).long()
    result = model(input_ids, attention_mask=mask).last_hidden_state[mask.bool()]
    torch.testing.assert_close(result, model(row).last_hidden_state[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_sinusoidal_positions_have_no_limit(tiny_model: Callable):
    model = tiny_model(position_embedding_type="sinusoidal")
    input_ids = torch.full((1, 10 * POSITIONS), 5)
    states = model(input_ids).last_hidden_state
    assert states.isfinite().all()
    assert (states[0, -1] - states[0, -2]).abs().max() > 1e-4


@pytest.mark.parametrize("shape", [(2, 8), (9,), (3, 9), (2, 9, 1)])
def test_shape_of_the_positions(model: LunaModel, shape: tuple[int, ...]):
    message = f"position_ids must have the shape (batch, n) = (2, 9) or (1, n), not {shape}"
    with pytest.raises(ValueError, match=re.escape(message)):
        model(torch.full((2, 9), 5), position_ids=torch.zeros(shape, dtype=torch.long))


@pytest.mark.parametrize("first", [-1, POSITIONS - 3])
def test_position_out_of_range(model: LunaModel, first: int):
    with pytest.raises(ValueError, match="position"):
        model(torch.full((1, 4), 5), position_ids=torch.arange(first, first + 4).unsqueeze(0))


def test_position_table_ends_where_the_config_says(model: LunaModel):
    """RoBERTa's two extra rows of the table stay out of reach."""
    assert model.embeddings.position_embeddings.num_embeddings == POSITIONS + 2
    with torch.no_grad():
        model(torch.tensor([[5]]), position_ids=torch.tensor([[POSITIONS - 1]]))
    with pytest.raises(ValueError, match="position_ids must lie between 0 and 31; found 32"):
        model(torch.tensor([[5]]), position_ids=torch.tensor([[POSITIONS]]))


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("shape", [(2, 8), (18,), (9, 2)])
def test_shape_of_the_labels(tiny_model: Callable, shape: tuple[int, ...], sparse: bool):
    model = tiny_model(LunaForMaskedLM, sparse_prediction=sparse)
    with pytest.raises(ValueError, match=re.escape(f"labels must have the shape (batch, n) = (2, 9), not {shape}")):
        model(torch.full((2, 9), 5), labels=torch.full(shape, 5))
