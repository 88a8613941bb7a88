"""The metrics of a run as JSON lines, each step at most once, whatever happened to the run."""

import json
import math
import os
import sys
from collections import deque
from functools import cache
from pathlib import Path

from tqdm import tqdm

from common.checksums import take_checksum, with_checksum
from common.files import parse_json


METRICS_FILE = "metrics.jsonl"
BLOCK = 2**16  # bytes read at once from the end
MAX_WAITING = 10_000  # lines kept in memory while the disk takes none
OF_LAYERS = ("effective_rank", "pack_entropy")  # how the names of values end that each layer has one of
LARGEST = 2**63
NAMED = 10  # damaged lines that a message names


class MetricsFile:
    """Appends records to a file, each line in one write.

    There are two kinds of records: of training (they hold `loss`) and of evaluations. Steps rise from line to line.
    Each line has a checksum.

    Args:
        path: of the file.
        step: steps that are done. The records of later steps, which will be done again, and damaged lines, such as one
            that a crash has cut, are taken off the end of the file, which takes no longer where the file is long.
    """

    def __init__(self, path: Path, step: int):
        self.path = path
        self.last: dict[str, int] = {}  # the last step of each kind
        self.dropped: dict[str, int] = {}  # the last step of each kind that was taken off
        self._waiting: deque[bytes] = deque(maxlen=MAX_WAITING)
        self._drop_after(step)

    def append(self, record: dict):
        """Write a record, unless there is one of its kind for this step or a later one.

        Raises:
            OSError: where it cannot be written; then it is written together with the next one.
        """
        kind = kind_of(record)
        if self.last.get(kind, -1) >= record["step"]:
            return
        self.last[kind] = record["step"]
        self._waiting.append(json.dumps(with_checksum(record)).encode() + b"\n")
        lines = b"".join(self._waiting)
        with open(self.path, "ab", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            try:
                written = file.write(lines)
            except OSError:
                file.truncate(end)
                raise
            if written < len(lines):  # the disk took a part of a line
                file.truncate(end)
                raise OSError(f"{self.path}: only {written} of {len(lines)} bytes could be written")
        self._waiting.clear()

    def _drop_after(self, step: int):
        if not self.path.exists():
            return
        with open(self.path, "r+b") as file:
            end = file.seek(0, os.SEEK_END)
            damaged = []
            for start, line in _lines_from_end(file):
                record = _parse(line)
                if record is None:  # among those that are kept it is for readers to name
                    if not self.last:
                        end = start
                        damaged.append(start)
                elif record["step"] > step or not line.endswith(b"\n"):
                    end = start
                    self.dropped.setdefault(kind_of(record), record["step"])
                elif record["step"] == step:
                    self.last[kind_of(record)] = step
                else:
                    break
            if damaged:
                file.seek(0)
                content = file.read()
                _name_damaged(self.path, tuple(content.count(b"\n", 0, start) + 1 for start in reversed(damaged)))
            file.truncate(end)


def _lines_from_end(file):
    """Each line of a binary file with its place, from the last one to the first."""
    start = file.seek(0, os.SEEK_END)
    rest = b""
    while start > 0:
        size = min(BLOCK, start)
        start = file.seek(start - size)
        rest = file.read(size) + rest
        lines = rest.splitlines(keepends=True)
        rest = lines[0]
        end = start + sum(map(len, lines))
        for line in reversed(lines[1:]):
            end -= len(line)
            yield end, line
    if rest:
        yield 0, rest


def _parse(line: bytes) -> dict | None:
    """The record of a line, or None where the line is damaged. One without a checksum is of an earlier release."""
    try:
        record = parse_json(line)
    except ValueError:
        return None
    right = isinstance(record, dict) and type(record.get("step")) is int and take_checksum(record)
    return record if right and all(_is_value(name, value) for name, value in record.items()) else None


def _is_value(name: str, value: object) -> bool:
    """Whether a record can hold this value: a number or null, or a list of them with one for each layer."""
    if name.endswith(OF_LAYERS):
        return isinstance(value, list) and all(_is_value("", item) for item in value)
    return value is None or type(value) is float or (type(value) is int and abs(value) <= LARGEST)


def kind_of(record: dict) -> str:
    """`training` or `evaluation`."""
    return "training" if "loss" in record else "evaluation"


def read_metrics(path: Path) -> list[dict]:
    """The records of a metrics file; damaged lines are named and left out."""
    if not path.exists():
        return []
    records = [_parse(line) for line in path.read_bytes().splitlines()]
    damaged = tuple(number for number, record in enumerate(records, start=1) if record is None)
    if damaged:
        _name_damaged(path, damaged)
    return [record for record in records if record is not None]


@cache  # once, though a run reads its file at each checkpoint
def _name_damaged(path: Path, lines: tuple[int, ...]):
    shown = ", ".join(map(str, lines[:NAMED])) + (" and more" if len(lines) > NAMED else "")
    tqdm.write(f"{path}: damaged and left out: line{'s' if len(lines) > 1 else ''} {shown}", file=sys.stdout)


def finite(value):
    """A number, or None where it is not finite; a list of them for a list."""
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def perplexity(loss: float | None) -> float | None:
    """The exponential of a loss in nats; None where there is none or it is too large for a number."""
    return math.exp(loss) if loss is not None and abs(loss) < 700 else None
