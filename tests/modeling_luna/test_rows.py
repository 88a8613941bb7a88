# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""A row does not depend on its neighbours, on padding, or on the implementation of attention."""

from collections.abc import Callable

import pytest
import torch
from flash_emulation import use_flash_attention
from rows import LENGTHS, SLOTS, VARIANTS, padded, random_rows

from modeling_luna import LunaModel, LunaModelOutput


TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(params=["eager", "sdpa", "flash_attention_2"])
def implementation(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=VARIANTS)
def model(
    request: pytest.FixtureRequest, implementation: str, tiny_model: Callable, monkeypatch: pytest.MonkeyPatch
) -> LunaModel:
    if implementation != "flash_attention_2":
        return tiny_model(attn_implementation=implementation, **VARIANTS[request.param])
    model = tiny_model(**VARIANTS[request.param])
    use_flash_attention(model, monkeypatch)
    return model


def used_slots(model: LunaModel, length: int) -> int:
    return min(SLOTS, length) if model.config.dynamic_projection else SLOTS


def assert_same_row(model: LunaModel, outputs: LunaModelOutput, index: int, mask: torch.Tensor, row: torch.Tensor):
    alone = model(row.unsqueeze(0))
    slots = used_slots(model, len(row))
    assert alone.packed_last_hidden_state.shape[1] == slots
    tokens = outputs.last_hidden_state[index, mask[index].bool()]
    torch.testing.assert_close(tokens, alone.last_hidden_state[0], **TOLERANCE)
    packed = outputs.packed_last_hidden_state[index, :slots]
    torch.testing.assert_close(packed, alone.packed_last_hidden_state[0], **TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("extra", [0, 4])
@pytest.mark.parametrize("side", ["right", "left"])
def test_row_alone_equals_row_in_a_batch(model: LunaModel, side: str, extra: int):
    rows = random_rows()
    input_ids, mask = padded(rows, side, extra)
    outputs = model(input_ids, attention_mask=mask)
    for index, row in enumerate(rows):
        assert_same_row(model, outputs, index, mask, row)


@torch.no_grad()
def test_flash_attention_has_layers_compute_the_tokens_alone(tiny_model: Callable, monkeypatch: pytest.MonkeyPatch):
    model, shapes = tiny_model(conv_kernel_size=3), []
    use_flash_attention(model, monkeypatch)
    for layer in model.layers:
        layer.mlp.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(inputs[0].shape)))
    input_ids, mask = padded(random_rows(), "left", extra=2)
    outputs = model(input_ids, attention_mask=mask)
    assert shapes == [(1, sum(LENGTHS), 24)] * 2
    assert not outputs.last_hidden_state[mask == 0].any()


@torch.no_grad()
@pytest.mark.parametrize("length", LENGTHS)
def test_batch_of_one_with_padding(model: LunaModel, length: int):
    row = random_rows()[LENGTHS.index(length)]
    for side in ("right", "left"):
        input_ids, mask = padded([row], side, extra=SLOTS + 1)
        assert_same_row(model, model(input_ids, attention_mask=mask), 0, mask, row)


@torch.no_grad()
def test_mask_alone_tells_padding(model: LunaModel):
    input_ids, mask = padded(random_rows(), "right", extra=2)
    reference = model(input_ids, attention_mask=mask).last_hidden_state
    other_padding = torch.where(mask.bool(), input_ids, 7)
    torch.testing.assert_close(model(other_padding, attention_mask=mask).last_hidden_state, reference, **TOLERANCE)
    unmasked = model(other_padding).last_hidden_state
    assert (unmasked - reference)[mask.bool()].abs().max() > 0.05


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.float32])
def test_dtype_of_the_mask_does_not_matter(model: LunaModel, dtype: torch.dtype):
    input_ids, mask = padded(random_rows(), "left", extra=1)
    reference = model(input_ids, attention_mask=mask).last_hidden_state
    assert torch.equal(model(input_ids, attention_mask=mask.to(dtype)).last_hidden_state, reference)


@torch.no_grad()
def test_inputs_embeds_equal_input_ids(model: LunaModel):
    input_ids, mask = padded(random_rows(), "left", extra=1)
    reference = model(input_ids, attention_mask=mask)
    embedded = model(inputs_embeds=model.get_input_embeddings()(input_ids), attention_mask=mask)
    assert torch.equal(embedded.last_hidden_state, reference.last_hidden_state)
    assert torch.equal(embedded.packed_last_hidden_state, reference.packed_last_hidden_state)


