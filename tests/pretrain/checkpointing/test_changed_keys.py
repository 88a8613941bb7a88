"""What a run that resumes says of each key of the configuration that has changed: refused, or accepted and shown."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pretrain.checkpointing.folders import ResumeError
from pretrain.checkpointing.run_folder import run_folder
from pretrain.configuration import PretrainConfig


PAGE = Path(__file__).parents[3] / "docs/pretraining.md"
KEYS = [field.name for field in dataclasses.fields(PretrainConfig) if field.name != "output_dir"]
# Accepted, although the steps that follow are others.
OTHER_STEPS = (
    "learning_rate", "min_learning_rate", "lr_scheduler_type", "max_steps", "warmup_steps", "decay_steps",
    "max_tokens", "warmup_tokens", "decay_tokens", "max_train_hours", "warmup_hours", "decay_hours", "adam_beta1",
    "adam_beta2", "adam_epsilon", "weight_decay", "max_grad_norm", "mixed_precision", "attn_implementation",
    "torch_compile",
)  # fmt: skip


def documented(name: str) -> list[str]:
    """The keys of an item of the page's list, a pattern such as `max_*` as the keys of the run's length."""
    text = PAGE.read_text(encoding="utf-8")
    items = re.findall(r"^- \*\*(\w+)\*\*, (.*?)(?=^- |^$)", text[text.index("## Changed keys") :], re.M | re.S)
    (item,) = [item for title, item in items if f"{title}, {item}".startswith(name)]
    names = re.findall(r"`(\w+\*?)`", item)
    ends = {"max_*": ("steps", "tokens", "train_hours")}
    return [
        key
        for name in names
        for key in (
            [name.replace("*", end) for end in ends.get(name, ("steps", "tokens", "hours"))] if "*" in name else [name]
        )
    ]


def changed(value: Any) -> Any:
    """Another value than that of the configuration; it is stored and compared only."""
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int | float) else f"not {value}"


def test_the_page_names_the_keys() -> None:
    refused = documented("Refused")
    assert len(refused) == len(set(refused)) == 28
    assert documented("Accepted, although") == list(dict.fromkeys(documented("Accepted, although")))
    assert sorted(documented("Accepted, although")) == sorted(OTHER_STEPS)
    assert {*refused, *OTHER_STEPS, *documented("Accepted, and")} < set(KEYS)


@pytest.mark.parametrize("key", KEYS)
def test_each_key(build_config: Callable, tmp_path: Path, capsys: pytest.CaptureFixture, key: str) -> None:
    config = build_config(tmp_path)
    with run_folder(config):
        (tmp_path / "checkpoint-1").mkdir()
    before = getattr(config, key)
    setattr(config, key, changed(before))
    capsys.readouterr()
    if key in documented("Refused"):
        message = f"another configuration: {key} (was {before!r}, is {getattr(config, key)!r}). Give the values"
        with pytest.raises(ResumeError, match=re.escape(message)), run_folder(config):
            pass
    else:
        with run_folder(config):
            pass
        line = f"{key} was {before!r} in this run so far and is {getattr(config, key)!r} from here on\n"
        assert capsys.readouterr().out == line
