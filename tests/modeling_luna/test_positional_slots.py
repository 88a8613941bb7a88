# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""`positional_slots`: slots that read their own positions from initialisation on, also of a piece of a longer row."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from rows import LENGTHS, SLOTS, padded, random_rows
from transformers import AutoModel

from modeling_luna import LunaConfig, LunaModel


FIRSTS = (4, 13, 6)  # positions at which the rows begin


@pytest.fixture
def model(tiny_model: Callable) -> LunaModel:
    return tiny_model(positional_slots=True)


def plain_twin(model: LunaModel, tiny_model: Callable) -> LunaModel:
    plain = tiny_model()
    plain.load_state_dict(model.state_dict())
    return plain


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("slots", "shares"), [(32, 1), (16, 2)])
def test_each_slot_reads_its_positions_in_every_layer(tied: bool, slots: int, shares: int):
    width = 512
    torch.manual_seed(0)
    model = LunaModel._from_config(
        LunaConfig(
            vocab_size=100,
            hidden_size=width,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=32,
            projection_length=slots,
            max_position_embeddings=32,
            initializer_range=width**-0.5,
            tie_key_value=tied,
            positional_slots=True,
        ),
        attn_implementation="eager",
    ).eval()
    maps = model(torch.randint(3, 100, (4, 32)), output_attentions=True, output_pack_attentions=True).pack_attentions
    assert len(maps) == 2
    for weights in maps:
        read = weights.mean(dim=1).topk(shares).indices.sort().values  # (batch, slots, shares)
        expected = torch.arange(slots)[:, None] + slots * torch.arange(shares)
        assert (read == expected).float().mean() > 0.95


@torch.no_grad()
def test_slots_beyond_the_positions_are_random(tiny_config: Callable):
    model = LunaModel(tiny_config(positional_slots=True, projection_length=40, dynamic_projection=False))
    assert model.embeddings.packed_embeddings.std(dim=1).min() > 0


@torch.no_grad()
@pytest.mark.parametrize("given", [False, True])
def test_a_row_from_position_0_is_that_of_the_plain_model(model: LunaModel, tiny_model: Callable, given: bool):
    input_ids, mask = padded(random_rows())
    position_ids = torch.arange(input_ids.shape[1]).unsqueeze(0) if given else None
    outputs = [m(input_ids, mask, position_ids=position_ids) for m in (model, plain_twin(model, tiny_model))]
    torch.testing.assert_close(outputs[0].last_hidden_state, outputs[1].last_hidden_state)
    torch.testing.assert_close(outputs[0].packed_last_hidden_state, outputs[1].packed_last_hidden_state)


@torch.no_grad()
def test_a_piece_uses_the_slots_of_its_positions(model: LunaModel, tiny_model: Callable):
    """Three tokens from position 10 on use the slots 4, 5 and 0 of six."""
    input_ids, position_ids = random_rows((3,))[0].unsqueeze(0), torch.tensor([[10, 11, 12]])
    plain = plain_twin(model, tiny_model)
    plain.embeddings.packed_embeddings.copy_(model.embeddings.packed_embeddings.roll(-4, dims=0))
    expected = plain(input_ids, position_ids=position_ids)
    torch.testing.assert_close(model(input_ids, position_ids=position_ids).to_tuple(), expected.to_tuple())
    assert (model(input_ids).last_hidden_state - expected.last_hidden_state).abs().max() > 0.01


@torch.no_grad()
@pytest.mark.parametrize("form", ["right", "left", "documents"])
def test_a_piece_alone_equals_a_piece_among_others(model: LunaModel, form: str):
    rows = random_rows()
    positions = [torch.arange(first, first + length) for first, length in zip(FIRSTS, LENGTHS, strict=True)]
    if form == "documents":
        boundaries = torch.tensor([0, *LENGTHS]).cumsum(0).int()
        outputs = model(
            torch.cat(rows).unsqueeze(0), position_ids=torch.cat(positions).unsqueeze(0), cu_seq_lens_q=boundaries
        )
        together = outputs.last_hidden_state.squeeze(0).split(LENGTHS)
    else:
        input_ids, mask = padded(rows, form)
        position_ids, _ = padded(positions, form, padding_id=0)
        outputs = model(input_ids, mask, position_ids=position_ids)
        together = [states[used.bool()] for states, used in zip(outputs.last_hidden_state, mask, strict=True)]
    for row, position, states, packed in zip(rows, positions, together, outputs.packed_last_hidden_state, strict=True):
        alone = model(row.unsqueeze(0), position_ids=position.unsqueeze(0))
        torch.testing.assert_close(states, alone.last_hidden_state[0], atol=1e-5, rtol=1e-5)
        used = min(len(row), SLOTS)
        torch.testing.assert_close(packed[:used], alone.packed_last_hidden_state[0], atol=1e-5, rtol=1e-5)


def test_saved_weights_are_not_initialised_again(model: LunaModel, tmp_path: Path):
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert loaded.config.positional_slots
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), atol=0, rtol=0)


def test_sinusoidal_positions_have_none():
    with pytest.raises(StrictDataclassClassValidationError, match="positional_slots needs learned positions"):
        LunaConfig(positional_slots=True, position_embedding_type="sinusoidal")
