"""Where the rows of a packing lie in prepared shards: computed once for each packing and length, and mapped.

The index is a folder `rows/PACKING-LENGTH` of the prepared folder, with the numbers of all shards in one file.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from common.checksums import hash_file
from common.errors import UserError
from common.files import (
    DamagedFile,
    locked,
    make_folder,
    read_back,
    read_checked_json,
    write_checked_json,
    write_folder,
)
from pretrain.data.manifest import read_manifest, shards_of
from pretrain.data.packing import best_fit_rows, full_sentence_rows
from pretrain.data.shard_file import SPLITS, Shard, SplitArrays
from pretrain.data.workers import shared_out


FORMAT = 2
NUMBERS, DESCRIPTION = "rows.bin", "index.json"


@dataclass(frozen=True)
class RowIndex:
    """The rows of one split.

    Args:
        numbers: of all shards, (numbers,) of uint32, on disk.
        first_number: where the numbers of each shard begin, (shards,).
        rows, pieces: how many there are in each shard, (shards,).
        tokens: of all rows, without padding.
    """

    numbers: np.ndarray
    first_number: np.ndarray
    rows: np.ndarray
    pieces: np.ndarray
    tokens: int


def ensure_index(prepared: Path, packing: str, max_length: int, num_proc: int = 1) -> Path:
    """The folder of an index, made where it is not there or not whole. Processes wait for the one that makes it; one
    that is whole is only read."""
    folder = prepared / "rows" / f"{packing}-{max_length}"
    if damage_of_index(prepared, folder):
        try:
            make_folder(folder.parent, "prepared_dir")
        except UserError as error:
            raise UserError(f"{prepared} has no rows {folder.name} yet. {error}") from error
        with locked(folder):
            if damage_of_index(prepared, folder):
                write_folder(folder, lambda partial: _build(prepared, packing, max_length, num_proc, partial))
    return folder


def open_index(folder: Path, split: str) -> RowIndex:
    """Map the rows of a split into memory."""
    description = read_checked_json(folder / DESCRIPTION)
    counts = np.array([description["shards"][each] for each in SPLITS], dtype=np.int64)  # (splits, shards, 3)
    ends = np.cumsum(counts[:, :, 0].T).reshape(-1, len(SPLITS)).T  # shard by shard, each split by split
    place = SPLITS.index(split)
    return RowIndex(
        numbers=np.asarray(np.memmap(folder / NUMBERS, dtype=np.uint32, mode="r")),
        first_number=ends[place] - counts[place, :, 0],
        rows=counts[place, :, 1],
        pieces=counts[place, :, 2],
        tokens=description["tokens"][split],
    )


def damage_of_index(prepared: Path, folder: Path) -> str | None:
    """What is wrong with an index of prepared data, or None.

    Raises:
        UserError: where it may not be read.
    """
    try:
        description = read_checked_json(folder / DESCRIPTION)
        if description["format"] != FORMAT or description["of"] != _belongs_to(prepared, folder.name):
            return "it belongs to other data"
        with read_back(folder / NUMBERS):
            right = hash_file(folder / NUMBERS) == description["numbers"]
    except DamagedFile as error:
        return str(error)
    return None if right else "other bytes than were written"


def _belongs_to(prepared: Path, rows: str) -> list[str]:
    return [read_manifest(prepared)["fingerprint"], rows]


def _build(prepared: Path, packing: str, max_length: int, num_proc: int, folder: Path):
    manifest = read_manifest(prepared)
    shards: dict[str, list[list[int]]] = {split: [] for split in SPLITS}
    tokens = dict.fromkeys(SPLITS, 0)
    digest = xxhash.xxh3_128()
    arguments = (packing, max_length, manifest["token_type"])
    with open(folder / NUMBERS, "wb") as file:
        for result in shared_out(_Packer, arguments, shards_of(prepared, manifest), num_proc):
            for split, (numbers, rows, pieces, places) in result.items():
                shards[split].append([len(numbers), rows, pieces])
                tokens[split] += places
                digest.update(numbers.view(np.uint8))
                file.write(numbers.view(np.uint8))
    write_checked_json(
        folder / DESCRIPTION,
        {
            "format": FORMAT,
            "of": _belongs_to(prepared, f"{packing}-{max_length}"),
            "numbers": digest.hexdigest(),
            "tokens": tokens,
            "shards": shards,
        },
    )


class _Packer:
    """Computes the rows of a shard."""

    def __init__(self, packing: str, max_length: int, token_type: str):
        self.packing = packing
        self.max_length = max_length
        self.token_type = token_type

    def __call__(self, task: tuple[Path, dict, dict]) -> dict[str, tuple[np.ndarray, int, int, int]]:
        path, counts, facts = task
        shard = Shard(path, counts, self.token_type, facts)
        return {split: self._rows(shard.arrays(split)) for split in SPLITS}

    def _rows(self, arrays: SplitArrays) -> tuple[np.ndarray, int, int, int]:
        """The numbers to store, and how many rows, pieces and tokens they are."""
        if self.packing == "best_fit":
            offsets, starts, lengths = best_fit_rows(arrays, self.max_length)
            numbers = np.concatenate([offsets, starts, lengths])
            return numbers, len(offsets) - 1, len(starts), int(lengths.sum()) + 2 * len(starts)
        if self.packing == "full_sentences":
            starts = full_sentence_rows(arrays, self.max_length)
            rows = len(starts) - 1
            at_document_end = int(np.isin(starts[1:], arrays.documents[1:]).sum())
            return starts, rows, rows, len(arrays.tokens) + 2 * rows - at_document_end
        raise UserError(f"packing {self.packing!r} has no index")
