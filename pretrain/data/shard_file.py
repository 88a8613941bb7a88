"""The file of a shard, mapped into memory, whose blocks are checked when they are first read.

It holds, for "train" and then for "validation", where each document begins and where each sentence begins (uint32,
with the end of the last), then for both the ids, and at the end a hash of each block of all that. The hash of these
hashes stands in the record of the shard and in the manifest.

This module is imported by the processes that tokenise, so it must be light.
"""

import os
import resource
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash

from common.files import PARTIAL, DamagedFile, read_back, written_whole


SPLITS = ("train", "validation")
BLOCK_BYTES = 2**16  # that are checked at once: some microseconds
HASH_TYPE = np.dtype("<u8")
OPEN_SHARDS = 128  # maps of a process, each of which holds a file descriptor
SHARE_OF_FILES = 4  # of the files that a process may open, one in so many is a shard


class SplitArrays(NamedTuple):
    """What a shard holds of one split.

    Args:
        documents: (documents + 1,), where each document begins in `tokens`, and the end of the last.
        sentences: (sentences + 1,), likewise for sentences; each document begins one.
        tokens: ids.
    """

    documents: np.ndarray
    sentences: np.ndarray
    tokens: np.ndarray


def shard_path(folder: str | Path, number: int) -> Path:
    return Path(folder) / f"{number:06}.shard"


def write_shard(path: Path, arrays: dict[str, SplitArrays]) -> dict[str, Any]:
    """Write a shard beside its place and move it there; return its size, its hash, and that of the hashes of its
    blocks."""
    ordered = [array for split in SPLITS for array in (arrays[split].documents, arrays[split].sentences)]
    ordered += [arrays[split].tokens for split in SPLITS]
    data = np.concatenate([np.ascontiguousarray(array).view(np.uint8) for array in ordered])
    blocks = np.array(
        [_hash(data[first : first + BLOCK_BYTES]) for first in range(0, len(data), BLOCK_BYTES)], dtype=HASH_TYPE
    )
    digest = xxhash.xxh3_128(data.data)
    digest.update(blocks.data)
    # A worker that outlived a killed preparation may be writing the same shard.
    with written_whole(path, f".{os.getpid()}{PARTIAL}") as file:
        file.write(data.data)
        file.write(blocks.data)
    return {"size": data.nbytes + blocks.nbytes, "xxh3": digest.hexdigest(), "blocks": f"{_hash(blocks):016x}"}


class Shard:
    """A shard that is mapped into memory.

    Args:
        path: of the file.
        counts: the "documents", "sentences" and "tokens" of each split.
        token_type: NumPy type of ids.
        facts: the "size" of the file, and the hash "blocks" of the hashes of its blocks. Data that an earlier version
            prepared do not have the latter; their blocks are not checked.

    Raises:
        DamagedFile: where the file is missing or not as it was written; likewise when it is read.
    """

    def __init__(self, path: Path, counts: dict[str, dict[str, int]], token_type: str, facts: dict[str, Any]):
        self.path = path
        kinds = [(split, kind) for split in SPLITS for kind in ("documents", "sentences")]
        self._arrays: dict[tuple[str, str], tuple[int, int, np.dtype]] = {}  # first byte, entries, type
        size = 0
        for split, kind in [*kinds, *((split, "tokens") for split in SPLITS)]:
            dtype = np.dtype(token_type if kind == "tokens" else np.uint32)
            entries = counts[split][kind] + (kind != "tokens")
            self._arrays[split, kind] = (size, entries, dtype)
            size += entries * dtype.itemsize
        self.unchecked = np.full(-(-size // BLOCK_BYTES), "blocks" in facts)
        hashes = len(self.unchecked) * HASH_TYPE.itemsize if "blocks" in facts else 0
        with read_back(path):
            right = path.stat().st_size == facts["size"] == size + hashes
            # Slices of a plain array cost less than those of a map.
            content = np.asarray(np.memmap(path, dtype=np.uint8, mode="r")) if right else None
        if content is None:
            raise DamagedFile.at(path, "it has another size than was written")
        self._data = content[:size]
        self._hashes = np.frombuffer(content[size:].tobytes(), dtype=HASH_TYPE)
        if hashes and f"{_hash(self._hashes):016x}" != facts["blocks"]:
            self._refuse(size, size + hashes)

    def read(self, split: str, kind: str, first: int = 0, last: int | None = None) -> np.ndarray:
        """Entries `first` to `last` (not included) of an array."""
        start, entries, dtype = self._arrays[split, kind]
        last = entries if last is None else min(last, entries)
        begin, end = start + first * dtype.itemsize, start + last * dtype.itemsize
        unchecked = self.unchecked[begin // BLOCK_BYTES : -(-end // BLOCK_BYTES)]
        if unchecked.any():
            self._check(begin // BLOCK_BYTES, -(-end // BLOCK_BYTES))
        return self._data[begin:end].view(dtype)

    def arrays(self, split: str) -> SplitArrays:
        """All that the shard holds of a split."""
        return SplitArrays(*(self.read(split, kind) for kind in SplitArrays._fields))

    def _check(self, first: int, last: int):
        for block in (first + np.flatnonzero(self.unchecked[first:last])).tolist():
            data = self._data[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]
            if _hash(data) != self._hashes[block]:
                self._refuse(block * BLOCK_BYTES, block * BLOCK_BYTES + len(data))
            self.unchecked[block] = False

    def _refuse(self, first: int, last: int):
        with suppress(OSError):  # not in folders that are only read
            os.utime(self.path)  # files that have changed are hashed at the next launch, which makes this one anew
        raise DamagedFile.at(self.path, f"bytes {first:,} to {last - 1:,} are not as they were written")


class OpenShards:
    """Maps shards when they are asked for, and keeps those used last.

    Args:
        shards: path, counts and facts of each, as `Shard` takes them.
        token_type: NumPy type of ids.
    """

    def __init__(self, shards: list[tuple[Path, dict, dict]], token_type: str):
        self._shards = shards
        self._token_type = token_type
        self._open: OrderedDict[int, Shard] = OrderedDict()
        self._most_open = min(OPEN_SHARDS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // SHARE_OF_FILES)
        self._unchecked: dict[int, np.ndarray] = {}  # blocks, also of shards that are not mapped any more

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(self, number: int) -> Shard:
        if number in self._open:
            self._open.move_to_end(number)
        else:
            path, counts, facts = self._shards[number]
            shard = self._open[number] = Shard(path, counts, self._token_type, facts)
            shard.unchecked = self._unchecked.setdefault(number, shard.unchecked)
            if len(self._open) > self._most_open:
                self._open.popitem(last=False)
        return self._open[number]

    def __getstate__(self) -> dict:
        """Another process maps them by itself."""
        return {**self.__dict__, "_open": OrderedDict()}


def _hash(data: np.ndarray) -> int:
    return xxhash.xxh3_64_intdigest(data.data)
