# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""The heads: what each reads, its loss, its padding, and how it is saved and loaded."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from head_tasks import HEAD_TASKS, head_batch, head_model
from huggingface_hub.errors import StrictDataclassError
from rows import padded, random_rows
from torch import nn

from modeling_luna import (
    LunaForMaskedLM,
    LunaForMultipleChoice,
    LunaForQuestionAnswering,
    LunaForSequenceClassification,
    LunaForTokenClassification,
    LunaModel,
    modeling_luna,
)


TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
POOLINGS = ("cls", "mean", "packed_max", "packed_attention")
# Name, class and configuration of each head.
HEADS = [
    *((f"document-{pooling}", LunaForSequenceClassification, {"classifier_pooling": pooling}) for pooling in POOLINGS),
    *((f"choice-{pooling}", LunaForMultipleChoice, {"classifier_pooling": pooling}) for pooling in POOLINGS),
    ("token", LunaForTokenClassification, {}),
    ("answer", LunaForQuestionAnswering, {}),
]
CHOICES = 3
each_head = pytest.mark.parametrize(("model_class", "fields"), [pytest.param(*head[1:], id=head[0]) for head in HEADS])
each_pooling = pytest.mark.parametrize("pooling", POOLINGS)
each_side = pytest.mark.parametrize("side", ["right", "left"])


@pytest.fixture(scope="module")
def build(tiny_model: Callable) -> Callable:
    def build_head(model_class: type, implementation: str = "eager", **fields):
        return tiny_model(model_class, implementation, **({"num_labels": 4} | fields))

    return build_head


def is_choice(model: nn.Module) -> bool:
    return isinstance(model, LunaForMultipleChoice)


