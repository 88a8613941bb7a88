"""Packed rows and batches: nothing lost, nothing twice, and the same global batch on any number of processes."""

import numpy as np
import pytest
import torch

from pretrain.masking import IGNORED, Masking
from pretrain.packed_data import BatchPlan, EvaluationBatches, PackedRows, TrainingBatches, permuted


START, PAD, END, MASK = 0, 1, 2, 5000
LENGTH = 12  # <s>, ten tokens, </s>
TOKENS = 234  # 23 rows and 4 tokens
SPLITS_OF_A_BATCH = [(1, 1), (2, 1), (1, 4), (2, 2)]  # processes, accumulation


@pytest.fixture
def rows() -> PackedRows:
    """Rows whose tokens tell their place in the stream."""
    stream = np.arange(10, 10 + TOKENS, dtype=np.uint16)
    return PackedRows(stream, np.array([0, 30, 100, TOKENS]), (START, END), PAD, LENGTH)


@pytest.fixture
def masking() -> Masking:
    special = np.isin(np.arange(MASK + 1), [START, PAD, END, MASK])
    return Masking(3, 0.15, MASK, np.flatnonzero(~special), special)


def originals(batch: dict[str, torch.Tensor]) -> np.ndarray:
    """The rows of a batch before masking, (rows, length)."""
    restored = torch.where(batch["labels"] != IGNORED, batch["labels"], batch["input_ids"])
    return restored.reshape(-1, restored.shape[-1]).numpy()


@pytest.mark.parametrize("size", [*range(1, 20), 63, 64, 65, 255, 257, 1000, 4097, 65536, 65537])
def test_permuted_visits_each_position_once(size: int):
    np.testing.assert_array_equal(np.sort(permuted(np.arange(size), size, seed=1, epoch=2)), np.arange(size))


def test_permutations_differ_by_seed_and_epoch_and_are_random():
    positions = np.arange(20_000)
    first = permuted(positions, 20_000, seed=1, epoch=0)
    np.testing.assert_array_equal(permuted(positions[[7, 3]], 20_000, 1, 0), first[[7, 3]])
    for other in (permuted(positions, 20_000, 1, 1), permuted(positions, 20_000, 2, 0), positions):
        assert (first == other).sum() < 20  # one in 20,000 by chance
        assert abs(np.corrcoef(first, other)[0, 1]) < 0.03
    # Neighbours are sent to places that have nothing to do with each other.
    assert abs(np.corrcoef(first[1:], first[:-1])[0, 1]) < 0.03


def test_permuted_of_a_trillion_rows():
    size = 10**12
    positions = np.concatenate([np.arange(5000), size - 1 - np.arange(5000)])
    result = permuted(positions, size, seed=2**63 - 1, epoch=3)
    assert len(np.unique(result)) == 10_000
    assert result.min() >= 0 and result.max() < size
    assert result.mean() / size == pytest.approx(0.5, abs=0.02)
    assert np.std(result / size) == pytest.approx(12**-0.5, abs=0.02)


def test_rows_reassemble_the_stream(rows: PackedRows):
    assert len(rows) == 24
    packed = rows[np.arange(24)]
    assert packed.shape == (24, LENGTH)
    assert packed.dtype == np.int64
    assert (packed[:, 0] == START).all()
    assert (packed[:-1, -1] == END).all()
    np.testing.assert_array_equal(packed[-1], [START, 240, 241, 242, 243, END, *[PAD] * 6])
    np.testing.assert_array_equal(packed[(packed >= 10)], rows.stream)
    np.testing.assert_array_equal(rows[np.array([5, 2])], packed[[5, 2]])


def test_stream_that_fills_its_last_row_gets_no_other_row():
    stream = np.arange(10, 30, dtype=np.uint16)
    full = PackedRows(stream, np.array([0, 20]), (START, END), PAD, LENGTH)
    assert len(full) == 2
    assert PAD not in full[np.arange(2)]


