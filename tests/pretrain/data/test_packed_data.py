"""Packed rows: nothing lost, nothing twice."""

import numpy as np
import pytest

from pretrain.data.packed_data import PackedRows, permuted


START, PAD, END = 0, 1, 2
LENGTH = 12  # <s>, ten tokens, </s>
TOKENS = 234  # 23 rows and 4 tokens


@pytest.fixture
def rows() -> PackedRows:
    """Rows whose tokens tell their place in the stream."""
    stream = np.arange(10, 10 + TOKENS, dtype=np.uint16)
    return PackedRows(stream, np.array([0, 30, 100, TOKENS]), (START, END), PAD, LENGTH)


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
    packed = rows[np.arange(24)].ids
    assert packed.shape == (24, LENGTH)
    assert packed.dtype == np.int64
    assert (packed[:, 0] == START).all()
    assert (packed[:-1, -1] == END).all()
    np.testing.assert_array_equal(packed[-1], [START, 240, 241, 242, 243, END, *[PAD] * 6])
    np.testing.assert_array_equal(packed[(packed >= 10)], rows.stream)
    np.testing.assert_array_equal(rows[np.array([5, 2])].ids, packed[[5, 2]])


def test_stream_that_fills_its_last_row_gets_no_other_row():
    stream = np.arange(10, 30, dtype=np.uint16)
    full = PackedRows(stream, np.array([0, 20]), (START, END), PAD, LENGTH)
    assert len(full) == 2
    assert PAD not in full[np.arange(2)].ids