def results(model: nn.Module, input_ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """What a head says of each row, (rows, ...); each is the only choice of its question where there are choices."""
    if is_choice(model):
        mask = None if mask is None else mask.unsqueeze(1)
        return model(input_ids.unsqueeze(1), attention_mask=mask).logits
    outputs = model(input_ids, attention_mask=mask)
    if isinstance(model, LunaForQuestionAnswering):
        return torch.stack((outputs.start_logits, outputs.end_logits), dim=-1)
    return outputs.logits


def is_per_token(model: nn.Module) -> bool:
    return isinstance(model, LunaForTokenClassification | LunaForQuestionAnswering)


def labelled_batch(model: nn.Module) -> dict[str, torch.Tensor]:
    """A batch of three padded rows (of two questions, for choices) with the labels that the head takes."""
    input_ids, mask = padded(random_rows())
    if is_choice(model):
        return {
            "input_ids": torch.stack([input_ids, input_ids.flip(0)]),
            "attention_mask": torch.stack([mask, mask.flip(0)]),
            "labels": torch.tensor([2, 0]),
        }
    batch = {"input_ids": input_ids, "attention_mask": mask}
    if isinstance(model, LunaForQuestionAnswering):
        return batch | {"start_positions": torch.tensor([0, 2, 7]), "end_positions": torch.tensor([2, 5, 10])}
    if isinstance(model, LunaForTokenClassification):
        return batch | {"labels": (input_ids % 4).masked_fill(mask == 0, -100)}
    return batch | {"labels": torch.tensor([3, 0, 1])}


# What each head computes.


@torch.no_grad()
@each_head
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_shapes(build: Callable, model_class: type, fields: dict, implementation: str):
    model = build(model_class, implementation, **fields)
    outputs = model(**labelled_batch(model))
    assert outputs.loss.shape == ()
    if model_class is LunaForQuestionAnswering:
        assert outputs.start_logits.shape == outputs.end_logits.shape == (3, 11)
    else:
        shapes = {LunaForTokenClassification: (3, 11, 4), LunaForMultipleChoice: (2, CHOICES)}
        assert outputs.logits.shape == shapes.get(model_class, (3, 4))
    rows = 6 if model_class is LunaForMultipleChoice else 3
    assert outputs.packed_last_hidden_state.shape == (rows, 6, 24)
    assert outputs.hidden_states is None


def expected_pooling(model: LunaForSequenceClassification, row: torch.Tensor) -> torch.Tensor:
    """The pooled state of one row without padding, (hidden_size,)."""
    states = model.luna(row.unsqueeze(0))
    tokens, slots = states.last_hidden_state[0], states.packed_last_hidden_state[0]
    pooling = model.config.classifier_pooling
    if pooling == "cls":
        return tokens[0]
    if pooling == "mean":
        return sum(tokens) / len(row)
    head = model.classifier
    if pooling == "packed_max":
        return torch.stack([head.in_proj(slot) for slot in slots]).max(dim=0).values

    reference = nn.MultiheadAttention(24, 4, batch_first=True).eval()
    projections = (head.attention.q_proj, head.attention.k_proj, head.attention.v_proj)
    reference.in_proj_weight.data = torch.cat([projection.weight for projection in projections])
    reference.in_proj_bias.data = torch.cat([projection.bias for projection in projections])
    reference.out_proj.load_state_dict(head.attention.out_proj.state_dict())
    context = reference(tokens[:1].unsqueeze(0), slots.unsqueeze(0), slots.unsqueeze(0))[0][0, 0]
    return nn.functional.layer_norm(
        context, (24,), head.attention.layer_norm.weight, head.attention.layer_norm.bias, eps=1e-5
    )


@torch.no_grad()
@each_pooling
@each_side
@pytest.mark.parametrize("dynamic", [True, False])
def test_pooling(build: Callable, pooling: str, side: str, dynamic: bool):
    model = build(LunaForSequenceClassification, classifier_pooling=pooling, dynamic_projection=dynamic)
    rows = random_rows()
    input_ids, mask = padded(rows, side, extra=2)
    logits = model(input_ids, attention_mask=mask).logits
    head = model.classifier
    for index, row in enumerate(rows):
        expected = head.out_proj(head.dense(expected_pooling(model, row)).tanh())
        torch.testing.assert_close(logits[index], expected, **TOLERANCE)
    assert (logits[0] - logits[1]).abs().max() > 0.01


@torch.no_grad()
@torch.no_grad()
@each_pooling
@pytest.mark.parametrize("size", [5, 64])
def test_width_of_the_head(build: Callable, tmp_path: Path, pooling: str, size: int):
    for model_class in (LunaForSequenceClassification, LunaForMultipleChoice):
        model = build(model_class, classifier_pooling=pooling, classifier_hidden_size=size)
        head, row = model.classifier, random_rows()[1]
        assert head.dense.weight.shape == (size, 24) and head.out_proj.weight.shape[1] == size
        expected = head.out_proj(torch.tanh(head.dense(expected_pooling(model, row))))
        torch.testing.assert_close(results(model, row.unsqueeze(0))[0], expected, **TOLERANCE)
        model.save_pretrained(tmp_path)
        loaded, report = AUTO_CLASSES[model_class].from_pretrained(tmp_path, output_loading_info=True)
        assert loaded.config.classifier_hidden_size == size and not any(report.values())


def test_poolings_differ(build: Callable):
    row, inputs = random_rows()[2].unsqueeze(0), []
    for pooling in POOLINGS:
        model = build(LunaForSequenceClassification, classifier_pooling=pooling)
        model.luna.load_state_dict(build(LunaModel).state_dict())
        model.classifier.dense.register_forward_pre_hook(lambda module, states: inputs.append(states[0]))
        model(row)
    pooled = torch.cat(inputs)
    distances = torch.cdist(pooled, pooled)
    assert distances[~torch.eye(len(POOLINGS), dtype=torch.bool)].min() > 0.1


@torch.no_grad()
def test_first_column(build: Callable):
    """With `classifier_reads_first_column` the first column is read, also where it is padding."""
    rows = random_rows()
    right, left = (padded(rows, side, extra=1) for side in ("right", "left"))
    model = build(LunaForSequenceClassification)
    reading_first = build(LunaForSequenceClassification, classifier_reads_first_column=True)
    torch.testing.assert_close(reading_first(*right).logits, model(*right).logits, rtol=0, atol=0)

    inputs = []
    reading_first.classifier.dense.register_forward_pre_hook(lambda module, states: inputs.append(states[0]))
    logits = reading_first(*left).logits
    torch.testing.assert_close(inputs[0], reading_first.luna(*left).last_hidden_state[:, 0], rtol=0, atol=0)
    assert (logits - model(*left).logits).abs().max() > 0.01


@torch.no_grad()
@each_pooling
def test_choices_are_rows(build: Callable, pooling: str):
    """Each choice has the score it would have alone, and choices of other questions do not matter."""
    model = build(LunaForMultipleChoice, classifier_pooling=pooling)
    batch = labelled_batch(model)
    logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    for question in range(2):
        for choice in range(CHOICES):
            row = batch["input_ids"][question, choice][batch["attention_mask"][question, choice].bool()]
            alone = model(row.view(1, 1, -1)).logits
            torch.testing.assert_close(logits[question, choice], alone[0, 0], **TOLERANCE)


@torch.no_grad()
@each_head
def test_inputs_embeds_equal_input_ids(build: Callable, model_class: type, fields: dict):
    model = build(model_class, **fields)
    batch = labelled_batch(model)
    expected = model(**batch)
    embeddings = model.get_input_embeddings()(batch.pop("input_ids"))
    result = model(inputs_embeds=embeddings, **batch)
    for name, value in expected.items():
        assert torch.equal(result[name], value), name


# Padding.


@torch.no_grad()
@each_head
@each_side
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_row_alone_equals_row_in_a_batch(
    build: Callable, model_class: type, fields: dict, side: str, implementation: str
):
    model = build(model_class, implementation, **fields)
    rows = random_rows()
    input_ids, mask = padded(rows, side, extra=3)
    batch = results(model, input_ids, mask)
    for index, row in enumerate(rows):
        alone = results(model, row.unsqueeze(0))[0]
        result = batch[index][mask[index].bool()] if is_per_token(model) else batch[index]
        torch.testing.assert_close(result, alone, **TOLERANCE)


@each_head
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("dynamic", [True, False])
def test_fully_masked_row_is_finite_and_harmless(
    build: Callable, model_class: type, fields: dict, implementation: str, dynamic: bool
):
    model = build(model_class, implementation, dynamic_projection=dynamic, **fields)
    batch = labelled_batch(model)
    with torch.no_grad():
        expected = results(model, batch["input_ids"].view(-1, 11)[:1], batch["attention_mask"].view(-1, 11)[:1])
    batch["attention_mask"].view(-1, 11)[1] = 0
    outputs = model(**batch)
    result = results(model, batch["input_ids"].view(-1, 11)[:2], batch["attention_mask"].view(-1, 11)[:2])
    assert result.isfinite().all()
    torch.testing.assert_close(result[:1], expected, **TOLERANCE)
    assert outputs.loss.isfinite()
    outputs.loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name


@torch.no_grad()
@each_side
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_no_answer_in_padding(build: Callable, side: str, dtype: torch.dtype):
    model = build(LunaForQuestionAnswering).to(dtype)
    input_ids, mask = padded(random_rows(), side, extra=1)
    outputs = model(input_ids, attention_mask=mask)
    for logits in (outputs.start_logits, outputs.end_logits):
        assert logits.dtype == dtype
        assert logits[mask == 0].eq(torch.finfo(dtype).min).all()
        assert logits[mask == 1].abs().max() < 100
    assert (outputs.start_logits - outputs.end_logits)[mask == 1].abs().max() > 0.01


# Losses.


def cross_entropy_by_hand(logits: torch.Tensor, labels: list[int]) -> torch.Tensor:
    """The sum of the cross entropies of (rows, classes)."""
    return sum(row.exp().sum().log() - row[label] for row, label in zip(logits, labels, strict=True))


@torch.no_grad()
def test_loss_of_one_class_a_document(build: Callable):
    model = build(LunaForSequenceClassification)
    outputs = model(**labelled_batch(model))
    torch.testing.assert_close(outputs.loss, cross_entropy_by_hand(outputs.logits, [3, 0, 1]) / 3)


@torch.no_grad()
@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_loss_of_a_number(build: Callable, shape: tuple[int, ...]):
    model = build(LunaForSequenceClassification, num_labels=1)
    input_ids, mask = padded(random_rows())
    labels = torch.tensor([0.5, -2.0, 3.25])
    outputs = model(input_ids, attention_mask=mask, labels=labels.view(shape))
    assert outputs.logits.shape == (3, 1)
    errors = outputs.logits[:, 0] - labels
    torch.testing.assert_close(outputs.loss, (errors[0] ** 2 + errors[1] ** 2 + errors[2] ** 2) / 3)


@torch.no_grad()
def test_loss_of_one_number_for_one_document(build: Callable):
    model = build(LunaForSequenceClassification, num_labels=1)
    outputs = model(random_rows()[0].unsqueeze(0), labels=torch.tensor([2.0]))
    torch.testing.assert_close(outputs.loss, (outputs.logits[0, 0] - 2.0) ** 2)


@torch.no_grad()
def test_loss_of_several_numbers(build: Callable):
    model = build(LunaForSequenceClassification, num_labels=2, problem_type="regression")
    input_ids, mask = padded(random_rows())
    labels = torch.tensor([[0.5, 1.0], [-2.0, 0.0], [3.0, 4.0]])
    outputs = model(input_ids, attention_mask=mask, labels=labels)
    torch.testing.assert_close(outputs.loss, (outputs.logits - labels).square().sum() / 6)


@torch.no_grad()
def test_loss_of_several_classes_a_document(build: Callable):
    model = build(LunaForSequenceClassification)
    input_ids, mask = padded(random_rows())
    labels = torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]])
    outputs = model(input_ids, attention_mask=mask, labels=labels)
    probabilities = torch.where(labels == 1, outputs.logits, -outputs.logits).sigmoid()
    torch.testing.assert_close(outputs.loss, -probabilities.log().sum() / 12)


