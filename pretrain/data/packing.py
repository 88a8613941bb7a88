"""How rows are cut out of the tokens of a shard.

- "full_sentences" (RoBERTa; Liu et al., 2019): whole sentences one after the other, over the borders of documents,
  with `</s>` between those. A sentence longer than a row is cut.
- "best_fit" (Ding et al., 2024): whole documents, put into rows by best-fit decreasing. Documents longer than a row
  are cut into pieces that fill rows, and the rest of each is placed like a document.

A row is `<s>`, tokens, `</s>`; with "best_fit" each of its documents is.
"""

import numpy as np

from pretrain.data.shard_file import SplitArrays


def full_sentence_rows(arrays: SplitArrays, max_length: int) -> np.ndarray:
    """Where each row begins in the tokens, and the end of the last.

    The `</s>` after the document at the end of a row needs no place: it is the row's own.
    """
    body = max_length - 2
    bounds = _cut_long(arrays.sentences.astype(np.int64), arrays.documents, body)
    ends = bounds - np.isin(bounds, arrays.documents[1:])
    following = np.searchsorted(ends, bounds[:-1] + body, side="right") - 1
    rows = [0]
    while rows[-1] < len(following):
        rows.append(following[rows[-1]])
    return bounds[rows].astype(np.uint32)


def _cut_long(bounds: np.ndarray, documents: np.ndarray, body: int) -> np.ndarray:
    """Bounds of sentences, with cuts within those that are longer than a row."""
    lengths = np.diff(bounds) - np.isin(bounds[1:], documents[1:])
    cuts = np.maximum(0, -(-lengths // body) - 1)
    long = np.flatnonzero(cuts)
    inside = [bounds[sentence] + body * np.arange(1, cuts[sentence] + 1) for sentence in long]
    return np.sort(np.concatenate([bounds, *inside]))


def best_fit_rows(arrays: SplitArrays, max_length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pieces of documents that fill each row.

    Returns:
        For each row its first piece and then the number of pieces (rows + 1,); for each piece where it begins in the
        tokens, and its length without `<s>` and `</s>`.
    """
    starts, lengths = _pieces(arrays.documents.astype(np.int64), max_length - 2)
    row_of_piece = _best_fit_decreasing(lengths + 2, max_length)
    # Rows in the order of the text, by their first pieces.
    order = np.lexsort((starts, row_of_piece))
    first_of_row = order[np.flatnonzero(np.diff(row_of_piece[order], prepend=-1))]
    rank = np.empty(len(first_of_row), dtype=np.int64)
    rank[np.argsort(starts[first_of_row])] = np.arange(len(first_of_row))
    order = np.lexsort((starts, rank[row_of_piece]))
    sizes = np.bincount(rank[row_of_piece], minlength=len(rank))
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    return offsets.astype(np.uint32), starts[order].astype(np.uint32), lengths[order].astype(np.uint32)


def _pieces(documents: np.ndarray, body: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the pieces of documents begin and how long they are, without `</s>`; an empty document has none."""
    lengths = np.diff(documents) - 1
    counts = -(-lengths // body)
    document = np.repeat(np.arange(len(lengths)), counts)
    number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return documents[document] + number * body, np.minimum(lengths[document] - number * body, body)


def _best_fit_decreasing(sizes: np.ndarray, capacity: int) -> np.ndarray:
    """The bin of each item: from the largest item to the smallest, the fullest bin that has room for it."""
    bins = np.empty(len(sizes), dtype=np.int64)
    with_room: list[list[int]] = [[] for _ in range(capacity + 1)]  # bins by the room that is left
    rooms = 0  # bit r is set where there is a bin with room r
    count = 0
    for item in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[item])
        fitting = rooms >> size
        if fitting:
            room = size + (fitting & -fitting).bit_length() - 1
            chosen = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
        else:
            room, chosen = capacity, count
            count += 1
        bins[item] = chosen
        with_room[room - size].append(chosen)
        rooms |= 1 << (room - size)
    return bins
