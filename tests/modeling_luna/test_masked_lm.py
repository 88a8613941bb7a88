# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""The masked-LM loss, dense and sparse, and the weights that the decoder shares with the embeddings."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rows import padded, random_rows
from torch import nn

from modeling_luna import LunaForMaskedLM


VOCABULARY = 53
TOLERANCE = {"atol": 1e-6, "rtol": 1e-5}


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Two rows of 9 and 5 tokens with 5 labels."""
    input_ids = torch.randint(3, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(input_ids)
    mask[1, 5:] = 0
    labels = torch.full_like(input_ids, -100)
    for row, column, label in ((0, 0, 7), (0, 4, 9), (0, 8, 52), (1, 1, 3), (1, 4, 30)):
        labels[row, column] = label
    return {"input_ids": input_ids, "attention_mask": mask, "labels": labels}


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@torch.no_grad()
@pytest.mark.parametrize("sparse", [False, True])
def test_loss_is_the_cross_entropy_of_the_labelled_positions(tiny_model: Callable, batch: dict, sparse: bool):
    logits = tiny_model(LunaForMaskedLM)(batch["input_ids"], batch["attention_mask"]).logits
    assert logits.shape == (2, 9, VOCABULARY)
    labels = batch["labels"]
    losses = [
        -logits[row, column].log_softmax(dim=-1)[labels[row, column]] for row, column in (labels != -100).nonzero()
    ]
    assert len(losses) == 5
    loss = tiny_model(LunaForMaskedLM, sparse_prediction=sparse)(**batch).loss
    torch.testing.assert_close(loss, torch.stack(losses).mean(), **TOLERANCE)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_num_items_in_batch_divides_the_sum(tiny_model: Callable, batch: dict, sparse: bool, as_tensor: bool):
    model = tiny_model(LunaForMaskedLM, sparse_prediction=sparse)
    count = torch.tensor(20) if as_tensor else 20
    torch.testing.assert_close(model(**batch, num_items_in_batch=count).loss, model(**batch).loss * 5 / 20)


def test_number_of_predictions_changes_nothing_and_is_checked(tiny_model: Callable, batch: dict):
    model = tiny_model(LunaForMaskedLM, sparse_prediction=True)
    outputs, expected = model(**batch, num_predicted=5), model(**batch)
    assert torch.equal(outputs.loss, expected.loss) and torch.equal(outputs.logits, expected.logits)
    with pytest.raises(ValueError, match="num_predicted is 4, but the batch has 5"):
        model(**batch, num_predicted=4)


@pytest.mark.parametrize("sparse", [False, True])
def test_accumulated_gradients_equal_those_of_the_whole_batch(tiny_model: Callable, batch: dict, sparse: bool):
    model = tiny_model(LunaForMaskedLM, sparse_prediction=sparse)
    model(**batch).loss.backward()
    expected = gradients(model)
    model.zero_grad()
    for row in range(2):
        rows = {name: tensor[row : row + 1] for name, tensor in batch.items()}
        model(**rows, num_items_in_batch=5).loss.backward()
    torch.testing.assert_close(gradients(model), expected, atol=1e-5, rtol=1e-4)


def test_sparse_prediction_equals_dense(tiny_model: Callable, batch: dict):
    results = []
    for sparse in (False, True):
        model = tiny_model(LunaForMaskedLM, sparse_prediction=sparse)
        outputs = model(**batch)
        outputs.loss.backward()
        results.append((outputs.loss, gradients(model)))
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-4)

    assert outputs.logits.shape == (5, VOCABULARY)
    dense = tiny_model(LunaForMaskedLM)(**batch).logits[batch["labels"] != -100]
    torch.testing.assert_close(outputs.logits, dense, **TOLERANCE)
    assert model(batch["input_ids"]).logits.shape == (2, 9, VOCABULARY)


@pytest.mark.parametrize("sparse", [False, True])
def test_batch_without_labels_adds_nothing(tiny_model: Callable, batch: dict, sparse: bool):
    """With `num_items_in_batch` a process that drew no label contributes a zero, and its gradients are zeros."""
    model = tiny_model(LunaForMaskedLM, sparse_prediction=sparse)
    batch["labels"].fill_(-100)
    loss = model(**batch, num_items_in_batch=torch.tensor(4)).loss
    assert loss.item() == 0.0
    loss.backward()
    assert all(gradient.eq(0).all() for gradient in gradients(model).values())


@torch.no_grad()
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_row_alone_equals_row_in_a_batch(tiny_model: Callable, implementation: str, side: str):
    model = tiny_model(LunaForMaskedLM, implementation)
    rows = random_rows()
    input_ids, mask = padded(rows, side, extra=3)
    logits = model(input_ids, attention_mask=mask).logits
    for index, row in enumerate(rows):
        alone = model(row.unsqueeze(0)).logits[0]
        torch.testing.assert_close(logits[index][mask[index].bool()], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sparse", [False, True])
def test_more_padding_changes_neither_loss_nor_gradients(tiny_model: Callable, batch: dict, sparse: bool):
    results = []
    for columns in (0, 7):
        model = tiny_model(LunaForMaskedLM, sparse_prediction=sparse)
        fillers = {"input_ids": 1, "attention_mask": 0, "labels": -100}
        loss = model(
            **{name: nn.functional.pad(batch[name], (0, columns), value=fillers[name]) for name in batch}
        ).loss
        loss.backward()
        results.append((loss, gradients(model)))
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("sparse", [False, True])
def test_fully_masked_row_is_finite_and_harmless(tiny_model: Callable, batch: dict, sparse: bool):
    """It has no labels, and the loss is that of the other row."""
    model = tiny_model(LunaForMaskedLM, sparse_prediction=sparse)
    expected = model(**{name: tensor[:1] for name, tensor in batch.items()}).loss
    batch["attention_mask"][1] = 0
    batch["labels"][1] = -100
    loss = model(**batch).loss
    torch.testing.assert_close(loss, expected, **TOLERANCE)
    loss.backward()
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())


@torch.no_grad()
@pytest.mark.parametrize("sparse", [False, True])
def test_loss_of_a_bfloat16_model_has_the_resolution_of_float32(tiny_model: Callable, batch: dict, sparse: bool):
    model = tiny_model(LunaForMaskedLM, sparse_prediction=sparse).bfloat16()
    outputs = model(**batch)
    assert outputs.logits.dtype == torch.bfloat16
    assert outputs.loss.dtype == torch.float32
    logits = outputs.logits if sparse else outputs.logits[batch["labels"] != -100]
    expected = nn.functional.cross_entropy(logits.double(), batch["labels"][batch["labels"] != -100])
    assert outputs.loss.item() == pytest.approx(expected.item(), rel=1e-6)


def is_tied(model: LunaForMaskedLM) -> bool:
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("tied", [True, False])
def test_tied_weights_survive_saving(tiny_model: Callable, tmp_path: Path, batch: dict, tied: bool):
    model = tiny_model(LunaForMaskedLM, tie_word_embeddings=tied)
    assert is_tied(model) == tied
    model.save_pretrained(tmp_path)
    loaded, report = LunaForMaskedLM.from_pretrained(tmp_path, attn_implementation="eager", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert is_tied(loaded) == tied
    assert loaded.num_parameters() == model.num_parameters()
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, model(**batch).logits)


def test_untied_decoder_has_its_own_weights(tiny_model: Callable):
    tied, untied = (tiny_model(LunaForMaskedLM, tie_word_embeddings=value) for value in (True, False))
    assert untied.num_parameters() - tied.num_parameters() == VOCABULARY * 24
    decoder = untied.get_output_embeddings().weight
    assert (decoder - untied.get_input_embeddings().weight).abs().max() > 0.05


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("size", [60, 53, 40])
def test_resized_vocabulary(tiny_model: Callable, tmp_path: Path, batch: dict, tied: bool, size: int):
    model = tiny_model(LunaForMaskedLM, tie_word_embeddings=tied)
    batch = {name: tensor.clamp(max=39) for name, tensor in batch.items()}
    with torch.no_grad():
        before = model(**batch).logits
    model.resize_token_embeddings(size)
    kept = min(size, VOCABULARY)

    assert model.config.vocab_size == size
    assert is_tied(model) == tied
    assert model.get_input_embeddings().weight.shape == (size, 24)
    assert model.get_input_embeddings().padding_idx == 1
    assert model.get_output_embeddings().bias.shape == (size,)
    outputs = model(**batch)
    assert outputs.logits.shape == (2, 9, size)
    torch.testing.assert_close(outputs.logits[..., :kept], before[..., :kept], **TOLERANCE)
    outputs.loss.backward()
    assert model.get_input_embeddings().weight.grad.shape == (size, 24)

    model.save_pretrained(tmp_path)
    loaded = LunaForMaskedLM.from_pretrained(tmp_path, attn_implementation="eager")
    assert is_tied(loaded) == tied
    torch.testing.assert_close(loaded(**batch).logits, outputs.logits, atol=0, rtol=0)


def test_resized_model_refuses_ids_beyond_its_vocabulary(tiny_model: Callable):
    model = tiny_model(LunaForMaskedLM)
    model.resize_token_embeddings(60)
    model(torch.tensor([[59]]))
    with pytest.raises(ValueError, match="between 0 and 59"):
        model(torch.tensor([[60]]))


def test_decoder_replaced_by_hand_is_used(tiny_model: Callable, batch: dict):
    model = tiny_model(LunaForMaskedLM, tie_word_embeddings=False)
    decoder = nn.Linear(24, VOCABULARY)
    model.set_output_embeddings(decoder)
    assert model.get_output_embeddings() is decoder
    decoder.weight.data.zero_()
    torch.testing.assert_close(model(**batch).logits, decoder.bias.expand(2, 9, -1))