@torch.no_grad()
def test_loss_of_labelled_tokens_alone(build: Callable):
    model = build(LunaForTokenClassification)
    input_ids, mask = padded(random_rows())
    labels = torch.full_like(input_ids, -100)
    labels[0, 1], labels[2, 0], labels[2, 10] = 3, 0, 2
    outputs = model(input_ids, attention_mask=mask, labels=labels)
    logits = torch.stack([outputs.logits[0, 1], outputs.logits[2, 0], outputs.logits[2, 10]])
    torch.testing.assert_close(outputs.loss, cross_entropy_by_hand(logits, [3, 0, 2]) / 3)


@torch.no_grad()
def test_loss_of_answers(build: Callable):
    model = build(LunaForQuestionAnswering)
    rows = random_rows()
    input_ids, mask = padded(rows)
    outputs = model(
        input_ids,
        attention_mask=mask,
        start_positions=torch.tensor([0, 11, 7]),  # the second answer was cut off
        end_positions=torch.tensor([[2], [40], [10]]),
    )
    losses = []
    for logits, positions in ((outputs.start_logits, {0: 0, 2: 7}), (outputs.end_logits, {0: 2, 2: 10})):
        of_tokens = [(logits[row, : len(rows[row])], position) for row, position in positions.items()]
        losses.append(sum(cross_entropy_by_hand(token.unsqueeze(0), [position]) for token, position in of_tokens) / 2)
    torch.testing.assert_close(outputs.loss, sum(losses) / 2)


