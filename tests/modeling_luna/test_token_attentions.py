# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""Maps of tokens to tokens, and hooks on the embeddings, for tools that explain a model."""

from collections.abc import Callable

import pytest
import torch
from rows import SLOTS, VARIANTS, padded, random_rows

from modeling_luna import LunaForMaskedLM, LunaForSequenceClassification, LunaModel, token_attentions


LAYERS, HEADS = 2, 4
MAPS = {"output_attentions": True, "output_pack_attentions": True}


@torch.no_grad()
@pytest.mark.parametrize("model_class", [LunaModel, LunaForMaskedLM, LunaForSequenceClassification])
@pytest.mark.parametrize("variant", VARIANTS)
def test_rows_sum_to_one_and_padding_is_zero(tiny_model: Callable, model_class: type, variant: str):
    """For rows of fewer, as many and more tokens than slots, padded on either side."""
    model = tiny_model(model_class, **VARIANTS[variant])
    for side in ("right", "left"):
        input_ids, mask = padded(random_rows(), side)
        maps = token_attentions(model(input_ids, attention_mask=mask, **MAPS))
        batch, width = input_ids.shape
        assert [layer.shape for layer in maps] == [(batch, HEADS, width, width)] * LAYERS
        for layer in maps:
            torch.testing.assert_close(layer.sum(dim=-1), torch.ones(batch, HEADS, width))
            padding = ~mask.bool()[:, None, None].expand_as(layer)
            assert layer[padding].eq(0).all() and layer[~padding].gt(0).all()


@torch.no_grad()
def test_padding_does_not_change_a_row(tiny_model: Callable):
    model, rows = tiny_model(), random_rows()
    input_ids, mask = padded(rows, extra=3)
    maps = token_attentions(model(input_ids, attention_mask=mask, **MAPS))
    for index, row in enumerate(rows):
        alone = token_attentions(model(row.unsqueeze(0), **MAPS))
        for together, expected in zip(maps, alone, strict=True):
            torch.testing.assert_close(together[index, :, : len(row), : len(row)], expected[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_documents_in_a_row(tiny_model: Callable):
    model, rows = tiny_model(), random_rows()
    input_ids, mask = padded(rows)
    positions = torch.cat([torch.arange(len(row)) for row in rows]).unsqueeze(0)
    in_a_row = token_attentions(model(torch.cat(rows).unsqueeze(0), position_ids=positions, **MAPS))
    for found, expected in zip(in_a_row, token_attentions(model(input_ids, attention_mask=mask, **MAPS)), strict=True):
        tokens = mask.bool()[:, None, :, None].expand_as(expected)  # a row of padding reads anything
        torch.testing.assert_close(found[tokens], expected[tokens], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_maps_tell_how_values_reach_the_tokens(tiny_model: Callable):
    """With one pack head, what an unpack head gathers is its map times the tokens' values."""
    model = tiny_model(num_pack_attention_heads=1, tie_key_value=False)
    gathered = []
    model.layers[0].unpack_attention.out_proj.register_forward_pre_hook(lambda _, inputs: gathered.append(inputs[0]))
    outputs = model(random_rows()[2].unsqueeze(0), output_hidden_states=True, **MAPS)
    pack, unpack = model.layers[0].pack_attention, model.layers[0].unpack_attention
    values = unpack.v_proj(pack.v_proj(outputs.hidden_states[0])).unflatten(-1, (HEADS, -1)).transpose(1, 2)
    expected = torch.matmul(token_attentions(outputs)[0], values).transpose(1, 2).flatten(2)
    torch.testing.assert_close(gathered[0], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("pack_heads", [1, 2, 4, 6])
def test_the_mean_of_the_pack_heads(tiny_model: Callable, pack_heads: int):
    outputs = tiny_model(num_pack_attention_heads=pack_heads)(random_rows()[2].unsqueeze(0), **MAPS)
    for layer, token_map in enumerate(token_attentions(outputs)):
        unpack, pack = outputs.attentions[layer][0], outputs.pack_attentions[layer][0]
        assert pack.shape == (pack_heads, SLOTS, 11)
        expected = sum(unpack @ head for head in pack) / pack_heads
        torch.testing.assert_close(token_map[0], expected, atol=1e-6, rtol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize(
    ("implementation", "arguments"),
    [
        ("sdpa", MAPS),
        ("eager", {"output_attentions": True}),
        ("eager", {"output_pack_attentions": True}),
        ("eager", MAPS | {"return_dict": False}),
    ],
    ids=["sdpa", "no pack", "no unpack", "tuple"],
)
def test_missing_maps(tiny_model: Callable, implementation: str, arguments: dict):
    outputs = tiny_model(attn_implementation=implementation)(random_rows()[2].unsqueeze(0), **arguments)
    with pytest.raises(ValueError, match="attn_implementation='eager'.*output_pack_attentions=True"):
        token_attentions(outputs)


@pytest.mark.parametrize("masked", [True, False], ids=["mask", "no mask"])
def test_embeddings_may_be_replaced_by_a_hook(tiny_model: Callable, masked: bool):
    """As captum does: the outputs are read, and a call is repeated with others that take gradients."""
    model = tiny_model(LunaForSequenceClassification)
    input_ids, mask = padded(random_rows())
    arguments = {"attention_mask": mask} if masked else {}
    found = []
    hook = model.luna.embeddings.register_forward_hook(lambda module, inputs, outputs: found.extend(outputs))
    expected = model(input_ids, **arguments).logits
    hook.remove()
    assert [states.shape for states in found] == [(3, 11, 24), (3, SLOTS, 24)]
    replaced = tuple(states.detach().clone().requires_grad_() for states in found)
    model.luna.embeddings.register_forward_hook(lambda module, inputs, outputs: replaced)
    logits = model(torch.full_like(input_ids, 5), **arguments).logits
    torch.testing.assert_close(logits, expected)
    assert all(gradient.abs().max() > 1e-3 for gradient in torch.autograd.grad(logits.sum(), replaced))


@pytest.mark.parametrize("layer", ["embeddings", "embeddings.word_embeddings"])
def test_integrated_gradients(tiny_model: Callable, layer: str):
    """captum's attributions to tokens add up to the difference of the logits."""
    captum = pytest.importorskip("captum.attr", reason="captum is not installed: pip install captum")
    model = tiny_model(LunaForSequenceClassification)
    input_ids, mask = padded(random_rows(), "left")
    attribute = captum.LayerIntegratedGradients(
        lambda ids, mask: model(ids, attention_mask=mask).logits, model.luna.get_submodule(layer)
    ).attribute
    attributions, error = attribute(
        input_ids,
        baselines=torch.full_like(input_ids, 5),
        additional_forward_args=(mask,),
        target=1,
        return_convergence_delta=True,
    )
    if layer == "embeddings":
        attributions, of_slots = attributions
        assert of_slots.eq(0).all()
    assert attributions.shape == (3, 11, 24) and error.abs().max() < 1e-2
    assert attributions[~mask.bool()].eq(0).all()
