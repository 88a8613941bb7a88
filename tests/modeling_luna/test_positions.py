# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""What the embeddings add: learned or sinusoidal positions to the tokens, and sinusoidal ones to P."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn


HIDDEN, SLOTS = 24, 6


def sinusoid(position: int) -> list[float]:
    """Sines, then cosines, of frequencies that fall geometrically from 1 to 1e-4."""
    half = HIDDEN // 2
    frequencies = [10_000 ** (-i / (half - 1)) for i in range(half)]
    return [math.sin(position * f) for f in frequencies] + [math.cos(position * f) for f in frequencies]


def normalise(norm: nn.LayerNorm, states: torch.Tensor) -> torch.Tensor:
    return nn.functional.layer_norm(states, (HIDDEN,), norm.weight, norm.bias, 1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("pad_token_id", "first"), [(1, 2), (None, 0), (4, 5)])
def test_sinusoidal(tiny_model: Callable, pad_token_id: int | None, first: int):
    """Tokens start after the padding's row of the table, as the learned ones do; slots start at 0."""
    model = tiny_model(position_embedding_type="sinusoidal", pad_token_id=pad_token_id)
    input_ids = torch.arange(10, 19).unsqueeze(0)
    outputs = model(input_ids, output_hidden_states=True, output_packed_hidden_states=True)

    words = model.get_input_embeddings()(input_ids)
    tokens = words + torch.tensor([sinusoid(first + i) for i in range(9)])
    expected = normalise(model.embeddings.layer_norm, tokens)
    torch.testing.assert_close(outputs.hidden_states[0], expected, atol=1e-5, rtol=1e-5)

    slots = model.embeddings.packed_embeddings + torch.tensor([sinusoid(i) for i in range(SLOTS)])
    expected = normalise(model.embeddings.packed_layer_norm, slots).unsqueeze(0)
    torch.testing.assert_close(outputs.packed_hidden_states[0], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("pad_token_id", "first"), [(1, 2), (None, 0), (4, 5)])
def test_learned(tiny_model: Callable, pad_token_id: int | None, first: int):
    model = tiny_model(pad_token_id=pad_token_id)
    input_ids = torch.arange(10, 19).unsqueeze(0)
    outputs = model(input_ids, output_hidden_states=True, output_packed_hidden_states=True)

    table = model.embeddings.position_embeddings.weight
    assert table.shape == (32 + first, HIDDEN)
    tokens = model.get_input_embeddings()(input_ids) + table[first : first + 9]
    expected = normalise(model.embeddings.layer_norm, tokens)
    torch.testing.assert_close(outputs.hidden_states[0], expected, atol=1e-5, rtol=1e-5)

    expected = normalise(model.embeddings.packed_layer_norm, model.embeddings.packed_embeddings).unsqueeze(0)
    torch.testing.assert_close(outputs.packed_hidden_states[0], expected, atol=1e-5, rtol=1e-5)
