"""Batches: the same global batch on any number of processes, and each row as often as it should."""

import numpy as np
import pytest
import torch
from packed_rows import END, LENGTH, PAD, START, rows_of_numbers

from common.config.yaml_config import ConfigurationError
from common.labels import IGNORED
from modeling_luna import LunaConfig, LunaForMaskedLM
from pretrain.data.packed_data import PackedRows, RowBatch
from pretrain.steps.batches import (
    BatchPlan,
    BatchSizes,
    EvaluationBatches,
    RowLengths,
    TrainingBatches,
    cut_rows,
    model_arguments,
)
from pretrain.steps.masking import Masking


MASK = 5000


def plan(batch_size: int, processes: int = 1, index: int = 0, micro: int | None = None, **ramp) -> BatchPlan:
    sizes = BatchSizes(batch_size, ramp.get("start", batch_size), ramp.get("ramp_steps", 0))
    return BatchPlan(sizes, processes, index, micro)


@pytest.fixture
def rows() -> PackedRows:
    return rows_of_numbers()


@pytest.fixture
def masking() -> Masking:
    special = np.isin(np.arange(MASK + 1), [START, PAD, END, MASK])
    return Masking(3, 0.15, MASK, np.flatnonzero(~special), special)


def originals(micro_batches: list[dict]) -> np.ndarray:
    """The rows of micro-batches before masking, (rows, length)."""
    labels = torch.cat([batch["labels"] for batch in micro_batches])
    return torch.where(labels != IGNORED, labels, torch.cat([b["input_ids"] for b in micro_batches])).numpy()


def test_batch_sizes_rise_in_multiples_of_the_first():
    sizes = BatchSizes(batch_size=64, start=16, ramp_steps=8)
    rows = [sizes.rows(step) for step in range(10)]
    assert rows == [16, 16, 16, 32, 32, 32, 48, 48, 64, 64]
    assert [sizes.rows_before(step) for step in range(11)] == [sum(rows[:step]) for step in range(11)]
    assert sizes.rows_before(10**9) == sum(rows[:8]) + (10**9 - 8) * 64


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("micro", [None, 1, 3, 4])
@pytest.mark.parametrize("ramp", [{}, {"start": 5, "ramp_steps": 4}])
def test_processes_share_out_the_batch_of_one_process(rows, masking, processes: int, micro: int | None, ramp: dict):
    alone = TrainingBatches(rows, masking, plan(16, **ramp))
    shares = [TrainingBatches(rows, masking, plan(16, processes, i, micro, **ramp)) for i in range(processes)]
    for step in (0, 1, 2, 1000):  # the second one goes over the end of the first epoch
        (whole,) = alone[step]
        parts = [share[step] for share in shares]
        assert len({len(part) for part in parts}) == 1
        sizes = [len(batch["labels"]) for part in parts for batch in part]
        assert min(sizes) > 0 and (
            micro is None or max(sizes) <= micro + (alone.plan.sizes.rows(step) % processes > 0)
        )
        for name in ("input_ids", "labels"):
            assert torch.equal(torch.cat([batch[name] for part in parts for batch in part]), whole[name])


def test_lengths_double_in_stages():
    lengths = RowLengths(max_length=32, start=4, ramp_steps=6)
    assert [lengths.at(step) for step in (*range(8), 10**9)] == [4, 4, 8, 8, 16, 16, 32, 32, 32]
    assert RowLengths(max_length=32, start=32, ramp_steps=0).at(0) == 32


