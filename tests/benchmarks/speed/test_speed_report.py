"""What tables and pictures say of a record."""

from pathlib import Path

import pytest

from benchmarks.speed.case import Case
from benchmarks.speed.record import Measurement, Record
from benchmarks.speed.report import collect_settings, report_text, step_seconds, throughput, write_report


MADE_BY = {"date": "2026-07-01", "hardware": "a machine"}


def result(seconds: list[float], layers: int = 12, whole: int = 12, flops: int | None = None) -> dict:
    """Half of the time is forward, and a stack has a third of the parameters that the whole model has."""
    times = [second / 2 for second in seconds]
    return {
        "seconds": {"forward": times, "backward": times, "optimizer": [0.1 for _ in seconds]},
        "tokens": 1000,
        "memory": 2**30,
        "loss": 1.0,
        "layers": layers,
        "whole_layers": whole,
        "parameters": 100,
        "whole_parameters": 100 if layers == whole else 300,
        "flops": flops,
        "peak_flops": 1e12,
    }


def measured(model: str, length: int, seconds: list[float], round: int = 0, **fields) -> Measurement:
    flops = 4 * 10**11 if model.startswith("luna") else None
    layers = fields.get("layers") or 12
    return Measurement(Case(model, length, **fields), round, "measured", result(seconds, layers, 12, flops))


@pytest.fixture
def record(tmp_path: Path) -> Record:
    measurements = [
        measured("luna-128", 512, [0.9, 1.1]),
        measured("luna-128", 512, [0.4, 0.9], round=1),
        measured("roberta", 512, [1.9]),
        measured("nystromformer", 512, [2.9]),
        measured("longformer", 512, [1.4]),
        measured("luna-128", 2048, [0.2], layers=3),
        measured("roberta", 2048, [0.9], layers=3),
        Measurement(Case("nystromformer", 2048, layers=3), 0, "out of memory"),
        Measurement(Case("longformer", 2048, layers=3), 0, "failed: RuntimeError: no"),
        measured("luna-128", 512, [1.9], dropout=0.1),
    ]
    return Record(tmp_path / "record.json", MADE_BY, measurements)


def test_stacks_are_scaled():
    assert step_seconds(result([1.0, 2.0])) == pytest.approx([1.1, 2.1])
    # Passes by 12 / 3 layers, updates by 300 / 100 parameters.
    assert step_seconds(result([1.0], layers=3)) == pytest.approx([4 * 1.0 + 3 * 0.1])


def test_speed_is_that_of_the_median_step(record: Record):
    # steps of 1.0, 1.2, 0.5 and 1.0 seconds
    assert throughput(record.measurements[:2]) == pytest.approx(1000)


def test_tables(record: Record):
    text = report_text(record, ["one.png", None])
    title = "## cpu, training, float32, dropout 0, full rows, masked-LM head, 8192 tokens a batch"
    assert title in text
    for line in [
        "| tokens/s | n = 512 | n = 2048 |",
        "| luna-128 | 1,000 | 909† |",
        "| roberta | 500 | 256† |",
        "| nystromformer | 333 | out of memory |",
        "| longformer | 667 | failed: RuntimeError: no |",
        "| luna-128 against | n = 512 | n = 2048 |",
        "| roberta | 2.00x | 3.55x† |",
        "| nystromformer | 3.00x | – |",
        "| best of nystromformer, longformer | 1.50x | – |",
        "| luna-128 | 1.00 | 1.00† |",
        "| luna-128 | 44% / 40% | 200% / 133%† |",
        "![Tokens per second and peak memory over n](one.png)",
        f"{title[3:].replace('dropout 0', 'dropout 0.1')} | 500 |  |",
    ]:
        assert line in text
    assert "† measured on a stack of a few layers (3 of 12 layers) and scaled" in text
    assert "lies 0% from their median in the middle cell, and 50% in the worst" in text


def test_peers_with_the_same_products_have_tables_of_their_own(record: Record):
    record.measurements += [measured("luna-128", 512, [0.9], peers_fast=True)]
    record.measurements += [measured("roberta", 512, [1.4], peers_fast=True)]
    text = report_text(record, [None, None, None])
    alone, _, fast = text.partition("8192 tokens a batch, peers with Luna's products\n")
    assert "| roberta | 2.00x |" in alone and "| roberta | 1.50x |" in fast


def test_a_failure_in_any_round_is_one(record: Record):
    record.measurements.append(Measurement(Case("roberta", 512), 1, "out of time"))
    text = report_text(record, ["one.png", None])
    assert "| roberta | out of time | 256† |" in text
    assert "| roberta | – | 3.55x† |" in text


def test_the_whole_model_counts_before_its_stack(record: Record):
    record.measurements.append(measured("luna-128", 512, [9.9], layers=3))
    record.measurements.insert(0, measured("roberta", 512, [9.9], layers=3))
    setting = collect_settings(record)[0]
    assert setting.speed("luna-128", 512) == pytest.approx(1000)
    assert setting.speed("roberta", 512) == pytest.approx(500)


def test_picture_and_tables_lie_beside_the_record(record: Record):
    """What was measured at one length alone, here with dropout, has no picture."""
    report = write_report(record)
    assert report == record.path.with_suffix(".md")
    (picture,) = record.path.parent.glob("*.png")
    assert picture.name == "record-cpu-training-float32-dropout-0-full-rows-masked-lm-head-8192-tokens-a-batch.png"
    assert report.read_text().count("![") == 1 and f"]({picture.name})" in report.read_text()
    assert picture.read_bytes().startswith(b"\x89PNG")
