"""Packed rows: nothing lost, nothing twice."""

import numpy as np
import pytest
from packed_rows import END, LENGTH, PAD, START, TOKENS, rows_of_numbers

from pretrain.data.packed_data import PackedRows, StreamRows


@pytest.fixture
def rows() -> PackedRows:
    return rows_of_numbers()


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
    assert StreamRows(stream, [0, 20], LENGTH).sizes == [2]


def test_rows_of_a_source_hold_no_text_of_the_next(rows: PackedRows):
    two = StreamRows(rows.stream, [0, 25, TOKENS], LENGTH)
    assert two.sizes == [3, 21]
    assert [piece.tolist() for row in (2, 3) for piece in two.pieces(row)] == [[*range(30, 35)], [*range(35, 45)]]


def test_rows_that_are_not_there(rows: PackedRows):
    for index in (-1, 24):
        with pytest.raises(IndexError, match=f"row {index} of 24"):
            rows[np.array([index])]


def test_share_of_padding(rows: PackedRows):
    assert rows.padding_share == pytest.approx(6 / (24 * LENGTH))
