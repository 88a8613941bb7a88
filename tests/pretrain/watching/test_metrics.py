"""The file of metrics: each step once, damaged lines named, and read from its end."""

import json
from pathlib import Path

import pytest

from pretrain.watching import metrics as metrics_module
from pretrain.watching.curves import draw_curves
from pretrain.watching.metrics import MetricsFile, read_metrics
from pretrain.watching.report import summarize


DEEP = b"[" * 200_000 + b"]" * 200_000 + b"\n"


@pytest.mark.parametrize(
    "end", [b'{"step": 3, "loss": 1', b"\0" * 5000, b'{"step": 3}', b"3\n", b'{"step": 3}\n\xff\n', DEEP]
)
def test_damaged_end_of_the_file_is_dropped(tmp_path: Path, end: bytes):
    path = tmp_path / "metrics.jsonl"
    good = b'{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 2.0}\n'
    path.write_bytes(good + end)
    MetricsFile(path, 2)
    assert path.read_bytes() == good
    assert [record["step"] for record in read_metrics(path)] == [1, 2]


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, list[dict]]:
    """A metrics file and what it holds."""
    records = [
        {"step": 1, "loss": 6.25, "tokens": 480},
        {"step": 2, "loss": 5.5, "tokens": 960},
        {"step": 2, "validation_loss": 5.125, "effective_rank": [7.5, 6.0]},
    ]
    file = MetricsFile(tmp_path / "metrics.jsonl", 0)
    for record in records:
        file.append(record)
    return tmp_path / "metrics.jsonl", records


@pytest.mark.parametrize("bit", range(8))
def test_flipped_bit_is_named_or_harmless(written: tuple[Path, list[dict]], capsys: pytest.CaptureFixture, bit: int):
    """Whatever byte it is in, no record is another than was written, and one that is missing is named."""
    path, records = written
    assert read_metrics(path) == records
    known, content = {key for record in records for key in record}, path.read_bytes()
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << bit
        path.write_bytes(damaged)
        for read_after in (lambda: None, lambda: MetricsFile(path, 2)):  # in a report, and by the run that goes on
            metrics_module._name_damaged.cache_clear()
            read_after()
            found = [{key: value for key, value in record.items() if key in known} for record in read_metrics(path)]
            assert all(record in records for record in found)
            missing = len(records) - len(found)
            assert missing <= 2 and (missing > 0) == (
                "metrics.jsonl: damaged and left out: line" in capsys.readouterr().out
            )
            path.write_bytes(damaged)


def test_damaged_line_is_named_once(written: tuple[Path, list[dict]], capsys: pytest.CaptureFixture):
    path, records = written
    path.write_bytes(path.read_bytes().replace(b"5.5", b"1.5") + DEEP)
    for _ in range(3):
        assert read_metrics(path) == [records[0], records[2]]
    assert capsys.readouterr().out == f"{path}: damaged and left out: lines 2, 4\n"
    # What follows it stays where a run goes on.
    assert MetricsFile(path, 2).last == {"evaluation": 2}
    assert read_metrics(path) == [records[0], records[2]]


def test_lines_of_an_earlier_release_have_no_checksum(written: tuple[Path, list[dict]]):
    path, records = written
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    MetricsFile(path, 2).append({"step": 3, "loss": 5.0})
    assert read_metrics(path) == [*records, {"step": 3, "loss": 5.0}]


@pytest.mark.parametrize(
    "values",
    [
        {"loss": [1, 2]},
        {"validation_loss": "x"},
        {"loss": True},
        {"loss": 10**400},
        {"tokens": {"a": 1}},
        {"effective_rank": 7.5},
        {"relative_pack_entropy": [7.5, [6.0]]},
    ],
)
def test_values_of_another_kind_are_damage(
    written: tuple[Path, list[dict]], tmp_path: Path, capsys: pytest.CaptureFixture, values: dict
):
    """In a line without a checksum, as earlier releases wrote."""
    path, records = written
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps({"step": 2, **values}) + "\n")
    metrics = read_metrics(path)
    assert metrics == records and summarize(metrics)["tokens"] == 960
    assert capsys.readouterr().out == f"{path}: damaged and left out: line 4\n"
    draw_curves({"run": metrics}, tmp_path / "curves.png")


def bytes_read() -> int:
    return int(Path("/proc/self/io").read_text(encoding="utf-8").split()[1])


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="needs the counters of Linux")
def test_resume_reads_the_end_of_a_long_file_alone(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    line = json.dumps({"step": 5, "loss": 2.5, "effective_rank": [1.5] * 80}).encode() + b"\n"
    with open(path, "wb") as file:
        for _ in range(200):
            file.write(line * (2**20 // len(line)))
        kept = file.tell()
        for step in range(6, 600):
            file.write(line.replace(b'"step": 5', b'"step": %d' % step))
    assert kept > 190 * 2**20
    with open(path, "r+b") as file:  # what stands there differs, so that it is known where the search stopped
        file.seek(kept - len(line))
        file.write(line.replace(b'"step": 5', b'"step": 4'))
    before = bytes_read()
    MetricsFile(path, 5)
    assert bytes_read() - before < 2**20
    assert path.stat().st_size == kept
