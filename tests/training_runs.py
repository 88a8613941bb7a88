"""A corpus of plain sentences, a tiny model, and runs of the real entry points on them."""

import dataclasses
import json
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState, GradientState

from pretrain import run_mlm
from pretrain.configuration import PretrainConfig


ROOT = Path(run_mlm.__file__).parents[1]
WORDS = [
    *("moon", "earth", "river", "stone", "light", "water", "small", "bright", "slowly", "often", "follows", "under"),
    *("over", "near", "the", "a", "its", "every", "quiet", "evening", "window", "garden", "paper", "reader"),
]


def write_sentences(path: Path, documents: int, seed: int = 0) -> Path:
    """A text file of documents of two lines with a blank line between them; the first line holds the number."""
    generator = np.random.default_rng(seed)
    # Zipf-like shares, so that there is something to learn.
    shares = 1 / np.arange(1, len(WORDS) + 1)
    texts = []
    for number in range(documents):
        sentences = [
            " ".join(generator.choice(WORDS, size=generator.integers(8, 13), p=shares / shares.sum())).capitalize()
            for _ in range(generator.integers(1, 5))
        ]
        texts.append(f"Number {number} begins a text of some plain words.\n" + ". ".join(sentences) + ".")
    path.write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def sentences() -> Callable[..., Path]:
    return write_sentences


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sentences(tmp_path_factory.mktemp("corpus") / "text.txt", documents=60)


@pytest.fixture(scope="session")
def build_config(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., PretrainConfig]:
    """A configuration of a tiny run without dropout that logs each step; `model` adds to the tiny model's fields."""
    prepared = tmp_path_factory.mktemp("prepared")

    def build(output_dir: Path, model: dict | None = None, **changes) -> PretrainConfig:
        tiny = {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "projection_length": 8,
            "max_position_embeddings": 32,
            "initializer_range": 0.1,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        }
        values = {
            "output_dir": str(output_dir),
            "data": str(corpus),
            "validation_share": 0.1,
            "prepared_dir": str(prepared),
            "num_proc": 1,
            "vocab_size": 400,
            "max_length": 32,
            "model": tiny | (model or {}),
            "max_steps": 20,
            "batch_size": 16,
            "learning_rate": 5e-3,
            "warmup_steps": 5,
            "logging_steps": 1,
            "eval_steps": 10,
            "save_steps": 0,
            "dataloader_num_workers": 0,
        }
        return PretrainConfig(**(values | changes))

    return build


@pytest.fixture
def train() -> Iterator[Callable[[PretrainConfig], list[dict]]]:
    """Run the training in this process, on one thread as the subprocesses do, and return its metrics."""
    with training() as run:
        yield run


@contextmanager
def training() -> Iterator[Callable[[PretrainConfig], list[dict]]]:
    def run(config: PretrainConfig) -> list[dict]:
        config.validate()
        reset_accelerate()
        run_mlm.main(config)
        return read_metrics(Path(config.output_dir))

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield run
    finally:
        torch.set_num_threads(threads)
        reset_accelerate()


@pytest.fixture(scope="module")
def train_for_module() -> Iterator[Callable[[PretrainConfig], list[dict]]]:
    """`train` for fixtures of a whole module."""
    with training() as run:
        yield run


def reset_accelerate():
    """Let the next run in this process have other settings."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def read_metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """One thread, no network, and this checkout on the path."""
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="session")
def start(environment: dict[str, str]) -> Callable[..., subprocess.Popen]:
    """Start Python with arguments from the top of the checkout."""

    def start(*arguments: object) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture(scope="session")
def python(start: Callable[..., subprocess.Popen]) -> Callable[..., subprocess.CompletedProcess]:
    """Run Python with arguments to its end."""

    def run(*arguments: object) -> subprocess.CompletedProcess:
        with start(*arguments) as process:
            try:
                output, errors = process.communicate(timeout=240)
            finally:
                process.kill()
        return subprocess.CompletedProcess(arguments, process.returncode, output, errors)

    return run


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., tuple[int, str, str]]:
    """Run a script with arguments as the command line does, but in this process: exit code, output and errors."""

    def run(path: str, *arguments: object) -> tuple[int, str, str]:
        reset_accelerate()
        monkeypatch.setattr(sys, "argv", [path, *map(str, arguments)])
        capsys.readouterr()
        try:
            runpy.run_path(str(ROOT / path), run_name="__main__")
            code = 0
        except SystemExit as exit:
            code = exit.code
        return code, *capsys.readouterr()

    yield run
    reset_accelerate()


@pytest.fixture(scope="session")
def write_config() -> Callable[[PretrainConfig, Path], Path]:
    """Write a configuration to a YAML file."""

    def write(config: PretrainConfig, path: Path) -> Path:
        path.write_text(yaml.safe_dump(dataclasses.asdict(config), sort_keys=False), encoding="utf-8")
        return path

    return write


# Opens a namespace in which anyone may mount.
SMALL_DISK = ("unshare", "--map-root-user", "--mount", "sh", "-c")


@pytest.fixture
def small_disk(tmp_path: Path, environment: dict[str, str]) -> Callable:
    """Run Python where `tmp_path / "small"`, or another place, is a disk of so many KiB, and list what was left on
    it."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = "mount -t tmpfs -o size={}k none {}"
    if os.name != "posix" or shutil.which("unshare") is None:
        pytest.skip("needs unshare")
    if subprocess.run([*SMALL_DISK, mount.format(16, folder)], capture_output=True).returncode:
        pytest.skip("needs the right to mount a disk")

    def run(kilobytes: int, *arguments: object, place: Path = folder) -> tuple[subprocess.CompletedProcess, list[str]]:
        disk = mount.format(kilobytes, place)
        command = f'{disk} && "$@"; code=$?; find {place} -printf "left: %P\\n"; exit $code'
        finished = subprocess.run(
            [*SMALL_DISK, command, "sh", sys.executable, *map(str, arguments)],
            cwd=environment["PYTHONPATH"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
        )
        left = [line.removeprefix("left: ") for line in finished.stdout.splitlines() if line.startswith("left: ")]
        return finished, [path for path in left if path]

    return run
