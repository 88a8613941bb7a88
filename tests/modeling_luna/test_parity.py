# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""What the converter makes of the official checkpoints computes what the official code computes."""

from pathlib import Path

import pytest
import torch
from official_luna import CASES, HEADS, PADDING_ID, OfficialCase, convert_case

from modeling_luna import LunaConfig, LunaForMaskedLM, LunaForSequenceClassification
from modeling_luna.modeling_luna import LunaPreTrainedModel


TOLERANCE = {"atol": 1e-5, "rtol": 0.0}
BATCHES = {"nopad", "padded", "left_padded", "short_nopad", "short_padded", "long"}
BACKENDS = pytest.mark.parametrize("implementation", ["eager", "sdpa"])


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> OfficialCase:
    return convert_case(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module", params=HEADS)
def head_case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> OfficialCase:
    return convert_case("bert_heads", tmp_path_factory.mktemp(request.param), head=request.param)


def check_gradients(case: OfficialCase, model: LunaPreTrainedModel, official: dict[str, torch.Tensor]) -> set[str]:
    """Compare the gradients; return the names of the parameters that have no official one."""
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, gradient in official.items():
        torch.testing.assert_close(gradients.pop(name), gradient, **TOLERANCE)
    return set(gradients)


@BACKENDS
def test_states_and_logits(case: OfficialCase, implementation: str):
    model = case.model(implementation)
    num_layers = model.config.num_hidden_layers
    assert isinstance(model, LunaForMaskedLM)
    assert set(case.batches) >= BATCHES
    for batch in case.batches:
        tokens = case.tensors[f"{batch}.tokens"]
        with torch.no_grad():
            outputs = model(
                tokens,
                attention_mask=tokens != PADDING_ID,
                output_hidden_states=True,
                output_packed_hidden_states=True,
            )
        assert len(outputs.hidden_states) == len(outputs.packed_hidden_states) == num_layers + 1
        for layer in range(num_layers + 1):
            hidden, packed = case.tensors[f"{batch}.hidden.{layer}"], case.tensors[f"{batch}.packed.{layer}"]
            torch.testing.assert_close(outputs.hidden_states[layer], hidden, **TOLERANCE)
            # The official code cuts P after the slots of the longest row.
            used = packed.shape[1]
            torch.testing.assert_close(outputs.packed_hidden_states[layer][:, :used], packed, **TOLERANCE)
        torch.testing.assert_close(outputs.packed_last_hidden_state[:, :used], packed, **TOLERANCE)
        torch.testing.assert_close(outputs.logits, case.tensors[f"{batch}.lm_logits"], **TOLERANCE)


@BACKENDS
def test_no_mask_for_batches_without_padding(case: OfficialCase, implementation: str):
    model = case.model(implementation)
    for batch in ("nopad", "short_nopad"):
        with torch.no_grad():
            logits = model(case.tensors[f"{batch}.tokens"]).logits
        torch.testing.assert_close(logits, case.tensors[f"{batch}.lm_logits"], **TOLERANCE)


# bert_heads was trained by its classification heads: see below.
@pytest.mark.parametrize("case", [name for name in CASES if name != "bert_heads"], indirect=True)
@BACKENDS
def test_training_loss_and_gradients(case: OfficialCase, implementation: str):
    model = case.model(implementation).train()
    tokens, labels = case.tensors["train.tokens"], case.tensors["train.labels"]
    labels = labels.masked_fill(labels == PADDING_ID, -100)
    loss = model(tokens, attention_mask=tokens != PADDING_ID, labels=labels).loss
    loss.backward()

    torch.testing.assert_close(loss, case.tensors["train.loss_mean"].squeeze(), **TOLERANCE)
    official = case.gradients([name for name, _ in model.named_parameters()])
    assert len(official) == len([name for name in case.tensors if name.startswith("grad.")])
    without = check_gradients(case, model, official)
    # No loss reaches the last norm of P: officially no gradient, here one of zeros.
    last = f"luna.layers.{model.config.num_hidden_layers - 1}.packed_layer_norm"
    assert without == {f"{last}.weight", f"{last}.bias"}
    assert all(model.get_parameter(name).grad.eq(0).all() for name in without)


@BACKENDS
def test_logits_of_heads(head_case: OfficialCase, implementation: str):
    model = head_case.model(implementation)
    assert isinstance(model, LunaForSequenceClassification)
    assert set(head_case.batches) >= BATCHES
    for batch in head_case.batches:
        tokens = head_case.tensors[f"{batch}.tokens"]
        with torch.no_grad():
            logits = model(tokens, attention_mask=tokens != PADDING_ID).logits
        official = head_case.tensors[f"{batch}.head.{head_case.conversion.head}"]
        torch.testing.assert_close(logits, official, **TOLERANCE)


@BACKENDS
def test_training_loss_and_gradients_of_heads(head_case: OfficialCase, implementation: str):
    model = head_case.model(implementation).train()
    head, tokens = head_case.conversion.head, head_case.tensors["train.tokens"]
    loss = model(tokens, attention_mask=tokens != PADDING_ID, labels=head_case.tensors["train.labels"]).loss
    loss.backward()

    torch.testing.assert_close(loss, head_case.tensors[f"train.{head}.loss_mean"].squeeze(), **TOLERANCE)
    official = head_case.gradients([name for name, _ in model.named_parameters()], prefix=f"{head}.")
    assert len(official) == len([name for name in head_case.tensors if name.startswith(f"grad.{head}.")])
    check_gradients(head_case, model, official)


def test_number_of_parameters(case: OfficialCase, tmp_path: Path):
    expected = case.num_parameters
    if case.name == "bert_heads":
        models = [convert_case(case.name, tmp_path / head, head).model() for head in HEADS]
        expected -= sum(parameter.numel() for model in models for parameter in model.classifier.parameters())
    assert case.model().num_parameters() == case.conversion.num_parameters == expected


@pytest.mark.parametrize(("tied", "expected"), [(True, 131_902_041), (False, 146_076_249)])
def test_number_of_parameters_of_the_base_model(tied: bool, expected: int):
    with torch.device("meta"):
        model = LunaForMaskedLM(LunaConfig(tie_key_value=tied))
    assert model.num_parameters() == expected
