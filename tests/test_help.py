"""`--help` of every program prints how it is used, and changes nothing."""

import dataclasses
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from common.config.key_help import HEADING, help_text
from common.config.keys import keys_of
from pretrain.configuration import PretrainConfig


ROOT = Path(__file__).parents[1]
PROGRAMS = sorted(
    str(path.relative_to(ROOT))
    for folder in ("benchmarks", "docs", "evaluation", "finetune_glue", "modeling_luna", "pretrain")
    for path in (ROOT / folder).rglob("*.py")
    if '\nif __name__ == "__main__":\n' in path.read_text(encoding="utf-8")
)


def run(monkeypatch: pytest.MonkeyPatch, path: str, *arguments: str) -> object:
    """Run a program as the command line does, but in this process, and return its exit code."""
    monkeypatch.setattr(sys, "argv", [path, *arguments])
    with pytest.raises(SystemExit) as end:
        if path.startswith("modeling_luna/"):  # a module of the package: python -m
            runpy.run_module(path.removesuffix(".py").replace("/", "."), run_name="__main__")
        else:
            runpy.run_path(str(ROOT / path), run_name="__main__")
    return end.value.code


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize("program", PROGRAMS)
def test_help(program: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    assert not run(monkeypatch, program, "--help")
    output = capsys.readouterr().out
    assert Path(program).stem in output
    assert "-h, --help" in output or HEADING in output


@pytest.mark.parametrize("program", ["pretrain/run_mlm.py", "pretrain/prepare.py"])
def test_keys_with_defaults_and_a_line_each(program: str, monkeypatch, capsys):
    run(monkeypatch, program, "configs/pretrain/demo.yaml", "--help")
    output = " ".join(capsys.readouterr().out.split())
    assert f"{program} configs/pretrain/NAME.yaml" in output
    for key in (
        "--output_dir (needed) The run's folder",
        "--batch_size 256 Rows of one optimiser step",
        "--learning_rate 0.0006 Learning rate at",
        "--warmup_steps null Steps over which the learning rate rises; null: 6 % of the run.",
        "--torch_compile false Compile",
        "--report_to [] Trackers",
        "--model {} Fields of the model's configuration",
        "--data python-docs `python-docs`, a dataset id",
    ):
        assert key in output


def test_every_key_has_a_line():
    fields = [field.name for field in dataclasses.fields(PretrainConfig)]
    keys = keys_of(PretrainConfig)
    assert [key.name for key in keys] == fields
    assert all(0 < len(key.doc) < 250 for key in keys)
    text = help_text("", PretrainConfig, {})
    assert all(f"  --{name} " in text for name in fields)


@dataclasses.dataclass
class Inner:
    rate: float = 1.0
    """Share of 100 %."""


@dataclasses.dataclass
class Outer:
    inner: dict = dataclasses.field(default_factory=dict)
    """Keys of their own."""
    name: str | None = None
    """A text of
    two lines."""


def test_keys_of_a_mapping_follow():
    text = help_text("About.\n\n    usage", Outer, {"inner": Inner})
    lines = [" ".join(line.split()) for line in text.splitlines() if line]
    assert lines == [
        "About.",
        "usage",
        f"{HEADING}:",
        "--inner {} Keys of their own.",
        "--name null A text of two lines.",
        "inner:",
        "--inner.rate 1.0 Share of 100 %.",
    ]


def test_help_is_quick():
    """It does not wait for what takes seconds to import."""
    code = """
import atexit, runpy, sys
atexit.register(lambda: print("torch" in sys.modules))
sys.argv = ["run_mlm.py", "-h"]
runpy.run_path("pretrain/run_mlm.py", run_name="__main__")
"""
    finished = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert finished.stdout.endswith("\nFalse\n"), finished.stderr