no_token = pytest.mark.parametrize("position", [6, -1, -100, 13, 1000])  # 6 is padding in the first two rows


@torch.no_grad()
@each_side
@no_token
def test_answer_where_no_token_is(build: Callable, side: str, position: int):
    model = build(LunaForQuestionAnswering)
    input_ids, mask = padded(random_rows(), side, extra=2)
    starts, ends = torch.tensor([position, position, 4]), torch.tensor([position, position, 8])
    outputs = model(input_ids, attention_mask=mask, start_positions=starts, end_positions=ends)
    start_loss = cross_entropy_by_hand(outputs.start_logits[2:], [4])
    end_loss = cross_entropy_by_hand(outputs.end_logits[2:], [8])
    torch.testing.assert_close(outputs.loss, (start_loss + end_loss) / 2)


@no_token
@pytest.mark.parametrize("num_items", [None, 2])
def test_no_answer_at_all(build: Callable, position: int, num_items: int | None):
    model = build(LunaForQuestionAnswering).train()
    input_ids, mask = padded(random_rows((3, 6)), extra=7)
    answers = torch.full((2,), position)
    outputs = model(
        input_ids, attention_mask=mask, start_positions=answers, end_positions=answers, num_items_in_batch=num_items
    )
    outputs.loss.backward()
    assert outputs.loss == 0
    for name, parameter in model.named_parameters():
        assert parameter.grad.eq(0).all(), name


