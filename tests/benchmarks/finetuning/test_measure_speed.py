"""The program that compares Trainer's speed with a bare loop's."""

import re
import sys
from pathlib import Path

import pytest
from glue_folder import write_glue_folder
from tiny_masked_models import build, save, train_bpe

from benchmarks.finetuning import measure_speed
from common.errors import UserError


def test_speeds_and_shares_of_padding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    write_glue_folder(tmp_path / "glue", rows=64, only=["SST-2"])
    tokenizer = train_bpe([(tmp_path / "glue" / "SST-2" / "train.tsv").read_text(encoding="utf-8")])
    save(tmp_path / "luna", build("luna", tokenizer), tokenizer)

    def measure(*options: str) -> str:
        command = ["measure_speed", str(tmp_path / "luna"), "--task", "sst2", "--data", str(tmp_path / "glue")]
        monkeypatch.setattr(sys, "argv", [*command, "--batch_size", "8", *options])
        measure_speed.main()
        return capsys.readouterr().out

    out = measure("--steps", "3", "--turns", "2")
    tokens = int(re.search(r"3 steps of 8 rows, (\d+) tokens", out)[1])
    by_trainer, bare = (
        float(re.search(rf"{name} +([\d,]+) tokens/s", out)[1].replace(",", "")) for name in ("Trainer", "bare loop")
    )
    assert 3 * 8 * 8 < tokens < 3 * 8 * 64
    assert float(re.search(r"ratio +([\d.]+)", out)[1]) == pytest.approx(by_trainer / bare, abs=0.01)
    random, grouped = (float(re.search(rf"([\d.]+)% in batches of {rows}", out)[1]) for rows in ("random", "rows of"))
    assert 0 <= grouped < random < 50

    for task in ("all", "ax"):
        with pytest.raises(UserError, match=f"--task {task}: name one task that has training data"):
            measure("--task", task)
    with pytest.raises(UserError, match="batch_size"):
        measure("--batch_size", "0")
    with pytest.raises(UserError, match="--turns is 1"):
        measure("--turns", "1")
