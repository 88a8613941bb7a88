"""Trackers: one run however often it is resumed, and a run that outlives its trackers."""

import dataclasses
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from training_runs import reset_accelerate

from pretrain.watching import trackers
from pretrain.watching.progress import Progress
from pretrain.watching.trackers import TrackerError, Trackers, check_installed


FACTS = {"hardware": "one CPU"}


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"needs {package}")


@pytest.fixture
def accelerator() -> Accelerator:
    reset_accelerate()
    yield Accelerator(cpu=True)
    reset_accelerate()


class Recorder(GeneralTracker):
    """Keeps what is logged."""

    name = "wandb"
    requires_logging_directory = False
    broken = False
    log_fails = False

    def __init__(self):
        self.points: list[tuple[int, dict]] = []
        self.finished = False

    def start(self):
        if self.broken:
            raise RuntimeError("not logged in\nwith a second line")

    @property
    def tracker(self):
        return self

    def store_init_configuration(self, values: dict):
        raise NotImplementedError

    def log(self, values: dict, step: int | None = None, **kwargs):
        if self.log_fails:
            raise ConnectionError("the server is gone")
        self.points.append((step, values))

    def finish(self):
        self.finished = True


@pytest.fixture
def recorders(monkeypatch: pytest.MonkeyPatch) -> dict[str, Recorder]:
    """Stand-ins for W&B and trackio; each start makes a new one."""
    made: dict[str, Recorder] = {}

    def starter(name: str) -> Callable:
        def start(config, facts, identity, step):
            made[name] = Recorder()
            return made[name], identity or f"{name}-{len(list(made))}-{os.urandom(4).hex()}"

        return start

    monkeypatch.setattr(trackers, "START", trackers.START | {name: starter(name) for name in ("wandb", "trackio")})
    monkeypatch.setattr(trackers, "find_spec", lambda name: object())
    return made


@pytest.fixture
def start(build_config: Callable, accelerator: Accelerator, tmp_path: Path) -> Callable:
    """Start the trackers of a run that has done so many steps; its warnings and ids."""
    (tmp_path / "run").mkdir()

    def start(step: int = 0, ids: dict | None = None, sent: dict | None = None, names=("wandb",), **changes):
        config = build_config(tmp_path / "run", report_to=list(names), **changes)
        progress = Progress(step=step, tracker_ids=ids or {})
        warnings: list[str] = []
        return Trackers(config, accelerator, progress, FACTS, sent or {}, warnings.append), progress, warnings

    return start


def test_missing_package_is_named():
    with pytest.raises(TrackerError, match="report_to names wandb, but the package nothing_like_it is not installed"):
        trackers.PACKAGES["wandb"] = "nothing_like_it"
        try:
            check_installed(["wandb"])
        finally:
            trackers.PACKAGES["wandb"] = "wandb"


