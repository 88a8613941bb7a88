# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""What the CPU computes, a GPU computes, too: in every layout of rows, in half precision, and compiled."""

from collections.abc import Callable

import pytest
import torch
from rows import LENGTHS, VARIANTS, padded, random_rows

from common.compilation import compile_parts
from modeling_luna import LunaForMaskedLM, attention_luna


pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

LAYOUTS = ("whole", "right", "left", "documents")


def batch(layout: str) -> dict[str, torch.Tensor]:
    """Rows of tokens, every third of which is to be predicted."""
    rows = random_rows()
    if layout == "whole":
        input_ids, mask = rows[-1].unsqueeze(0), None
    elif layout == "documents":
        input_ids, mask = torch.cat(rows).unsqueeze(0), None
    else:
        input_ids, mask = padded(rows, layout)
    chosen = torch.arange(input_ids.numel()).view_as(input_ids) % 3 == 0
    if mask is not None:
        chosen &= mask.bool()
    inputs = {"input_ids": input_ids, "labels": input_ids.masked_fill(~chosen, -100)}
    if mask is not None:
        inputs["attention_mask"] = mask
    if layout == "documents":
        inputs["cu_seq_lens_q"] = torch.tensor([0, *LENGTHS]).cumsum(0).int()
    return inputs


def loss_and_gradients(
    model: LunaForMaskedLM, inputs: dict[str, torch.Tensor], device: str
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.to(device).zero_grad()
    loss = model(**{name: value.to(device) for name, value in inputs.items()}).loss
    loss.backward()
    return loss.cpu(), {name: parameter.grad.cpu() for name, parameter in model.named_parameters()}


def check_against_cpu(tiny_model: Callable, implementation: str, layout: str, **fields):
    expected = loss_and_gradients(tiny_model(LunaForMaskedLM, "eager", **fields), batch(layout), "cpu")
    found = loss_and_gradients(tiny_model(LunaForMaskedLM, implementation, **fields), batch(layout), "cuda")
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_loss_and_gradients_are_those_of_the_cpu(tiny_model: Callable, implementation: str, variant: str, layout: str):
    check_against_cpu(tiny_model, implementation, layout, **VARIANTS[variant])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_flex_attention_too(tiny_model: Callable, layout: str):
    check_against_cpu(tiny_model, "flex_attention", layout, hidden_size=64)  # its heads have 16 dimensions or more


@pytest.mark.parametrize("layout", LAYOUTS)
def test_autocast_to_bf16_stays_near(tiny_model: Callable, layout: str):
    model = tiny_model(LunaForMaskedLM, "sdpa")
    expected, _ = loss_and_gradients(model, batch(layout), "cpu")
    with torch.autocast("cuda", torch.bfloat16):
        found, _ = loss_and_gradients(model, batch(layout), "cuda")
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0.02)


@pytest.mark.parametrize("layout", ["whole", "right"])
def test_compiled_model_gives_the_same(tiny_model: Callable, layout: str):
    model = tiny_model(LunaForMaskedLM, "sdpa")
    inputs = {name: value.cuda() for name, value in batch(layout).items()}
    expected = model.cuda()(**inputs).loss
    found = torch.compile(model, fullgraph=True)(**inputs).loss
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("heads", [{}, {"num_pack_attention_heads": 2}])
def test_documents_without_padding(tiny_model: Callable, heads: dict, monkeypatch: pytest.MonkeyPatch):
    """In half precision the documents of a row are attended to without being padded."""
    calls = []
    kernel = attention_luna.varlen_attn

    def counted(*inputs, **kwargs) -> torch.Tensor:
        calls.append(inputs)
        return kernel(*inputs, **kwargs)

    monkeypatch.setattr(attention_luna, "varlen_attn", counted)
    model = tiny_model(LunaForMaskedLM, "sdpa", hidden_size=64, **heads)
    expected, expected_gradients = loss_and_gradients(model, batch("documents"), "cpu")
    with torch.autocast("cuda", torch.bfloat16):
        found, gradients = loss_and_gradients(model, batch("documents"), "cuda")
    assert len(calls) == 4
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0.02)
    for name, gradient in gradients.items():
        error = (gradient - expected_gradients[name]).norm() / expected_gradients[name].norm().clamp(min=1e-3)
        assert error < 0.1, name


@pytest.mark.parametrize("vocab_size", [53, 64])
def test_logits_of_any_vocabulary_in_training(tiny_model: Callable, vocab_size: int):
    model = tiny_model(LunaForMaskedLM, "sdpa", vocab_size=vocab_size).train()
    expected = loss_and_gradients(model, batch("right"), "cpu")
    found = loss_and_gradients(model, batch("right"), "cuda")
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
    inputs = {name: value.cuda() for name, value in batch("right").items()}
    assert model(**inputs).logits.shape[-1] == vocab_size


@pytest.mark.parametrize("slots", [3, 6])
def test_parts_are_compiled(tiny_model: Callable, slots: int):
    """With 3 slots the projections are absorbed."""
    model = tiny_model(LunaForMaskedLM, "sdpa", projection_length=slots)
    for layout in LAYOUTS:
        expected = loss_and_gradients(model, batch(layout), "cuda")
        compiled = tiny_model(LunaForMaskedLM, "sdpa", projection_length=slots)
        compile_parts(compiled)
        torch.testing.assert_close(loss_and_gradients(compiled, batch(layout), "cuda"), expected, atol=1e-4, rtol=1e-3)
