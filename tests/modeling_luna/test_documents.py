# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""Several documents in one row give what the padded batch gives, in every attention implementation."""

import re
from collections.abc import Callable

import pytest
import torch
from flash_emulation import use_flash_attention
from rows import SLOTS, VARIANTS, padded, random_rows
from transformers import DataCollatorWithFlattening

from modeling_luna import (
    LunaForMaskedLM,
    LunaForMultipleChoice,
    LunaForQuestionAnswering,
    LunaForSequenceClassification,
    LunaForTokenClassification,
    LunaModel,
)


TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
LENGTHS = (3, SLOTS, 11, 1, 9)
POOLINGS = ("cls", "mean", "packed_max", "packed_attention")
IMPLEMENTATIONS = ("eager", "sdpa", "flash_attention_2")


@pytest.fixture
def build(tiny_model: Callable, monkeypatch: pytest.MonkeyPatch) -> Callable:
    def build_with(implementation: str, model_class: type = LunaModel, **fields):
        if implementation != "flash_attention_2":
            return tiny_model(model_class, implementation, **fields)
        model = tiny_model(model_class, **fields)
        use_flash_attention(model, monkeypatch)
        return model

    return build_with


def in_one_row(rows: list[torch.Tensor], form: str) -> dict:
    """The documents one after another, with their boundaries in one of the forms that Transformers knows."""
    if form == "collator":
        collator = DataCollatorWithFlattening(return_flash_attn_kwargs=True)
        batch = collator([{"input_ids": row.tolist()} for row in rows])
        del batch["labels"]
        return dict(batch)
    inputs = {"input_ids": torch.cat(rows).unsqueeze(0)}
    lengths = [len(row) for row in rows]
    if form == "position_ids":
        inputs["position_ids"] = torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0)
    else:
        inputs["cu_seq_lens_q"] = torch.tensor([0, *lengths]).cumsum(0)
    return inputs


def in_two_rows(rows: list[torch.Tensor]) -> dict:
    """Some documents in each of two rows, with padding before, between and after them."""
    width = 24
    input_ids, mask = torch.full((2, width), 1), torch.zeros(2, width, dtype=torch.long)
    position_ids = torch.zeros(2, width, dtype=torch.long)
    for row, start, document in zip((0, 0, 1, 1, 1), (2, 5, 0, 11, 13), rows, strict=True):
        place = (row, slice(start, start + len(document)))
        input_ids[place], mask[place], position_ids[place] = document, 1, torch.arange(len(document))
    return {"input_ids": input_ids, "attention_mask": mask, "position_ids": position_ids}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("form", ["position_ids", "cu_seq_lens", "collator", "two rows"])
def test_states_and_gradients_equal_those_of_the_padded_batch(
    build: Callable, variant: str, form: str, implementation: str
):
    rows = random_rows(LENGTHS)
    input_ids, mask = padded(rows)
    batch = in_two_rows(rows) if form == "two rows" else in_one_row(rows, form)
    used = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()

    results = []
    for run_implementation, inputs, tokens in (
        ("eager", {"input_ids": input_ids, "attention_mask": mask}, mask.bool()),
        (implementation, batch, used),
    ):
        model = build(run_implementation, **VARIANTS[variant])
        outputs = model(**inputs, output_hidden_states=True, output_packed_hidden_states=True)
        slots = torch.arange(SLOTS) < mask.sum(1, keepdim=True)
        if not model.config.dynamic_projection:
            slots = torch.ones_like(slots)
        states = [hidden[tokens] for hidden in outputs.hidden_states]
        packed = [state[slots] for state in (*outputs.packed_hidden_states, outputs.packed_last_hidden_state)]
        (states[-1].pow(3).mean() + packed[-1].pow(3).mean()).backward()
        results.append((states, packed, [parameter.grad for parameter in model.parameters()]))
        assert outputs.packed_last_hidden_state.shape == (len(rows), SLOTS, 24)
        assert outputs.last_hidden_state.shape[:2] == inputs["input_ids"].shape
    torch.testing.assert_close(*results, **TOLERANCE)