def test_pieces_of_rows_keep_tokens_labels_and_positions(rows, masking):
    whole = TrainingBatches(rows, masking, plan(24))
    ramped = TrainingBatches(rows, masking, plan(24), RowLengths(LENGTH, LENGTH // 4, 2))
    for step, pieces in ((0, 4), (1, 2)):
        (batch,), (cut,) = whole[step], ramped[step]
        assert cut.keys() == batch.keys() | {"position_ids"} and "attention_mask" in cut
        filled = batch["attention_mask"].view(-1, LENGTH // pieces).any(dim=1)
        assert not filled.all()  # the last row of these data has pieces of padding alone
        for name, values in (batch | {"position_ids": torch.arange(LENGTH).repeat(24, 1)}).items():
            assert torch.equal(cut[name], values.view(-1, LENGTH // pieces)[filled]), name
    assert ramped[2][0].keys() == whole[2][0].keys()
    assert all(torch.equal(values, whole[2][0][name]) for name, values in ramped[2][0].items())


def test_a_piece_is_a_row_of_its_own():
    config = LunaConfig(
        vocab_size=MASK, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        projection_length=6, max_position_embeddings=16, initializer_range=0.2,
    )  # fmt: skip
    model = LunaForMaskedLM(config).eval()
    ids = torch.randint(4, 100, (3, 16), generator=torch.Generator().manual_seed(0))
    pieces = cut_rows({"input_ids": ids, "labels": ids}, 4)
    together = model(**pieces).logits
    for number in range(12):
        alone = model(ids.view(12, 1, 4)[number], position_ids=torch.arange(16).view(4, 1, 4)[number % 4]).logits
        torch.testing.assert_close(together[number : number + 1], alone)


def test_batch_of_fewer_rows_than_processes_is_refused():
    with pytest.raises(ConfigurationError, match="A step has 2 rows, too few for 3 processes: raise batch_size"):
        plan(2, processes=3)


def test_boundaries_and_mask_are_given_where_they_matter():
    ids = np.array([[5, 6, 7, 8], [5, 6, 7, PAD]])
    assert set(model_arguments(ids, ids, RowBatch(ids[:1]), PAD)) == {"input_ids", "labels"}
    starts = np.array([[True, False, False, True], [True, True, False, False]])
    arguments = model_arguments(ids, ids, RowBatch(ids, starts), PAD)
    assert arguments["cu_seq_lens_q"].tolist() == [0, 3, 4, 5, 8]
    assert arguments["max_length_q"] == 3  # padding does not count
    assert arguments["attention_mask"].tolist() == [[True] * 4, [True, True, True, False]]


def test_each_epoch_visits_each_row_once_in_another_order(rows, masking):
    batches = TrainingBatches(rows, masking, plan(10))
    seen = np.concatenate([originals(batches[step]) for step in range(12)])  # 120 rows: five epochs of 24
    packed = rows[np.arange(24)].ids
    order = np.array([np.flatnonzero((packed == row).all(axis=1)).item() for row in seen]).reshape(5, 24)
    np.testing.assert_array_equal(np.sort(order, axis=1), np.tile(np.arange(24), (5, 1)))
    assert len(np.unique(order, axis=0)) == 5


def test_row_seen_again_in_a_later_epoch_has_another_mask(rows, masking):
    batches = TrainingBatches(rows, masking, plan(24))
    masks = []
    for step in range(10):
        batch = batches[step]
        (place,) = np.flatnonzero((originals(batch) == rows[np.array([0])].ids).all(axis=1))
        masks.append(tuple((batch[0]["labels"][place] != IGNORED).tolist()))
    assert len(set(masks)) > 5


def test_attention_mask_hides_padding_alone(rows, masking):
    batch = TrainingBatches(rows, masking, plan(24))[0]
    np.testing.assert_array_equal(batch[0]["attention_mask"], originals(batch) != PAD)
    assert (~batch[0]["attention_mask"]).sum() == 6


@pytest.mark.parametrize("max_rows", [None, 7, 1000])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_evaluation_counts_each_row_once_on_any_number_of_processes(
    rows, masking, processes: int, max_rows: int | None
):
    shares = [EvaluationBatches(rows, masking, plan(12, processes, i), max_rows) for i in range(processes)]
    assert len({len(share) for share in shares}) == 1
    batches = [batch for share in shares for batch in share]
    assert {batch["input_ids"].shape for batch in batches} == {(12 // processes, LENGTH)}

    labels = np.concatenate([batch["labels"] for batch in batches])
    inputs = np.concatenate([batch["input_ids"] for batch in batches])
    counted = (labels != IGNORED).any(axis=1)
    restored = np.where(labels != IGNORED, labels, inputs)[counted]
    num_rows = min(max_rows or 24, 24)
    expected_inputs, expected_labels = masking(rows[np.arange(num_rows)].ids, np.arange(num_rows), 0, 1)
    expected = (expected_labels != IGNORED).any(axis=1)
    by_place = np.argsort(restored[:, 1])
    np.testing.assert_array_equal(labels[counted][by_place], expected_labels[expected])
    np.testing.assert_array_equal(inputs[counted][by_place], expected_inputs[expected])


def test_evaluation_masks_stay_the_same(rows, masking):
    batches = EvaluationBatches(rows, masking, plan(8), None)
    assert all(
        torch.equal(first["input_ids"], second["input_ids"]) for first, second in zip(batches, batches, strict=True)
    )