@torch.no_grad()
def test_loss_of_choices(build: Callable):
    model = build(LunaForMultipleChoice)
    outputs = model(**labelled_batch(model))
    torch.testing.assert_close(outputs.loss, cross_entropy_by_hand(outputs.logits, [2, 0]) / 2)


LOSSES = {
    "document": (LunaForSequenceClassification, {}, None),
    "regression": (LunaForSequenceClassification, {"num_labels": 1}, torch.tensor([0.5, -2.0, 3.0])),
    "regressions": (
        LunaForSequenceClassification,
        {"num_labels": 2, "problem_type": "regression"},
        torch.tensor([[0.5, 1.0], [-2.0, 0.0], [3.0, 4.0]]),
    ),
    "multi-label": (LunaForSequenceClassification, {"num_labels": 2}, torch.eye(3)[:, :2]),
    "token": (LunaForTokenClassification, {}, None),
    "answer": (LunaForQuestionAnswering, {}, None),
    "choice": (LunaForMultipleChoice, {}, None),
}


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("case", LOSSES)
def test_num_items_in_batch_divides_the_sum(build: Callable, case: str, as_tensor: bool):
    """Micro-batches of different sizes add up to the loss, and the gradients, of the whole batch."""
    model_class, fields, labels = LOSSES[case]
    model = build(model_class, **fields)
    batch = labelled_batch(model)
    if labels is not None:
        batch["labels"] = labels
    outputs = model(**batch)
    outputs.loss.backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()

    key = "start_positions" if case == "answer" else "labels"
    num_items = batch[key].ne(-100).sum()
    assert int(num_items) > 0
    total = 0.0
    for part in (slice(0, 1), slice(1, None)):
        micro_batch = {name: value[part] for name, value in batch.items()}
        loss = model(**micro_batch, num_items_in_batch=num_items if as_tensor else int(num_items)).loss
        loss.backward()
        total += loss.item()
    assert total == pytest.approx(outputs.loss.item(), rel=1e-5)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    torch.testing.assert_close(gradients, expected, atol=1e-5, rtol=1e-4)


each_loss = pytest.mark.parametrize("case", [*LOSSES, "masked-lm", "masked-lm-sparse"])


