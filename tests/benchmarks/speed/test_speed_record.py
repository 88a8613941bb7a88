"""Records go on where they ended, and only with what made them."""

from pathlib import Path

import pytest
import torch

from benchmarks.speed.case import Case
from benchmarks.speed.record import Measurement, Record, describe_maker, record_name
from common.errors import UserError


MADE_BY = {"date": "2026-07-01", "hardware": "1 process of 2 threads on A CPU (2 cores)", "torch": "2.13.0"}
CASE = Case("luna-16", 64, lengths_file="lengths.txt", rows="padded")


def test_a_record_is_read_as_it_was_written(tmp_path: Path):
    record = Record.open(tmp_path / "new/record.json", MADE_BY)
    record.add(Measurement(CASE, 0, "measured", {"tokens": 64}))
    record.add(Measurement(CASE, 1, "out of time"))
    later = Record.open(record.path, MADE_BY | {"date": "2026-07-02"})
    assert later == record
    assert later.made_by["date"] == "2026-07-01"


def test_what_is_still_to_be_measured(tmp_path: Path):
    record = Record(tmp_path / "record.json", MADE_BY)
    assert record.needs(CASE, 0)
    record.add(Measurement(CASE, 0, "measured", {"tokens": 64}))
    assert not record.needs(CASE, 0) and record.needs(CASE, 1)
    record.add(Measurement(CASE, 1, "out of memory"))
    assert not record.needs(CASE, 2)  # it would end so again
    assert record.needs(Case("luna-16", 128), 0)


@pytest.mark.parametrize("key", ["hardware", "torch"])
def test_records_of_others_are_refused(key: str, tmp_path: Path):
    record = Record(tmp_path / "record.json", MADE_BY)
    record.add(Measurement(CASE, 0, "out of time"))
    with pytest.raises(UserError, match=f"was made with {key} .*, this is another: name another file with --record"):
        Record.open(record.path, MADE_BY | {key: "another"})


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"made_by": {}, "measurements": [{"case": {"what": 1}}]}'])
def test_files_that_are_no_records_are_refused(content: str, tmp_path: Path):
    path = tmp_path / "record.json"
    path.write_text(content)
    with pytest.raises(UserError, match="record.json is no record of benchmarks/speed/speed.py"):
        Record.read(path)


def test_the_name_tells_date_and_hardware():
    assert record_name(MADE_BY) == "2026-07-01-1-process-of-2-threads-on-a-cpu-2-cores.json"
    made_by = describe_maker(torch.device("cpu"))
    assert made_by["torch"] == torch.__version__
    assert set(made_by) == {"date", "hardware", "python", "torch", "transformers", "modeling_luna"}