@torch.no_grad()
def test_positions_are_counted_from_the_first_token(model: LunaModel):
    input_ids, mask = padded(random_rows(), "left", extra=2)
    counted = (mask.cumsum(dim=1) - 1).clamp(min=0)
    reference = model(input_ids, attention_mask=mask).last_hidden_state
    given = model(input_ids, attention_mask=mask, position_ids=counted).last_hidden_state
    assert torch.equal(given, reference)
    shifted = model(input_ids, attention_mask=mask, position_ids=counted + 1).last_hidden_state
    assert (shifted - reference)[mask.bool()].abs().max() > 0.05


def test_fully_masked_row_is_finite_and_harmless(model: LunaModel):
    rows = random_rows()
    input_ids, mask = padded(rows, "right", extra=0)
    mask[1] = 0
    outputs = model(input_ids, attention_mask=mask)
    assert outputs.last_hidden_state.isfinite().all()
    assert outputs.packed_last_hidden_state.isfinite().all()
    for index in (0, 2):
        assert_same_row(model, outputs, index, mask, rows[index])

    (outputs.last_hidden_state.square().sum() + outputs.packed_last_hidden_state.square().sum()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@torch.no_grad()
def test_batch_of_masked_rows_is_finite(model: LunaModel):
    outputs = model(torch.full((2, 9), 5), attention_mask=torch.zeros(2, 9))
    assert outputs.last_hidden_state.isfinite().all()
    assert outputs.packed_last_hidden_state.isfinite().all()


@pytest.mark.parametrize("side", ["right", "left", None])
def test_implementation_equals_eager(
    model: LunaModel, tiny_model: Callable, request: pytest.FixtureRequest, side: str | None
):
    variant = request.node.callspec.params["model"]
    input_ids, mask = padded(random_rows(), side or "right", extra=2)
    results = []
    for run in (tiny_model(attn_implementation="eager", **VARIANTS[variant]), model):
        outputs = run(
            input_ids,
            attention_mask=mask if side else None,
            output_hidden_states=True,
            output_packed_hidden_states=True,
        )
        outputs.last_hidden_state[mask.bool()].pow(3).mean().backward()
        gradients = [parameter.grad for parameter in run.parameters()]
        tokens = [states[mask.bool()] for states in outputs.hidden_states]
        slots = torch.arange(SLOTS) < mask.sum(dim=1, keepdim=True) if side and run.config.dynamic_projection else ...
        results.append((tokens, [states[slots] for states in outputs.packed_hidden_states], gradients))
    torch.testing.assert_close(*results, **TOLERANCE)


@pytest.mark.slow  # the kernel is compiled for each shape
@torch.no_grad()
@pytest.mark.parametrize(("variant", "side"), [("default", "left"), ("fixed", "right"), ("all", "left")])
def test_flex_attention_equals_eager(tiny_model: Callable, variant: str, side: str):
    input_ids, mask = padded(random_rows(), side, extra=2)
    states = [
        tiny_model(attn_implementation=implementation, **VARIANTS[variant])(input_ids, attention_mask=mask)
        for implementation in ("eager", "flex_attention")
    ]
    torch.testing.assert_close(*(s.last_hidden_state[mask.bool()] for s in states), **TOLERANCE)


@torch.no_grad()
def test_convolution_starts_as_the_identity(tiny_config: Callable):
    plain = LunaModel(tiny_config(initializer_range=0.3)).eval()
    convolved = LunaModel(tiny_config(initializer_range=0.3, conv_kernel_size=5)).eval()
    missing = convolved.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert sorted(missing) == sorted(f"layers.{i}.convolution.{part}" for i in (0, 1) for part in ("weight", "bias"))
    input_ids, mask = padded(random_rows(), "left", extra=2)
    reference = plain(input_ids, attention_mask=mask).last_hidden_state[mask.bool()]
    result = convolved(input_ids, attention_mask=mask).last_hidden_state[mask.bool()]
    torch.testing.assert_close(result, reference, **TOLERANCE)


@torch.no_grad()
def test_convolution_changes_the_result(tiny_model: Callable):
    input_ids, mask = padded(random_rows(), "right", extra=0)
    model = tiny_model(conv_kernel_size=5)
    before = model(input_ids, attention_mask=mask).last_hidden_state
    model.layers[1].convolution.weight[:, :, 0] += 1.0
    assert (model(input_ids, attention_mask=mask).last_hidden_state - before)[mask.bool()].abs().max() > 0.05