def loss_case(build: Callable, case: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A model with a batch whose labels are all there."""
    if case.startswith("masked-lm"):
        model = build(LunaForMaskedLM, sparse_prediction=case.endswith("sparse"))
        input_ids = torch.stack([row[:3] for row in random_rows()])
        return model, {"input_ids": input_ids, "labels": (input_ids + 1) % model.config.vocab_size}
    model_class, fields, labels = LOSSES[case]
    model = build(model_class, **fields)
    batch = labelled_batch(model)
    if labels is not None:
        batch["labels"] = labels.clone()
    elif case == "token":
        batch["labels"] = batch["input_ids"] % 4
    return model, batch


def forget(batch: dict[str, torch.Tensor], rows: slice) -> dict[str, torch.Tensor]:
    """The batch with no label in these rows."""
    batch = {name: tensor.clone() for name, tensor in batch.items()}
    for name in {"labels", "start_positions", "end_positions"} & set(batch):
        batch[name][rows] = -100
    return batch


@each_loss
@pytest.mark.parametrize("as_in_the_trainer", [False, True])
def test_missing_label_counts_for_nothing(build: Callable, case: str, as_in_the_trainer: bool):
    model, batch = loss_case(build, case)
    missing = forget(batch, slice(1, None))
    num_items = {}
    if as_in_the_trainer:
        num_items["num_items_in_batch"] = missing.get("labels", missing.get("start_positions")).ne(-100).sum()
    results = []
    for rows in (missing | num_items, {name: tensor[:1] for name, tensor in batch.items()}):
        loss = model(**rows).loss
        loss.backward()
        results.append((loss, {name: parameter.grad for name, parameter in model.named_parameters()}))
        model.zero_grad()
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("case", ["regressions", "multi-label"])
def test_one_of_the_labels_of_a_document_is_missing(build: Callable, case: str):
    model, batch = loss_case(build, case)
    batch["labels"][0, 1] = -100
    logits, labels = model(**batch).logits, batch["labels"]
    losses = (logits - labels).square() if case == "regressions" else logits.exp().log1p() - logits * labels
    expected = (losses.sum() - losses[0, 1]) / 5
    torch.testing.assert_close(model(**batch).loss, expected, **TOLERANCE)


@each_loss
@pytest.mark.parametrize("num_items", [None, 0, torch.tensor(0), 5])
def test_no_label_at_all(build: Callable, case: str, num_items: int | torch.Tensor | None):
    model, batch = loss_case(build, case)
    loss = model(**forget(batch, slice(None)), num_items_in_batch=num_items).loss
    loss.backward()
    assert loss == 0
    for name, parameter in model.named_parameters():
        assert parameter.grad.eq(0).all(), name


@pytest.mark.parametrize(
    ("problem", "num_labels", "labels"),
    [("regression", 1, [1, 0, 5]), ("multi_label_classification", 2, [[1, 0], [0, 0], [1, 1]])],
)
def test_numbers_may_be_integers(build: Callable, problem: str, num_labels: int, labels: list):
    model = build(LunaForSequenceClassification, num_labels=num_labels, problem_type=problem)
    results = []
    for dtype in (torch.long, torch.float):
        loss = model(**(labelled_batch(model) | {"labels": torch.tensor(labels, dtype=dtype)})).loss
        loss.backward()
        results.append(loss)
    assert torch.equal(*results)


@pytest.mark.parametrize("labels", [torch.zeros(3), torch.zeros(2, 3), torch.zeros(3, 1)])
def test_numbers_of_another_shape_are_refused(build: Callable, labels: torch.Tensor):
    model = build(LunaForSequenceClassification, num_labels=2, problem_type="regression")
    with pytest.raises(ValueError, match=r"labels must have the shape \(documents, num_labels\) = \(3, 2\), not"):
        model(**(labelled_batch(model) | {"labels": labels}))


@torch.no_grad()
@pytest.mark.parametrize("case", LOSSES)
def test_loss_in_other_dtypes(build: Callable, case: str):
    """In double precision it stays there; in half precision it has the resolution of float32."""
    for dtype, loss_dtype in ((torch.float64, torch.float64), (torch.bfloat16, torch.float32)):
        model, batch = loss_case(build, case)
        assert model.to(dtype)(**batch).loss.dtype == loss_dtype


@torch.no_grad()
@each_head
def test_no_loss_without_labels(build: Callable, model_class: type, fields: dict):
    model = build(model_class, **fields)
    batch = labelled_batch(model)
    labels = {name: batch.pop(name) for name in ("labels", "start_positions", "end_positions") if name in batch}
    assert labels
    assert model(**batch).loss is None
    if "start_positions" in labels:
        assert model(**batch, start_positions=labels["start_positions"]).loss is None


@each_head
def test_every_parameter_has_a_gradient(build: Callable, model_class: type, fields: dict):
    model = build(model_class, **fields).train()
    model(**labelled_batch(model)).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        if not name.startswith("luna.") and name.endswith("weight"):  # a softmax does not see every bias
            assert parameter.grad.abs().max() > 1e-4, name


# Dropout, activation and the words of the configuration.


@each_head
def test_head_dropout_acts_in_training_alone(build: Callable, model_class: type, fields: dict):
    reference = results(build(model_class, **fields), *padded(random_rows()))
    model = build(model_class, classifier_dropout=0.5, **fields)
    torch.testing.assert_close(results(model, *padded(random_rows())), reference, rtol=0, atol=0)

    torch.manual_seed(0)
    changed = (results(model.train(), *padded(random_rows())) - reference).abs().max() > 1e-3
    assert changed == (model_class is not LunaForQuestionAnswering), "as in BERT, no dropout before this head"


@each_head
@pytest.mark.parametrize(("given", "expected"), [(None, 0.25), (0.0, 0.0), (0.5, 0.5)])
def test_rate_of_head_dropout(build: Callable, model_class: type, fields: dict, given: float | None, expected: float):
    model = build(model_class, hidden_dropout_prob=0.25, classifier_dropout=given, **fields)
    rates = {
        module.p
        for name, module in model.named_modules()
        if isinstance(module, nn.Dropout) and not name.startswith("luna.")
    }
    assert rates == (set() if model_class is LunaForQuestionAnswering else {expected})


@torch.no_grad()
@pytest.mark.parametrize(("activation", "function"), [("relu", torch.relu), ("gelu", nn.functional.gelu)])
def test_classifier_activation(build: Callable, activation: str, function: Callable):
    model = build(LunaForSequenceClassification, classifier_activation=activation)
    row = random_rows()[1]
    head = model.classifier
    expected = head.out_proj(function(head.dense(expected_pooling(model, row))))
    torch.testing.assert_close(model(row.unsqueeze(0)).logits[0], expected, **TOLERANCE)


@pytest.mark.parametrize("model_class", [LunaForSequenceClassification, LunaForTokenClassification])
def test_labels_of_the_configuration(tiny_model: Callable, tmp_path: Path, model_class: type):
    names = {0: "earth", 1: "moon", 2: "sun"}
    model = tiny_model(model_class, id2label=names, label2id={name: i for i, name in names.items()})
    assert model.num_labels == 3
    assert results(model, random_rows()[0].unsqueeze(0)).shape[-1] == 3
    model.save_pretrained(tmp_path)
    loaded = model_class.from_pretrained(tmp_path).config
    assert loaded.id2label == names
    assert loaded.label2id["sun"] == 2


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("classifier_pooling", "classifier_pooling.*'cls', 'mean', 'packed_max', 'packed_attention'.*nonsense"),
        ("classifier_activation", "classifier_activation 'nonsense': choose one of .*'relu'"),
    ],
)
def test_unknown_setting_is_told_with_what_there_is(tiny_config: Callable, field: str, message: str):
    with pytest.raises(StrictDataclassError, match=rf"(?s){message}"):
        tiny_config(**{field: "nonsense"})


# Saving and loading.


AUTO_CLASSES = {
    LunaForSequenceClassification: transformers.AutoModelForSequenceClassification,
    LunaForMultipleChoice: transformers.AutoModelForMultipleChoice,
    LunaForTokenClassification: transformers.AutoModelForTokenClassification,
    LunaForQuestionAnswering: transformers.AutoModelForQuestionAnswering,
}


@torch.no_grad()
@each_head
def test_round_trip_through_the_auto_class(build: Callable, tmp_path: Path, model_class: type, fields: dict):
    model = build(model_class, **fields)
    model.save_pretrained(tmp_path)
    loaded, report = AUTO_CLASSES[model_class].from_pretrained(
        tmp_path, attn_implementation="eager", output_loading_info=True
    )
    assert type(loaded) is model_class
    assert not any(report.values())
    batch = padded(random_rows())
    torch.testing.assert_close(results(loaded, *batch), results(model, *batch), **TOLERANCE)


@each_head
def test_only_the_head_is_new_on_a_masked_lm(tiny_model: Callable, tmp_path: Path, model_class: type, fields: dict):
    masked_lm = tiny_model(LunaForMaskedLM)
    masked_lm.save_pretrained(tmp_path)
    torch.manual_seed(0)
    model, report = model_class.from_pretrained(tmp_path, output_loading_info=True, **fields)
    head = {name for name in model.state_dict() if not name.startswith("luna.")}
    assert head
    assert set(report["missing_keys"]) == head
    assert {name.split(".")[0] for name in report["unexpected_keys"]} == {"lm_head"}
    assert not report["mismatched_keys"]
    encoder = masked_lm.luna.state_dict()
    assert all(torch.equal(tensor, encoder[name]) for name, tensor in model.luna.state_dict().items())
    for name in head:
        parameter = model.get_parameter(name)
        if name.endswith("bias"):
            assert parameter.eq(0).all(), name
        elif "layer_norm" in name:
            assert parameter.eq(1).all(), name
        else:
            # Up to four standard deviations of the mean absolute value of a normal distribution.
            expected, count = 0.02 * math.sqrt(2 / math.pi), parameter.numel()
            assert abs(parameter.abs().mean().item() - expected) < 4 * 0.02 * 0.603 / math.sqrt(count), name


@pytest.mark.parametrize("task", HEAD_TASKS)
def test_a_batch_is_laid_out_once(task: str, monkeypatch: pytest.MonkeyPatch):
    layouts = []
    lay_out = modeling_luna.lay_out_batch
    monkeypatch.setattr(
        modeling_luna, "lay_out_batch", lambda *args, **kwargs: layouts.append(0) or lay_out(*args, **kwargs)
    )
    head_model(task)(**head_batch(task, 0, 3))
    assert len(layouts) == 1
