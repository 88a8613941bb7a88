# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""The model computes what the official code computes (see tests/fixtures/README.md)."""

import pytest
import torch
from official_luna import CASES, PADDING_ID, OfficialCase, load_case

from modeling_luna import LunaConfig, LunaForMaskedLM


TOLERANCE = {"atol": 1e-5, "rtol": 0.0}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> OfficialCase:
    return load_case(request.param)


def official_model(case: OfficialCase, implementation: str) -> LunaForMaskedLM:
    model = LunaForMaskedLM._from_config(case.config, attn_implementation=implementation)
    model.load_state_dict(case.state_dict)
    return model


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_states_and_logits(case: OfficialCase, implementation: str):
    model = official_model(case, implementation).eval()
    assert len(case.batches) == 8
    for batch in case.batches:
        tokens = case.tensors[f"{batch}.tokens"]
        with torch.no_grad():
            outputs = model(
                tokens,
                attention_mask=tokens != PADDING_ID,
                output_hidden_states=True,
                output_packed_hidden_states=True,
            )
        assert len(outputs.hidden_states) == len(outputs.packed_hidden_states) == case.config.num_hidden_layers + 1
        for layer in range(case.config.num_hidden_layers + 1):
            hidden, packed = case.tensors[f"{batch}.hidden.{layer}"], case.tensors[f"{batch}.packed.{layer}"]
            torch.testing.assert_close(outputs.hidden_states[layer], hidden, **TOLERANCE)
            # The official code cuts P after the slots of the longest row.
            used = packed.shape[1]
            torch.testing.assert_close(outputs.packed_hidden_states[layer][:, :used], packed, **TOLERANCE)
        torch.testing.assert_close(outputs.packed_last_hidden_state[:, :used], packed, **TOLERANCE)
        torch.testing.assert_close(outputs.logits, case.tensors[f"{batch}.lm_logits"], **TOLERANCE)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_no_mask_for_batches_without_padding(case: OfficialCase, implementation: str):
    model = official_model(case, implementation).eval()
    for batch in ("nopad", "short_nopad"):
        with torch.no_grad():
            logits = model(case.tensors[f"{batch}.tokens"]).logits
        torch.testing.assert_close(logits, case.tensors[f"{batch}.lm_logits"], **TOLERANCE)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_training_loss_and_gradients(case: OfficialCase, implementation: str):
    model = official_model(case, implementation).train()
    tokens, labels = case.tensors["train.tokens"], case.tensors["train.labels"]
    labels = labels.masked_fill(labels == PADDING_ID, -100)
    loss = model(tokens, attention_mask=tokens != PADDING_ID, labels=labels).loss
    loss.backward()

    torch.testing.assert_close(loss, case.tensors["train.loss_mean"].squeeze(), **TOLERANCE)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, gradient in case.gradients.items():
        torch.testing.assert_close(gradients.pop(name), gradient, **TOLERANCE)
    # No loss reaches the last norm of P: officially no gradient, here one of zeros.
    last = f"luna.layers.{case.config.num_hidden_layers - 1}.packed_layer_norm"
    assert set(gradients) == {f"{last}.weight", f"{last}.bias"}
    assert all(gradient.eq(0).all() for gradient in gradients.values())


def test_number_of_parameters(case: OfficialCase):
    assert official_model(case, "eager").num_parameters() == case.num_parameters


@pytest.mark.parametrize(("tied", "expected"), [(True, 131_902_041), (False, 146_076_249)])
def test_number_of_parameters_of_the_base_model(tied: bool, expected: int):
    with torch.device("meta"):
        model = LunaForMaskedLM(LunaConfig(tie_key_value=tied))
    assert model.num_parameters() == expected
