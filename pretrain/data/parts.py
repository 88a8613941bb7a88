"""The part of a corpus that comes from one source: its shards, written by several processes and resumed after an
interruption."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from common.checksums import hash_file
from common.errors import UserError
from common.files import PARTIAL, DamagedFile, read_back, read_checked_json
from pretrain.data.shard_file import SplitArrays, shard_path
from pretrain.data.shards import SHARD_BYTES, ShardSettings, ShardTask, record_path
from pretrain.data.sources import DocumentReader, Source


CHUNK_TOKENS = 2**20  # that are counted at once


@dataclass(frozen=True)
class Part:
    """A source and the folder of its shards.

    Bad records are left out or end the preparation, but do not change shards: these serve both ways.
    """

    source: Source
    folder: Path

    @classmethod
    def of(cls, source: Source, text: dict, settings: ShardSettings, prepared: Path, format: int) -> "Part":
        """The part of a prepared folder, named after all that its bytes depend on.

        Args:
            text: the identity of the source.
        """
        tokenizer = hashlib.sha256(settings.tokenizer.encode()).hexdigest()
        identity = [format, text, tokenizer, settings.end, settings.threshold, SHARD_BYTES]
        if settings.given_out is not None:
            identity.append(settings.given_out)
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        return cls(source, prepared / f"part-{digest}")

    def drop_damaged(self):
        """Delete what is left of unfinished shards, and the records of those with other bytes than were written."""
        for leftover in self.folder.glob(f"*{PARTIAL}"):
            leftover.unlink()
        for number in self._numbers():
            path, record = shard_path(self.folder, number), record_path(self.folder, number)
            try:
                facts = read_checked_json(record)["file"]
                with read_back(path):
                    right = hash_file(path) == facts["xxh3"]
            except DamagedFile:
                right = False
            if not right:
                record.unlink()

    def _numbers(self) -> list[int]:
        """The numbers of the shards that have a record."""
        return sorted(
            int(path.stem) for path in self.folder.glob("*.json") if path.stem.isascii() and path.stem.isdecimal()
        )

    def records(self) -> dict[int, dict]:
        """The records of the shards, by their numbers.

        Raises:
            DamagedFile: where one is not as it was written.
        """
        return {number: read_checked_json(record_path(self.folder, number)) for number in self._numbers()}

    def is_whole(self) -> bool:
        """Whether all shards are there."""
        records = self.records()
        return bool(records) and list(records) == list(range(len(records))) and records[len(records) - 1]["last"]

    def take_over(self, prepared_dir: Path) -> bool:
        """Take the shards from another folder of prepared data that has the same part, if there is one."""
        if self.folder.exists():
            return False
        for other in sorted(prepared_dir.glob(f"*/{self.folder.name}")):
            if other.parent.name.endswith(PARTIAL) or not (other.parent / "manifest.json").exists():
                continue
            try:
                if Part(self.source, other).is_whole():
                    _link_files(other, self.folder)
                    return self.is_whole()
            except (OSError, UserError):  # it is being deleted, is damaged, or may not be read
                shutil.rmtree(self.folder, ignore_errors=True)
        return False

    def tasks(self, num_proc: int) -> Iterator[ShardTask]:
        """The shards that are not there, from the first that is missing on.

        The source is read from there, so the documents of shards behind it are read and dropped.
        """
        self.folder.mkdir(exist_ok=True)
        records = self.records()
        number = next(number for number in range(len(records) + 1) if number not in records)
        reader = DocumentReader(self.source, num_proc, records[number - 1]["next"] if number else None)
        known_last = max((number for number, record in records.items() if record["last"]), default=None)
        missing = None if known_last is None else set(range(known_last)) - set(records)
        shards = _cut_into_shards(reader)
        while missing is None or missing:
            documents, last = next(shards)
            counts = asdict(reader.take_counts())
            if number not in records:
                facts = {"next": reader.position, "last": last, "counts": counts}
                yield ShardTask(str(self.folder), number, documents, facts)
            if missing is not None:
                missing.discard(number)
            if last:
                return
            number += 1


def _cut_into_shards(reader: DocumentReader) -> Iterator[tuple[list[bytes], bool]]:
    """Yields the documents of each shard, and whether it is the last, which alone may be empty."""
    documents: list[bytes] = []
    size = 0
    for document in reader:
        documents.append(document.text)
        size += len(document.text)
        if size >= SHARD_BYTES:
            yield documents, False
            documents, size = [], 0
    yield documents, True


def _link_files(source: Path, target: Path):
    target.mkdir()
    for file in source.iterdir():
        if not file.name.endswith(PARTIAL):
            try:
                os.link(file, target / file.name)
            except OSError:  # on another disk
                shutil.copy2(file, target / file.name)


def entropy(counts: np.ndarray) -> float:
    """Entropy in nats of the distribution in which things were counted."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def median(counts: np.ndarray) -> float:
    """The median of whole numbers of which `counts[n]` are n."""
    ends = np.cumsum(counts)
    lower, upper = (int(np.searchsorted(ends, place, side="right")) for place in ((ends[-1] - 1) // 2, ends[-1] // 2))
    return (lower + upper) / 2


def split_statistics(shards: Iterable[SplitArrays], num_bytes: int, vocab_size: int) -> dict:
    """What one split of a corpus holds, as the manifest has it."""
    tokens = np.zeros(vocab_size, dtype=np.int64)
    lengths = np.zeros(1, dtype=np.int64)
    for arrays in shards:
        for first in range(0, len(arrays.tokens), CHUNK_TOKENS):
            tokens += np.bincount(arrays.tokens[first : first + CHUNK_TOKENS], minlength=vocab_size)
        counted = np.bincount(np.diff(arrays.documents.astype(np.int64)), minlength=len(lengths))
        counted[: len(lengths)] += lengths
        lengths = counted
    return {
        "documents": int(lengths.sum()),
        "bytes": num_bytes,
        "tokens": int(tokens.sum()),
        "document_tokens": {"median": median(lengths), "longest": len(lengths) - 1},
        "unigram_entropy": entropy(tokens),
    }
