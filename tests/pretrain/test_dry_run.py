"""`--dry_run`: all checks and the plan, and nothing is prepared, trained or written."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pretrain.preparation import prepare


@pytest.fixture
def dry(script: Callable, write_config: Callable, build_config: Callable, tmp_path: Path) -> Callable:
    """Run the program dry on a configuration with some changes: exit code, output and errors."""

    def run(**changes) -> tuple[int, str, str]:
        values = {"output_dir": tmp_path / "run", "prepared_dir": str(tmp_path / "prepared")} | changes
        path = write_config(build_config(**values), tmp_path / "run.yaml")
        return script("pretrain/run_mlm.py", path, "--dry_run")

    return run


def test_the_plan_is_shown_and_nothing_is_written(dry: Callable, corpus: Path, tmp_path: Path) -> None:
    code, output, errors = dry()
    assert code == 0, errors
    assert "Luna, 35,120 parameters: 2 layers, hidden size 32, 2 heads, projection length 8" in output
    assert f"Data        {corpus}: still to be prepared\n" in output
    assert "Steps       20 of 16 rows of 32 tokens: 10,240 tokens\n" in output
    assert output.endswith("Dry run: all checks passed. Without --dry_run the run would start at its first step.\n")
    assert os.listdir(tmp_path) == ["run.yaml"]


def test_prepared_data_and_a_run_to_resume_are_found(
    dry: Callable, build_config: Callable, train: Callable, tmp_path: Path
) -> None:
    config = build_config(tmp_path / "run", prepared_dir=str(tmp_path / "prepared"), max_steps=2, warmup_steps=1)
    train(config)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    code, output, errors = dry(max_steps=3, warmup_steps=1)
    assert code == 0, errors
    assert "tokens in 54 documents to learn from" in output
    assert "max_steps was 2 in this run so far and is 3 from here on" in output
    assert output.endswith(f"the run would resume from {tmp_path}/run/checkpoint-2.\n")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before

    code, _, errors = dry(seed=1)
    assert (code, "another configuration: seed (was 0, is 1)" in errors) == (2, True)
    (tmp_path / "run/checkpoint-2/model.safetensors").unlink()
    code, _, errors = dry()
    assert (code, "checkpoint-2 is damaged: model.safetensors is missing" in errors) == (2, True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "missing.txt"}, "missing.txt: no such file or folder"),
        ({"tokenizer": "no/such/tokenizer"}, "no/such/tokenizer"),
        ({"init_from": "missing"}, "init_from: missing is no folder, and cannot be loaded from the Hub"),
        ({"model": {"hidden_size": 33}}, "model: hidden_size (33) must be a multiple of num_attention_heads (2)"),
        ({"model_type": "roberto"}, "model_type: 'roberto' is no masked language model"),
        ({"vocab_size": 2**24, "model": {"hidden_size": 2**20}}, "lower vocab_size or the sizes in model"),
    ],
)
def test_what_would_end_the_run_is_said(dry: Callable, tmp_path: Path, changes: dict, message: str) -> None:
    code, _, errors = dry(**changes)
    assert (code, message in errors) == (2, True), errors
    assert not (tmp_path / "run").exists()


def test_a_damaged_folder_of_data_is_not_mended(dry: Callable, build_config: Callable, tmp_path: Path) -> None:
    prepared = prepare(build_config(tmp_path / "run", prepared_dir=str(tmp_path / "prepared")), quiet=True)
    (prepared / "tokenizer/tokenizer.json").unlink()
    code, output, errors = dry()
    assert code == 0, errors
    assert "still to be prepared" in output
    assert not (prepared / "tokenizer/tokenizer.json").exists()
