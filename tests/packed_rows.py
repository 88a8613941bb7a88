"""Rows whose tokens tell their place in the stream."""

import numpy as np

from pretrain.data.mixture import Mixture
from pretrain.data.packed_data import PackedRows, StreamRows


START, PAD, END = 0, 1, 2
LENGTH = 12  # <s>, ten tokens, </s>
TOKENS = 234  # 23 rows and 4 tokens


def rows_of_numbers() -> PackedRows:
    """24 rows of the numbers from 10 on."""
    stream = np.arange(10, 10 + TOKENS, dtype=np.uint16)
    rows = StreamRows(stream, [0, TOKENS], LENGTH)
    documents = np.array([0, 30, 100, TOKENS])
    return PackedRows(rows, Mixture((24,)), stream, documents, (START, END), PAD, LENGTH, separate_documents=False)