@pytest.mark.parametrize(("processes", "accumulation"), SPLITS_OF_A_BATCH)
def test_processes_share_out_the_batch_of_one_process(rows, masking, processes: int, accumulation: int):
    alone = TrainingBatches(rows, masking, BatchPlan(16, 1, 1, 0))
    shares = [TrainingBatches(rows, masking, BatchPlan(16, accumulation, processes, i)) for i in range(processes)]
    for step in (0, 1, 2, 1000):  # the second one goes over the end of the first epoch
        whole = alone[step]
        parts = [share[step] for share in shares]
        for name in ("input_ids", "labels", "attention_mask"):
            assert whole[name].shape == (1, 16, LENGTH)
            assert parts[0][name].shape == (accumulation, 16 // processes // accumulation, LENGTH)
            # Micro-batch k of all processes is run at the same time.
            together = torch.stack([part[name] for part in parts], dim=1).reshape(1, 16, LENGTH)
            assert torch.equal(together, whole[name])


def test_each_epoch_visits_each_row_once_in_another_order(rows, masking):
    batches = TrainingBatches(rows, masking, BatchPlan(10, 1, 1, 0))
    seen = np.concatenate([originals(batches[step]) for step in range(12)])  # 120 rows: five epochs of 24
    packed = rows[np.arange(24)]
    order = np.array([np.flatnonzero((packed == row).all(axis=1)).item() for row in seen]).reshape(5, 24)
    np.testing.assert_array_equal(np.sort(order, axis=1), np.tile(np.arange(24), (5, 1)))
    assert len(np.unique(order, axis=0)) == 5


def test_row_seen_again_in_a_later_epoch_has_another_mask(rows, masking):
    batches = TrainingBatches(rows, masking, BatchPlan(24, 1, 1, 0))
    masks = []
    for step in range(10):
        batch = batches[step]
        (place,) = np.flatnonzero((originals(batch) == rows[np.array([0])]).all(axis=1))
        masks.append(tuple((batch["labels"][0, place] != IGNORED).tolist()))
    assert len(set(masks)) > 5


def test_attention_mask_hides_padding_alone(rows, masking):
    batch = TrainingBatches(rows, masking, BatchPlan(24, 1, 1, 0))[0]
    np.testing.assert_array_equal(batch["attention_mask"].reshape(24, LENGTH), originals(batch) != PAD)
    assert (~batch["attention_mask"]).sum() == 6


@pytest.mark.parametrize("max_rows", [None, 7, 1000])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_evaluation_counts_each_row_once_on_any_number_of_processes(
    rows, masking, processes: int, max_rows: int | None
):
    shares = [EvaluationBatches(rows, masking, BatchPlan(12, 1, processes, i), max_rows) for i in range(processes)]
    assert len({len(share) for share in shares}) == 1
    batches = [batch for share in shares for batch in share]
    assert {batch["input_ids"].shape for batch in batches} == {(12 // processes, LENGTH)}

    labels = np.concatenate([batch["labels"] for batch in batches])
    inputs = np.concatenate([batch["input_ids"] for batch in batches])
    counted = (labels != IGNORED).any(axis=1)
    restored = np.where(labels != IGNORED, labels, inputs)[counted]
    num_rows = min(max_rows or 24, 24)
    expected_inputs, expected_labels = masking(rows[np.arange(num_rows)], np.arange(num_rows), 0, 1)
    expected = (expected_labels != IGNORED).any(axis=1)
    by_place = np.argsort(restored[:, 1])
    np.testing.assert_array_equal(labels[counted][by_place], expected_labels[expected])
    np.testing.assert_array_equal(inputs[counted][by_place], expected_inputs[expected])


def test_evaluation_masks_stay_the_same(rows, masking):
    batches = EvaluationBatches(rows, masking, BatchPlan(8, 1, 1, 0), None)
    assert all(
        torch.equal(first["input_ids"], second["input_ids"]) for first, second in zip(batches, batches, strict=True)
    )
