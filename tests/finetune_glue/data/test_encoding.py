"""From text to batches: token ids, truncation, choices, which rows share a batch, padding."""

import dataclasses

import datasets
import numpy as np
import pytest
import torch
from tiny_masked_models import build_wordpiece, train_bpe
from transformers import PreTrainedTokenizerBase

from common.errors import UserError
from finetune_glue.data.encoding import EncodedRows, encode
from finetune_glue.data.task_data import TaskData
from finetune_glue.data.tasks import TASKS, Task
from finetune_glue.training.batches import BatchPlan, Collator, TrainingBatches, padding_share
from finetune_glue.training.metrics import IGNORED


WORDS = ("the", "cat", "sees", "a", "red", "house")
CHOICE = dataclasses.replace(
    TASKS["rte"],
    name="reading",
    problem="multiple_choice",
    text_columns=("article", "question"),
    choice_columns=("choice0", "choice1", "choice2"),
    labels=("A", "B", "C"),
    metrics=("accuracy",),
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_bpe([" ".join(WORDS)] * 5)


def data(task: Task, **columns: list) -> TaskData:
    columns.setdefault("label", [0] * len(columns[task.text_columns[0]]))
    return TaskData(task, {"train": datasets.Dataset.from_dict(columns)}, "here")


def ids(rows: EncodedRows, row: int, choice: int = 0) -> list[int]:
    return rows[row].columns["input_ids"][choice].tolist()


def test_single_sentences_and_pairs(tokenizer: PreTrainedTokenizerBase):
    sentences = ["the cat", "a red house sees the cat"]
    rows = encode(data(TASKS["cola"], sentence=sentences, label=[0, 1]), "train", tokenizer, 64, 300)
    assert [ids(rows, row) for row in range(2)] == [tokenizer(text)["input_ids"] for text in sentences]
    assert [rows[row].label for row in range(2)] == [0, 1]
    assert rows.lengths.tolist() == [len(ids(rows, row)) for row in range(2)]

    pairs = encode(data(TASKS["rte"], sentence1=sentences, sentence2=sentences[::-1]), "train", tokenizer, 64, 300)
    assert ids(pairs, 0) == tokenizer(*sentences)["input_ids"]
    assert (pairs.truncated, len(pairs)) == (0, 2)


def test_segments_of_bert():
    tokenizer = build_wordpiece([" ".join(WORDS)])
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    rows = encode(data(TASKS["rte"], sentence1=["the cat"], sentence2=["a house"]), "train", tokenizer, 64, 300)
    assert set(rows.columns) == {"input_ids", "token_type_ids"}
    assert rows[0].columns["token_type_ids"][0].tolist() == tokenizer("the cat", "a house")["token_type_ids"]


def test_words_that_look_like_special_tokens_are_words(tokenizer: PreTrainedTokenizerBase):
    rows = encode(data(TASKS["cola"], sentence=["the </s> cat"]), "train", tokenizer, 64, 300)
    assert ids(rows, 0).count(tokenizer.eos_token_id) == 1


def test_truncation_is_counted_and_takes_the_longer_text(tokenizer: PreTrainedTokenizerBase):
    long, short = " ".join(WORDS * 4), "the cat"
    texts = {"sentence1": [long, short, short, short], "sentence2": [short, long, short, long]}
    rows = encode(data(TASKS["rte"], **texts), "train", tokenizer, 20, 300)
    assert rows.truncated == 3
    assert rows.lengths.tolist() == [20, 20, len(ids(rows, 2)), 20] and len(ids(rows, 2)) < 20
    for row, text in ((0, ids(rows, 0)), (3, ids(rows, 3))):
        assert short in tokenizer.decode(text, skip_special_tokens=True), row


def test_each_choice_is_a_sequence(tokenizer: PreTrainedTokenizerBase):
    """In the gap of the question or behind it; a row is cut when one of its choices is."""
    texts = {
        "article": ["the cat sees", " ".join(WORDS * 4)],
        "question": ["a _ sees", "the cat"],
        "choice0": ["house", "red"],
        "choice1": ["cat", "a"],
        "choice2": ["red red red house", "the"],
        "label": [2, 0],
    }
    rows = encode(data(CHOICE, **texts), "train", tokenizer, 24, 300)
    assert (len(rows), rows.choices, rows.truncated) == (2, 3, 1)
    assert ids(rows, 0, 1) == tokenizer("the cat sees", "a cat sees")["input_ids"]
    assert (
        ids(rows, 1, 2) == tokenizer(texts["article"][1], "the cat the", truncation=True, max_length=24)["input_ids"]
    )
    assert rows.lengths.tolist() == [len(ids(rows, 0, 2)), 24]

    batch = collate(rows, [0, 1])
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, 3, 24)
    assert batch["labels"].tolist() == [2, 0]
    assert batch["input_ids"][0, 1, : len(ids(rows, 0, 1))].tolist() == ids(rows, 0, 1)


def test_a_token_that_the_model_does_not_embed(tokenizer: PreTrainedTokenizerBase):
    rows = data(TASKS["cola"], sentence=["the cat", "a red house"])
    largest = max(tokenizer("a red house")["input_ids"])
    encode(rows, "train", tokenizer, 64, largest + 1)
    token = tokenizer.convert_ids_to_tokens(largest)
    with pytest.raises(UserError, match=rf"cola, train, row 1: the token '{token}' .* embeds {largest} tokens"):
        encode(rows, "train", tokenizer, 64, largest)