@pytest.mark.slow  # the kernel is compiled for each shape
@torch.no_grad()
@pytest.mark.parametrize(("variant", "form"), [("default", "position_ids"), ("all", "two rows")])
def test_flex_attention(build: Callable, variant: str, form: str):
    rows = random_rows(LENGTHS)
    batch = in_two_rows(rows) if form == "two rows" else in_one_row(rows, form)
    expected = build("eager", **VARIANTS[variant])(**batch)
    result = build("flex_attention", **VARIANTS[variant])(**batch)
    torch.testing.assert_close(result.last_hidden_state, expected.last_hidden_state, **TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_no_document_sees_another(build: Callable, implementation: str):
    rows = random_rows(LENGTHS)
    model = build(implementation, conv_kernel_size=5)
    before = model(**in_one_row(rows, "position_ids"))
    rows[2] = (rows[2] + 1) % 50 + 3
    after = model(**in_one_row(rows, "position_ids"))
    changed = (after.last_hidden_state != before.last_hidden_state).any(-1).squeeze(0)
    assert changed.tolist() == [i == 2 for i, row in enumerate(rows) for _ in row]
    assert (after.packed_last_hidden_state != before.packed_last_hidden_state).flatten(1).any(1).tolist() == [
        i == 2 for i in range(len(rows))
    ]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("form", ["position_ids", "collator", "two rows"])
def test_classification_gives_one_result_a_document(build: Callable, pooling: str, form: str, implementation: str):
    rows = random_rows(LENGTHS)
    input_ids, mask = padded(rows)
    batch = in_two_rows(rows) if form == "two rows" else in_one_row(rows, form)
    labels = torch.tensor([0, 2, 1, 1, 0])
    results = []
    for run_implementation, inputs in (
        ("eager", {"input_ids": input_ids, "attention_mask": mask}),
        (implementation, batch),
    ):
        model = build(run_implementation, LunaForSequenceClassification, classifier_pooling=pooling, num_labels=3)
        outputs = model(**inputs, labels=labels)
        outputs.loss.backward()
        results.append((outputs.loss, outputs.logits, [parameter.grad for parameter in model.parameters()]))
    torch.testing.assert_close(*results, **TOLERANCE)


@pytest.mark.parametrize("model_class", [LunaForMaskedLM, LunaForTokenClassification])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_heads_for_tokens(build: Callable, model_class: type, implementation: str):
    rows = random_rows(LENGTHS)
    input_ids, mask = padded(rows)
    labels = [row % 2 for row in rows]
    padded_labels, _ = padded(labels, padding_id=-100)
    results = []
    for inputs, targets in (
        ({"input_ids": input_ids, "attention_mask": mask}, padded_labels),
        (in_one_row(rows, "position_ids"), torch.cat(labels).unsqueeze(0)),
    ):
        model = build(implementation, model_class)
        outputs = model(**inputs, labels=targets)
        outputs.loss.backward()
        results.append((outputs.loss, outputs.logits[targets != -100], [p.grad for p in model.parameters()]))
    torch.testing.assert_close(*results, **TOLERANCE)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_question_answering(build: Callable, implementation: str):
    rows = random_rows(LENGTHS)
    input_ids, mask = padded(rows)
    answers = {"start_positions": torch.tensor([0, 1, 7, 0, 2]), "end_positions": torch.tensor([2, 1, 9, 0, 8])}
    model = build(implementation, LunaForQuestionAnswering)
    expected = model(input_ids, attention_mask=mask, **answers)
    result = model(**in_one_row(rows, "position_ids"), **answers)
    assert result.start_logits.shape == (5, 11)
    for name in ("loss", "start_logits", "end_logits"):
        torch.testing.assert_close(result[name], expected[name], **TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("form", ["position_ids", "collator", "two rows"])
def test_answer_outside_its_document(build: Callable, form: str):
    """The fifth token of a document of three, though longer documents have one."""
    rows = random_rows(LENGTHS)
    model = build("eager", LunaForQuestionAnswering)
    starts, ends = torch.tensor([4, 1, -1, 0, 2]), torch.tensor([2, 6, 9, 0, 9])
    batch = in_two_rows(rows) if form == "two rows" else in_one_row(rows, form)
    outputs = model(**batch, start_positions=starts, end_positions=ends)
    start_loss = outputs.start_logits.log_softmax(-1)[[1, 3, 4], [1, 0, 2]].mean()
    end_loss = outputs.end_logits.log_softmax(-1)[[0, 2, 3], [2, 9, 0]].mean()
    torch.testing.assert_close(outputs.loss, -(start_loss + end_loss) / 2)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_choices_as_documents_of_a_row(build: Callable, implementation: str):
    rows = random_rows((3, 9, 7, 5))
    input_ids, mask = padded(rows)
    labels = torch.tensor([1, 0])
    model = build(implementation, LunaForMultipleChoice)
    expected = model(input_ids.view(2, 2, 9), attention_mask=mask.view(2, 2, 9), labels=labels)
    assert expected.logits.shape == (2, 2)
    result = model(
        torch.stack((torch.cat(rows[:2]), torch.cat(rows[2:]))).unsqueeze(1),
        position_ids=torch.tensor([[*range(3), *range(9)], [*range(7), *range(5)]]).unsqueeze(1),
        labels=labels,
    )
    torch.testing.assert_close(result.logits, expected.logits, **TOLERANCE)
    torch.testing.assert_close(result.loss, expected.loss, **TOLERANCE)


# Boundaries of documents in two rows of six tokens, one row a question.
@torch.no_grad()
@pytest.mark.parametrize(
    ("boundaries", "found"),
    [
        ([0, 6, 7, 9, 12], [1, 3]),
        ([0, 2, 4, 6, 12], [3, 1]),
        ([0, 1, 6, 12], [2, 1]),
        ([0, 9, 12], [1, 2]),  # a document that two questions share
    ],
)
def test_questions_with_different_numbers_of_choices(tiny_model: Callable, boundaries: list[int], found: list[int]):
    model = tiny_model(LunaForMultipleChoice)
    message = re.escape(f"Each question must have the same number of choices; found {found}.")
    batch = {"input_ids": torch.full((2, 1, 6), 5)}
    with pytest.raises(ValueError, match=message):
        model(**batch, cu_seq_lens_q=torch.tensor(boundaries))
    if 6 in boundaries:
        positions = torch.cat([torch.arange(length) for length in torch.tensor(boundaries).diff()])
        with pytest.raises(ValueError, match=message):
            model(**batch, position_ids=positions.view(2, 1, 6))


@torch.no_grad()
@pytest.mark.parametrize("boundaries", [[0, 2, 6, 6, 12], [0, 2, 6, 10, 12]])
@pytest.mark.parametrize("masked", [False, True])
def test_choice_without_tokens(tiny_model: Callable, boundaries: list[int], masked: bool):
    """A choice that fills up the number, empty or of padding alone, counts as one."""
    model = tiny_model(LunaForMultipleChoice)
    input_ids, mask = torch.arange(5, 17).view(2, 1, 6), torch.ones(2, 1, 6)
    if masked:
        mask[0, 0, 2:] = 0
    logits = model(input_ids, attention_mask=mask, cu_seq_lens_q=torch.tensor(boundaries)).logits
    assert logits.shape == (2, 2)
    torch.testing.assert_close(logits[0, 0], model(input_ids[:1, :, :2]).logits[0, 0], **TOLERANCE)
    if 10 in boundaries:
        torch.testing.assert_close(logits[1, 1], model(input_ids[1:, :, 4:]).logits[0, 0], **TOLERANCE)
    else:
        torch.testing.assert_close(logits[1, 1], model(input_ids[1:]).logits[0, 0], **TOLERANCE)


@torch.no_grad()
def test_attention_maps_have_one_row_a_document(build: Callable):
    rows = random_rows(LENGTHS)
    outputs = build("eager")(**in_one_row(rows, "position_ids"), output_attentions=True, output_pack_attentions=True)
    for unpack, pack in zip(outputs.attentions, outputs.pack_attentions, strict=True):
        assert unpack.shape == (5, 4, 11, SLOTS)
        assert pack.shape == (5, 4, SLOTS, 11)
        for i, length in enumerate(LENGTHS):
            assert (pack[i, :, :, length:] == 0).all()
            assert (unpack[i, :, :, min(SLOTS, length) :] == 0).all()


@torch.no_grad()
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_document_without_tokens_is_finite_and_harmless(build: Callable, implementation: str):
    """As where the list of boundaries is filled up to a fixed length."""
    rows = random_rows(LENGTHS)
    model = build(implementation, conv_kernel_size=3)
    batch = in_one_row(rows, "cu_seq_lens")
    expected = model(**batch)
    batch["cu_seq_lens_q"] = torch.cat((batch["cu_seq_lens_q"], batch["cu_seq_lens_q"][-1:]))
    result = model(**batch)
    torch.testing.assert_close(result.last_hidden_state, expected.last_hidden_state, **TOLERANCE)
    torch.testing.assert_close(result.packed_last_hidden_state[:-1], expected.packed_last_hidden_state, **TOLERANCE)
    assert result.packed_last_hidden_state.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_non_finite_document_spoils_no_other(build: Callable, implementation: str):
    rows = random_rows(LENGTHS)
    model = build(implementation, conv_kernel_size=3)
    batch = in_one_row(rows, "position_ids")
    embeds = model.get_input_embeddings()(batch.pop("input_ids")).clone()
    embeds[0, 3 + SLOTS] = float("nan")
    finite = model(inputs_embeds=embeds, **batch).last_hidden_state.isfinite().all(-1).squeeze(0)
    assert finite.tolist() == [i != 2 for i, row in enumerate(rows) for _ in row]


@torch.no_grad()
def test_rising_positions_are_one_document(build: Callable):
    model = build("sdpa")
    input_ids = torch.arange(5, 14).unsqueeze(0)
    outputs = model(input_ids, position_ids=torch.arange(0, 27, 3).unsqueeze(0))
    assert outputs.packed_last_hidden_state.shape[0] == 1
    expected = model(input_ids.expand(3, -1)).last_hidden_state
    result = model(input_ids.expand(3, -1), position_ids=torch.arange(9).unsqueeze(0)).last_hidden_state
    assert torch.equal(result, expected)


@torch.no_grad()
def test_given_positions_count_beside_boundaries(build: Callable):
    """A document may go on where it was cut."""
    rows = random_rows((5, 4))
    model = build("sdpa")
    position_ids = torch.tensor([[*range(5), *range(20, 24)]])
    result = model(torch.cat(rows).unsqueeze(0), position_ids=position_ids, cu_seq_lens_q=torch.tensor([0, 5, 9]))
    expected = model(rows[1].unsqueeze(0), position_ids=position_ids[:, 5:]).last_hidden_state
    torch.testing.assert_close(result.last_hidden_state[:, 5:], expected, **TOLERANCE)


@torch.no_grad()
def test_a_row_begins_a_document_whatever_its_positions(build: Callable):
    model = build("sdpa")
    input_ids = torch.arange(5, 15).view(2, 5)
    position_ids = torch.tensor([[0, 1, 2, 0, 1], [2, 3, 4, 0, 1]])
    result = model(input_ids, position_ids=position_ids)
    assert result.packed_last_hidden_state.shape[0] == 4
    for row, (start, end) in ((0, (0, 3)), (0, (3, 5)), (1, (0, 3)), (1, (3, 5))):
        place = (slice(row, row + 1), slice(start, end))
        expected = model(input_ids[place], position_ids=position_ids[place]).last_hidden_state
        torch.testing.assert_close(result.last_hidden_state[place], expected, **TOLERANCE)


@torch.no_grad()
def test_boundaries_of_keys_are_those_of_queries(build: Callable):
    model = build("sdpa")
    rows = random_rows((3, 4))
    boundaries = torch.tensor([0, 3, 7], dtype=torch.int32)
    expected = model(**in_one_row(rows, "position_ids")).last_hidden_state
    input_ids = torch.cat(rows).unsqueeze(0)
    result = model(input_ids, cu_seq_lens_k=boundaries, max_length_k=4).last_hidden_state
    torch.testing.assert_close(result, expected, **TOLERANCE)
    with pytest.raises(ValueError, match="max_length_q is 3, but the longest document has 4 tokens"):
        model(input_ids, cu_seq_lens_k=boundaries, max_length_k=3)


@torch.no_grad()
def test_a_longer_max_length_changes_nothing_that_counts(build: Callable):
    rows = random_rows((3, 4))
    model = build("sdpa")
    batch = in_one_row(rows, "cu_seq_lens")
    expected = model(**batch).last_hidden_state
    torch.testing.assert_close(model(**batch, max_length_q=13).last_hidden_state, expected, **TOLERANCE)


@pytest.mark.parametrize(
    "boundaries",
    [[0, 3], [0, 3, 8, 10], [1, 9], [0, 5, 4, 9], [0], [[0, 9]]],
    ids=["short", "long", "start", "falls", "one", "2d"],
)
def test_boundaries_that_do_not_fit(tiny_model: Callable, boundaries: list):
    with pytest.raises(ValueError, match=r"cu_seq_lens_q must rise from 0 to the number of tokens of the batch \(9\)"):
        tiny_model()(torch.arange(5, 14).unsqueeze(0), cu_seq_lens_q=torch.tensor(boundaries))


def test_max_length_that_is_too_small(tiny_model: Callable):
    with pytest.raises(ValueError, match="max_length_q is 4, but the longest document has 5 tokens"):
        tiny_model()(torch.arange(5, 14).unsqueeze(0), cu_seq_lens_q=torch.tensor([0, 5, 9]), max_length_q=4)


def test_number_of_tokens_changes_nothing_and_is_checked(tiny_model: Callable):
    batch = {"input_ids": torch.arange(5, 17).view(2, 6), "attention_mask": torch.ones(2, 6)}
    batch["attention_mask"][0, 4:] = 0
    batch |= {"cu_seq_lens_q": torch.tensor([0, 2, 6, 9, 12]), "max_length_q": 3}
    model = tiny_model()
    expected = model(**batch).last_hidden_state
    assert torch.equal(model(**batch, num_tokens=10).last_hidden_state, expected)
    with pytest.raises(ValueError, match="num_tokens or num_predicted is 9, but the batch has 10"):
        model(**batch, num_tokens=9)


def test_a_document_longer_than_the_positions(tiny_model: Callable):
    input_ids = torch.full((1, 40), 5)
    with pytest.raises(ValueError, match=r"more tokens than max_position_embeddings \(32\)"):
        tiny_model()(input_ids, cu_seq_lens_q=torch.tensor([0, 33, 40]))
    tiny_model()(input_ids, cu_seq_lens_q=torch.tensor([0, 32, 40]))
