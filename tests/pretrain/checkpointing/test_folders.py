"""The folders of checkpoints: their order, and what is damaged in them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pretrain.checkpointing.folders import ResumeError, find_checkpoints, find_damage, newest_whole, write_state


def test_checkpoints_are_ordered_by_step(tmp_path: Path):
    for name in (
        "checkpoint-900",
        "checkpoint-1000",
        "checkpoint-20",
        "checkpoint-5000.partial",
        "checkpoint-x",
        "checkpoint-٩٩",
    ):
        (tmp_path / name).mkdir()
    assert [path.name for path in find_checkpoints(tmp_path)] == ["checkpoint-20", "checkpoint-900", "checkpoint-1000"]


@pytest.mark.parametrize("name", ["model.safetensors", "training_state/optimizer.safetensors"])
def test_damaged_checkpoint_is_named(run: Callable, train: Callable, tmp_path: Path, name: str):
    train(run(max_steps=5))
    damaged = tmp_path / "checkpoint-5" / name
    damaged.write_bytes(damaged.read_bytes()[:1000])
    with pytest.raises(ResumeError, match=r"checkpoint-5 is damaged: .* is not as it was written.* previous"):
        train(run(max_steps=6))


@pytest.mark.parametrize(
    "name", ["config.json", "training_state/optimizer.safetensors", "training_state/progress.json"]
)
@pytest.mark.slow
def test_flipped_byte_is_refused_and_passed_over_on_request(
    run: Callable, train: Callable, tmp_path: Path, capsys, name: str
):
    expected = train(run())
    damaged = tmp_path / "checkpoint-12" / name
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 0x80
    damaged.write_bytes(content)
    with pytest.raises(ResumeError, match="checkpoint-12 is damaged: .*on_bad_checkpoint previous"):
        train(run())
    capsys.readouterr()
    metrics = train(run(on_bad_checkpoint="previous"))
    output = capsys.readouterr().out
    assert "checkpoint-12 is damaged" in output and "Going on from step 8 of 12" in output
    assert [record.get("loss") for record in metrics] == [record.get("loss") for record in expected]
    assert find_damage(tmp_path / "checkpoint-12") is None


@pytest.mark.parametrize("content", [None, "", "[]", "5", "{}", "[" * 200_000 + "]" * 200_000])
def test_progress_that_is_no_such_file(tmp_path: Path, capsys: pytest.CaptureFixture, content: str | None):
    for step in (3, 6):
        (tmp_path / f"checkpoint-{step}" / "training_state").mkdir(parents=True)
        write_state(tmp_path / f"checkpoint-{step}", {"step": step})
    path = tmp_path / "checkpoint-6" / "training_state" / "progress.json"
    path.unlink()
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(ResumeError, match="checkpoint-6 is damaged: training_state/progress.json is not as it was"):
        newest_whole(tmp_path, "error")
    assert newest_whole(tmp_path, "previous") == tmp_path / "checkpoint-3"
    assert "checkpoint-6 is damaged (training_state/progress.json is not as it was" in capsys.readouterr().out


@pytest.mark.parametrize(("written", "by_hand"), [('"step": 5', '"step": 3'), ('"seconds"', '"minutes"')])
def test_edited_progress_is_refused(run: Callable, train: Callable, tmp_path: Path, written: str, by_hand: str):
    train(run(max_steps=5))
    path = tmp_path / "checkpoint-5" / "training_state" / "progress.json"
    path.write_text(path.read_text(encoding="utf-8").replace(written, by_hand), encoding="utf-8")
    with pytest.raises(ResumeError, match=r"damaged: training_state/progress.json is not as it was written"):
        train(run(max_steps=6))