def rows_of(lengths: list[int], labels: np.ndarray | None = None) -> EncodedRows:
    """Row r has the token r + 1 again and again."""
    tokens = np.repeat(np.arange(1, len(lengths) + 1, dtype=np.int32), lengths)
    return EncodedRows({"input_ids": tokens}, np.cumsum([0, *lengths]), 1, labels, 0)


def collate(rows: EncodedRows, which: list[int], length: int | None = None) -> dict[str, torch.Tensor]:
    return Collator({"input_ids": 0}, ("input_ids", "attention_mask", "labels"), length)([rows[row] for row in which])


def test_padding_goes_to_the_longest_row_of_the_batch():
    rows = rows_of([2, 3, 5], np.array([1, 0, 1]))
    batch = collate(rows, [0, 1])
    assert batch["input_ids"].tolist() == [[1, 1, 0], [2, 2, 2]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch["labels"].tolist() == [1, 0]
    assert collate(rows, [~1, 2])["labels"].tolist() == [IGNORED, 1]
    assert collate(rows, [~1, 2])["input_ids"][0].tolist() == [2, 2, 2, 0, 0]
    assert collate(rows_of([1]), [0]).keys() == {"input_ids", "attention_mask"}


def test_rows_of_one_length():
    """For Nystromformer: padded to it, with what is added to the attention scores as the mask."""
    batch = collate(rows_of([2, 3]), [0, 1], length=4)
    assert batch["input_ids"].shape == (2, 4)
    mask = batch["attention_mask"]
    assert mask.shape == (2, 1, 1, 4)
    assert (mask[0, 0, 0] < -1e30).tolist() == [False, False, True, True]


LENGTHS = np.random.default_rng(0).integers(3, 60, size=230)


@pytest.mark.parametrize("grouped", [False, True])
def test_each_epoch_has_each_row_once_in_another_order(grouped: bool):
    batches = TrainingBatches(LENGTHS, BatchPlan(16), seed=3, group_by_length=grouped)
    first, second = list(batches), list(batches)
    assert len(first) == len(batches) == batches.steps == 15
    assert sorted(map(len, first)) == [6] + 14 * [16]
    for epoch in (first, second):
        assert sorted(row for batch in epoch for row in batch) == list(range(len(LENGTHS)))
    assert first != second
    assert first == list(TrainingBatches(LENGTHS, BatchPlan(16), seed=3, group_by_length=grouped))
    assert first != list(TrainingBatches(LENGTHS, BatchPlan(16), seed=4, group_by_length=grouped))


def test_grouped_rows_have_like_lengths_in_no_order_of_length():
    batches = list(TrainingBatches(LENGTHS, BatchPlan(10), seed=0, group_by_length=True))
    assert max(np.ptp(LENGTHS[batch]) for batch in batches) < 10
    means = [LENGTHS[batch].mean() for batch in batches]
    assert means != sorted(means) and means != sorted(means, reverse=True)


def test_the_incomplete_batch_has_rows_of_all_lengths():
    """Cut off behind the sorted ones, it would have the shortest in each epoch."""
    batches = TrainingBatches(LENGTHS, BatchPlan(16), seed=0, group_by_length=True)
    incomplete = [batch for _ in range(20) for batch in batches if len(batch) < 16]
    assert np.mean([LENGTHS[batch].mean() for batch in incomplete]) == pytest.approx(LENGTHS.mean(), abs=4)


@pytest.mark.parametrize(("processes", "limit"), [(1, 4), (2, None), (2, 3), (3, 2), (8, 1)])
def test_the_rows_of_a_step_do_not_depend_on_how_it_is_shared_out(processes: int, limit: int | None):
    whole = list(TrainingBatches(LENGTHS, BatchPlan(16), 0, True))
    plans = [BatchPlan.of(16, processes, process, limit) for process in range(processes)]
    shared = [list(TrainingBatches(LENGTHS, plan, 0, True)) for plan in plans]
    turns = plans[0].accumulation
    assert {len(batches) for batches in shared} == {turns * len(whole)}
    for step, rows in enumerate(whole):
        parts = [part for batches in shared for part in batches[turns * step : turns * (step + 1)]]
        assert all(0 < len(part) <= (limit or 16) for part in parts)
        assert sorted(row for part in parts for row in part if row >= 0) == sorted(rows)
        if len(rows) >= processes * turns:
            assert min(row for part in parts for row in part) >= 0


def test_fewer_rows_than_processes():
    parts = BatchPlan(4, num_processes=4).parts(np.array([5, 2]))
    assert [part.tolist() for part in parts] == [[5], [2], [~2], [~2]]


def test_padding_share():
    lengths = np.array([1, 4, 1, 4])
    assert padding_share(lengths, BatchPlan(2), 0, True, None) == 0.0
    assert padding_share(lengths, BatchPlan(4), 0, False, None) == pytest.approx(6 / 16)
    assert padding_share(lengths, BatchPlan(4, num_processes=2), 0, True, None) == 0.0
    assert padding_share(lengths, BatchPlan(2), 0, True, 8) == pytest.approx(22 / 32)
    batches = list(TrainingBatches(LENGTHS, BatchPlan(16), 5, True))
    places = sum(len(batch) * LENGTHS[batch].max() for batch in batches)
    grouped = padding_share(LENGTHS, BatchPlan(16), 5, True, None)
    assert grouped == pytest.approx(1 - LENGTHS.sum() / places)
    assert grouped < 0.5 * padding_share(LENGTHS, BatchPlan(16), 5, False, None)
