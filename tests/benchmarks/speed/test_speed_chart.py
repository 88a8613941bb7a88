"""The chart of the README says what its records say."""

from pathlib import Path

import pytest

from benchmarks.speed.case import Case
from benchmarks.speed.chart import NAMES, draw_chart
from benchmarks.speed.record import Measurement, Record
from common.errors import UserError


def record(speeds: dict[tuple[str, int], float]) -> Record:
    """Speeds in tokens per second, and one case out of memory."""
    measurements = [
        Measurement(
            Case(model, length),
            0,
            "measured",
            {
                "seconds": {"forward": [1000 / speed]},
                "tokens": 1000,
                "memory": 2**30,
                "layers": 12,
                "whole_layers": 12,
                "parameters": 100,
                "whole_parameters": 100,
            },
        )
        for (model, length), speed in speeds.items()
    ]
    measurements.append(Measurement(Case("modernbert", 8192), 0, "out of memory"))
    return Record(Path("record.json"), {"date": "2026-07-01", "hardware": "a machine"}, measurements)


def test_lines_and_ratios():
    speeds = {("luna-128", 512): 600.0, ("luna-128", 8192): 600.0, ("roberta", 512): 300.0, ("roberta", 8192): 100.0}
    speeds[("modernbert", 512)] = 400.0
    panel = draw_chart([record(speeds)]).axes[0]
    lines = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in panel.lines}
    assert lines[NAMES["luna-128"]] == ([512, 8192], pytest.approx([600, 600]))
    assert lines[NAMES["roberta"]] == ([512, 8192], pytest.approx([300, 100]))
    assert lines[NAMES["modernbert"]] == ([512], pytest.approx([400]))
    assert [text.get_text() for text in panel.texts] == ["2x", "6x", "1.5x"]
    assert panel.get_title() == "a machine\ntraining, float32"


def test_a_panel_for_each_record():
    speeds = {("luna-128", 512): 600.0, ("roberta", 512): 300.0}
    assert len(draw_chart([record(speeds), record(speeds)]).axes) == 2


def test_a_record_without_peers_is_refused():
    with pytest.raises(UserError, match="compares luna-128 with none of"):
        draw_chart([record({("luna-128", 512): 600.0})])