def test_missing_package_ends_a_run_before_it_trains(
    build_config: Callable, write_config: Callable, script: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = build_config(tmp_path / "run", report_to="wandb")
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    code, output, errors = script("pretrain/run_mlm.py", write_config(config, tmp_path / "run.yaml"))
    assert code == 2
    assert "pip install wandb" in errors and "Traceback" not in errors and "Model" not in output


def test_values_and_layers_are_sent_under_their_step(start: Callable, recorders: dict[str, Recorder]):
    tracker, _, _ = start()
    tracker.log({"step": 3, "loss": 2.5, "accuracy": None, "skipped_steps": 0})
    tracker.log({"step": 3, "validation_loss": 2.0, "effective_rank": [5.0, 4.0]})
    tracker.close()
    assert recorders["wandb"].points == [
        (3, {"loss": 2.5, "skipped_steps": 0}),
        (3, {"validation_loss": 2.0, "effective_rank/layer_0": 5.0, "effective_rank/layer_1": 4.0}),
    ]
    assert recorders["wandb"].finished


def test_tracker_that_fails_is_a_warning_once(start: Callable, recorders: dict[str, Recorder]):
    tracker, _, warnings = start(names=("trackio", "wandb"))
    recorders["trackio"].log_fails = True
    for step in (1, 2):
        tracker.log({"step": step, "loss": 2.0})
    recorders["trackio"].log_fails = False
    tracker.log({"step": 3, "loss": 2.0})
    assert [step for step, _ in recorders["wandb"].points] == [1, 2, 3]
    assert [step for step, _ in recorders["trackio"].points] == [3]
    assert len(warnings) == 1 and warnings[0].startswith("warning: trackio failed (the server is gone)")


def test_tracker_that_does_not_start(start: Callable, recorders: dict[str, Recorder], monkeypatch, tmp_path: Path):
    monkeypatch.setattr(Recorder, "broken", True)
    with pytest.raises(TrackerError, match="wandb cannot be started: not logged in. Set it up"):
        start()
    # A run that has used it, perhaps for weeks, goes on.
    tracker, progress, warnings = start(step=5, ids={"wandb": "abc"})
    assert warnings == ["warning: wandb failed (not logged in); the run goes on, and its metrics are in the file"]
    tracker.log({"step": 6, "loss": 2.0})
    assert progress.tracker_ids == {"wandb": "abc"}


def test_run_goes_on_under_its_id(start: Callable, recorders: dict[str, Recorder], tmp_path: Path):
    _, progress, _ = start()
    identity = progress.tracker_ids["wandb"]
    # From a checkpoint; from the file where the checkpoint was made before; and before the first checkpoint.
    assert start(step=5, ids={"wandb": identity})[1].tracker_ids == {"wandb": identity}
    assert start(step=5, ids={"wandb": "of the checkpoint"})[1].tracker_ids == {"wandb": "of the checkpoint"}
    assert start(step=5)[1].tracker_ids == {"wandb": "of the checkpoint"}
    assert start()[1].tracker_ids == {"wandb": "of the checkpoint"}
    # Another configuration from the beginning is another run; after steps it is not.
    assert start(step=5, logging_steps=7)[1].tracker_ids == {"wandb": "of the checkpoint"}
    other = start(learning_rate=0.1)[1].tracker_ids
    assert other.keys() == {"wandb"} and other != {"wandb": "of the checkpoint"}
    (tmp_path / "run" / "trackers.json").write_text('{"ids', encoding="utf-8")  # cut
    assert start()[1].tracker_ids not in (other, {"wandb": "of the checkpoint"})


def test_damaged_ids_are_named_and_left_out(start: Callable, recorders: dict[str, Recorder], tmp_path: Path):
    path = tmp_path / "run" / "trackers.json"
    for ids, expected in (({"wandb": "of the checkpoint"}, {"wandb": "of the checkpoint"}), ({}, None)):
        start(step=5, ids={"wandb": "one"})
        path.write_text(path.read_text(encoding="utf-8").replace('"one"', '"two"'), encoding="utf-8")
        _, progress, warnings = start(step=5, ids=ids)
        assert warnings == [
            f"warning: {path} is damaged and left out: a run without a checkpoint begins anew at its trackers"
        ]
        assert progress.tracker_ids == expected or (
            expected is None and progress.tracker_ids["wandb"] not in "one two"
        )


@pytest.mark.parametrize("content", ["5", '{"ids": 5}', "{}", "[" * 200_000 + "]" * 200_000])
def test_ids_that_are_none(start: Callable, recorders: dict[str, Recorder], tmp_path: Path, content: str):
    for step in (0, 5):
        (tmp_path / "run" / "trackers.json").write_text(content, encoding="utf-8")
        _, progress, warnings = start(step=step)
        assert len(warnings) == 1 and "trackers.json is damaged and left out" in warnings[0]
        assert progress.tracker_ids.keys() == {"wandb"}


def test_steps_done_again_are_not_sent_twice(start: Callable, recorders: dict[str, Recorder]):
    tracker, _, _ = start(
        step=4, ids={"wandb": "abc"}, sent={"training": 6, "evaluation": 4}, names=("trackio", "wandb")
    )
    for step in (5, 6, 7):
        tracker.log({"step": step, "loss": 2.0})
    tracker.log({"step": 6, "validation_loss": 2.0})
    assert [(step, *values) for step, values in recorders["wandb"].points] == [(7, "loss"), (6, "validation_loss")]
    assert [step for step, _ in recorders["trackio"].points] == [5, 6, 7, 6]  # new in this launch


@needs("tensorboard")
@pytest.mark.slow
def test_tensorboard_shows_each_step_once(build_config: Callable, train: Callable, tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def points(key: str) -> list[tuple[int, float]]:
        events = EventAccumulator(str(run / "tensorboard"))
        events.Reload()
        return [(event.step, event.value) for event in events.Scalars(key)]

    run = tmp_path / "run"
    config = build_config(run, max_steps=6, save_steps=3, eval_steps=3, report_to="tensorboard")
    metrics = train(config)
    losses = [(r["step"], pytest.approx(r["loss"])) for r in metrics if "loss" in r]
    assert points("loss") == losses and len(losses) == 6
    for folder in ("checkpoint-6", "model"):
        shutil.rmtree(run / folder)
    train(config)  # from step 3
    assert len(list((run / "tensorboard").iterdir())) == 2
    assert points("loss") == losses
    assert [step for step, _ in points("effective_rank/layer_1")] == [3, 6]
    for folder in ("checkpoint-3", "checkpoint-6", "model"):
        shutil.rmtree(run / folder)
    train(config)  # from the beginning
    assert points("loss") == losses


@pytest.fixture
def run_twice(
    build_config: Callable, write_config: Callable, environment: dict[str, str], tmp_path: Path
) -> Callable[[str, dict], tuple[Path, list[str]]]:
    """Train with a tracker, then once more from the checkpoint in the middle; the ids of both."""

    def run(name: str, variables: dict[str, str]) -> tuple[Path, list[str]]:
        folder = tmp_path / "my-run"
        config = build_config(folder, max_steps=6, save_steps=3, eval_steps=3, report_to=name, project="tests")
        path = write_config(config, tmp_path / "run.yaml")
        ids = []
        for _ in range(2):
            process = subprocess.run(
                [sys.executable, "pretrain/run_mlm.py", str(path)],
                cwd=environment["PYTHONPATH"],
                env=environment | variables,
                capture_output=True,
                text=True,
                timeout=200,
            )
            assert process.returncode == 0, process.stderr
            # That a busy machine is slow is no fault of the tracker.
            warnings = [line for line in process.stdout.splitlines() if line.startswith("warning: ")]
            assert [line for line in warnings if "tokens/s are" not in line] == []
            state = json.loads((folder / "checkpoint-6" / "training_state" / "progress.json").read_text("utf-8"))
            ids.append(state["progress"]["tracker_ids"][name])
            for superfluous in ("checkpoint-6", "model"):
                shutil.rmtree(folder / superfluous)
        return folder, ids

    return run


@needs("wandb")
@pytest.mark.slow
def test_wandb_offline(run_twice: Callable, tmp_path: Path):
    folder, ids = run_twice(
        "wandb", {"WANDB_MODE": "offline", "WANDB_CONFIG_DIR": str(tmp_path), "HOME": str(tmp_path)}
    )
    assert ids[0] == ids[1]
    runs = list((folder / "wandb").glob(f"offline-run-*-{ids[0]}"))
    assert len(runs) == 2 and all(list(run.glob("*.wandb")) for run in runs)
    first = next(iter(sorted(runs)[0].glob("*.wandb"))).read_bytes()
    for text in (b"my-run", b"tests", b"validation_loss", b"effective_rank/layer_1", b"data_fingerprint"):
        assert text in first


@needs("trackio")
@pytest.mark.slow
def test_trackio(run_twice: Callable, tmp_path: Path):
    variables = {"TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HOME": str(tmp_path / "hf")}
    _, ids = run_twice("trackio", variables)
    assert ids == ["my-run", "my-run"]

    def values(metric: str, run: str = "my-run") -> list[int]:
        program = str(Path(sys.executable).parent / "trackio")
        process = subprocess.run(
            [program, "get", "metric", "--project", "tests", "--run", run, "--metric", metric, "--json"],
            env=os.environ | variables,
            capture_output=True,
            text=True,
        )
        return [point["step"] for point in json.loads(process.stdout)["values"]]

    assert values("loss") == [1, 2, 3, 4, 5, 6]
    assert values("effective_rank/layer_0") == [3, 6]


def test_settings_hold_the_configuration(build_config: Callable, tmp_path: Path):
    config = build_config(tmp_path, mixed_precision=None)
    settings = trackers._settings(config, FACTS)
    assert settings["hardware"] == "one CPU" and settings["learning_rate"] == config.learning_rate
    assert "mixed_precision" not in settings and settings.keys() <= dataclasses.asdict(config).keys() | FACTS.keys()
