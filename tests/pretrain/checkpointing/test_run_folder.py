"""The folder of a run: its stored configuration, compared with that of the run that resumes."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from common.errors import UserError
from pretrain.checkpointing.folders import ResumeError
from pretrain.checkpointing.run_folder import FIXED, run_folder


@pytest.mark.parametrize(
    ("key", "value"),
    [("seed", 1), ("batch_size", 8), ("mask_probability", 0.2), ("max_length", 16), ("model", {"hidden_size": 16})],
)
@pytest.mark.slow
def test_run_with_another_fixed_key_is_refused(run: Callable, train: Callable, tmp_path: Path, key: str, value):
    train(run(max_steps=5))
    before = yaml.safe_load((tmp_path / "config.yaml").read_text(encoding="utf-8"))
    with pytest.raises(ResumeError, match=rf"another configuration: {key} \(was .*, is .*\)\. Give") as error:
        train(run(max_steps=5, **{key: value}))
    assert repr(before[key]) in str(error.value)
    # The folder still is that of the first run.
    assert yaml.safe_load((tmp_path / "config.yaml").read_text(encoding="utf-8")) == before


@pytest.mark.slow
def test_keys_that_are_not_fixed_may_change(run: Callable, train: Callable, tmp_path: Path):
    train(run(max_steps=5))
    changes = {"max_steps": 8, "learning_rate": 1e-3, "per_device_train_batch_size": 8, "eval_steps": 0}
    assert not set(changes) & set(FIXED)
    metrics = train(run(**changes))
    assert [record["step"] for record in metrics if "loss" in record] == list(range(1, 9))
    stored = yaml.safe_load((tmp_path / "config.yaml").read_text(encoding="utf-8"))
    assert stored == dataclasses.asdict(run(**changes))


@pytest.mark.slow
def test_change_of_another_key_is_told(run: Callable, train: Callable, capsys):
    train(run(max_steps=5))
    capsys.readouterr()
    train(run(max_steps=6, learning_rate=2e-3))
    assert "learning_rate was 0.005 in this run so far and is 0.002 from here on" in capsys.readouterr().out


@pytest.mark.parametrize(
    "content", [b"", b"output_dir: [", b"\xff", b"a: !!int abc", b"q: !!timestamp zz", b"[" * 200_000 + b"]" * 200_000]
)
def test_damaged_configuration_is_named(run: Callable, train: Callable, tmp_path: Path, content: bytes):
    (tmp_path / "checkpoint-5").mkdir()
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(ResumeError, match=r"config.yaml is damaged"):
        train(run(max_steps=6))


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "status.json", "curves.png", "model"])
def test_a_folder_in_the_place_of_a_file_and_the_reverse(run: Callable, tmp_path: Path, name: str):
    with run_folder(run()):
        pass
    (tmp_path / "checkpoint-4").mkdir()
    (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / name).touch() if name == "model" else (tmp_path / name).mkdir()
    with (
        pytest.raises(UserError, match=f"^{tmp_path}/{name} is a .*, but a .* is to be written there"),
        run_folder(run()),
    ):
        pass


def test_texts_that_look_like_numbers_are_read_back_as_texts(run: Callable, tmp_path: Path, capsys):
    """The file is written by the rules of YAML 1.1, in which `1e5` is no number."""
    config = run(data="1e5", tokenizer="on", text_column="2026-01-01")
    (tmp_path / "checkpoint-5").mkdir()
    for _ in range(2):
        with run_folder(config):
            assert capsys.readouterr().out == ""


def test_flipped_bit_of_the_configuration_is_named_or_harmless(run: Callable, tmp_path: Path, capsys):
    (tmp_path / "checkpoint-5").mkdir()
    config, path = run(), tmp_path / "config.yaml"
    with run_folder(config):
        content = path.read_bytes()
    refused = 0
    for place in [*range(60), *range(60, len(content), 31)]:
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            with run_folder(config):
                assert path.read_bytes() == content and capsys.readouterr().out == ""
        except ResumeError as error:
            assert f"{path} is damaged" in str(error)
            refused += 1
    assert refused > 70

    path.write_bytes(content.partition(b"\n")[2])  # of an earlier release
    with run_folder(config):
        assert path.read_bytes() == content
