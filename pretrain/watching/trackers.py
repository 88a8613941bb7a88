"""TensorBoard, trackio and Weights & Biases beside the metrics file, through accelerate's trackers.

A resumed run stays one run there. The ids it has are in each checkpoint and, for a run that ends before
its first one, in a file of its folder.
"""

import dataclasses
import json
import uuid
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, TensorBoardTracker, TrackioTracker, WandBTracker
from accelerate.utils import broadcast_object_list

from common.checksums import take_checksum, with_checksum
from common.errors import UserError
from common.files import read_json_back, write_json
from pretrain.configuration import PretrainConfig
from pretrain.watching.metrics import kind_of
from pretrain.watching.progress import Progress


IDS_FILE = "trackers.json"
TENSORBOARD_FOLDER = "tensorboard"
PACKAGES = {"tensorboard": "tensorboard", "trackio": "trackio", "wandb": "wandb"}


class TrackerError(UserError):
    """A tracker that cannot be used."""


def check_installed(names: list[str]):
    """Raise a `TrackerError` for a tracker whose package is missing."""
    for name in names:
        if find_spec(PACKAGES[name]) is None:
            raise TrackerError(
                f"report_to names {name}, but the package {PACKAGES[name]} is not installed: `pip install "
                f"{PACKAGES[name]}`, or leave {name} out."
            )


class Trackers:
    """What the main process reports to. A tracker that fails later is named in a warning once; the run goes on.

    All processes make one. `progress.tracker_ids` is brought up to date.

    Args:
        config, accelerator, progress: of the run.
        facts: shown at the tracker beside the configuration.
        sent: the last step of each kind of record that an earlier launch has sent. W&B and trackio cannot take points
            back, so steps that are done again are not sent to them twice; TensorBoard drops the old points.
        warn: takes a line for the user.

    Raises:
        TrackerError: on all processes, where a package is missing, or where a tracker does not start though this run
            has never used it. One that the run has used is left out of this launch with a warning.
    """

    def __init__(
        self,
        config: PretrainConfig,
        accelerator: Accelerator,
        progress: Progress,
        facts: dict[str, str | int],
        sent: dict[str, int],
        warn: Callable[[str], None],
    ):
        self.warn = warn
        self.step = progress.step
        self.sent = sent
        self.trackers: dict[str, GeneralTracker] = {}
        self.new: set[str] = set()
        self.failed: set[str] = set()
        names = config.trackers()
        check_installed(names)
        if not names:
            return
        problem = None
        if accelerator.is_main_process:
            try:
                self._start(names, config, progress, facts)
            except TrackerError as error:
                problem = error
        (problem, progress.tracker_ids) = broadcast_object_list([problem, progress.tracker_ids])
        if problem is not None:
            raise problem

    def _start(self, names: list[str], config: PretrainConfig, progress: Progress, facts: dict[str, str | int]):
        folder = Path(config.output_dir)
        known = _known_ids(folder, config, progress, self.warn)
        for name in names:
            if name not in known:
                self.new.add(name)
            try:
                tracker, identity = START[name](config, facts, known.get(name), progress.step)
                tracker.start()
            except Exception as error:  # of many kinds, by tracker
                if name in self.new:
                    raise TrackerError(
                        f"{name} cannot be started: {_first_line(error)}. Set it up, or leave it out of report_to."
                    ) from error
                self._failed(name, error)
                continue
            self.trackers[name] = tracker
            known[name] = identity
        progress.tracker_ids = known
        write_json(folder / IDS_FILE, with_checksum({"ids": known, "config": dataclasses.asdict(config)}))

    def log(self, record: dict):
        """Send a record of the metrics; values of layers get the layer's number, from 0, behind their name."""
        values: dict[str, float] = {}
        for name, value in record.items():
            if isinstance(value, list):
                values |= {f"{name}/layer_{layer}": item for layer, item in enumerate(value) if item is not None}
            elif name != "step" and value is not None:
                values[name] = value
        for name, tracker in self.trackers.items():
            again = record["step"] <= self.sent.get(kind_of(record), 0) and name not in self.new
            if not (again and name != "tensorboard"):
                self._try(name, tracker.log, values, step=record["step"])

    def close(self):
        for name, tracker in self.trackers.items():
            self._try(name, tracker.finish)

    def _try(self, name: str, work: Callable, *arguments, **options):
        try:
            work(*arguments, **options)
        except Exception as error:
            self._failed(name, error)

    def _failed(self, name: str, error: Exception):
        if name not in self.failed:
            self.failed.add(name)
            self.warn(
                f"warning: {name} failed ({_first_line(error)}); the run goes on, and its metrics are in the file"
            )


def _known_ids(
    folder: Path, config: PretrainConfig, progress: Progress, warn: Callable[[str], None]
) -> dict[str, str]:
    """The ids of the run: those of its checkpoint, or those that it was started with before it had one.

    A run from step 0 with another configuration is another run.
    """
    ids, config_of_ids = _read_ids(folder / IDS_FILE, warn)
    if progress.step:
        return {**ids, **progress.tracker_ids}
    return ids if config_of_ids == json.loads(json.dumps(dataclasses.asdict(config))) else {}


def _read_ids(path: Path, warn: Callable[[str], None]) -> tuple[dict[str, str], object]:
    """The ids in a file, and the configuration of the run that they are of."""
    if not path.exists():
        return {}, None
    try:
        stored = read_json_back(path)
    except UserError:
        stored = None
    if isinstance(stored, dict) and take_checksum(stored) and isinstance(stored.get("ids"), dict):
        return stored["ids"], stored.get("config")
    warn(f"warning: {path} is damaged and left out: a run without a checkpoint begins anew at its trackers")
    return {}, None


def _start_tensorboard(
    config: PretrainConfig, facts: dict, identity: str | None, step: int
) -> tuple[GeneralTracker, str]:
    """Events of later steps than `step`, which an earlier launch has written, are not shown any more."""
    purge_step = step + 1 if step else 0
    return TensorBoardTracker(TENSORBOARD_FOLDER, config.output_dir, purge_step=purge_step), TENSORBOARD_FOLDER


def _start_trackio(config: PretrainConfig, facts: dict, identity: str | None, step: int) -> tuple[GeneralTracker, str]:
    """trackio goes on with the newest run of a name, which must therefore be no other run's."""
    name = identity or _free_trackio_name(config)
    resume = "never" if identity is None else "allow"
    return TrackioTracker(config.project, name=name, resume=resume, config=_settings(config, facts)), name


def _free_trackio_name(config: PretrainConfig) -> str:
    import trackio

    try:
        taken = {run.name for run in trackio.Api().runs(config.project)}
    except ValueError:  # there is no such project yet
        taken = set()
    name = _run_name(config)
    return f"{name}-{uuid.uuid4().hex[:8]}" if name in taken else name


def _start_wandb(config: PretrainConfig, facts: dict, identity: str | None, step: int) -> tuple[GeneralTracker, str]:
    identity = identity or uuid.uuid4().hex[:8]
    tracker = WandBTracker(
        config.project,
        id=identity,
        name=_run_name(config),
        resume="allow",
        dir=config.output_dir,
        config=_settings(config, facts),
    )
    return tracker, identity


START = {"tensorboard": _start_tensorboard, "trackio": _start_trackio, "wandb": _start_wandb}


def _run_name(config: PretrainConfig) -> str:
    return Path(config.output_dir).absolute().name


def _settings(config: PretrainConfig, facts: dict) -> dict:
    return {name: value for name, value in dataclasses.asdict(config).items() if value is not None} | facts


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
