"""Checkpoints: each is a folder that `from_pretrained` loads, plus what it takes to go on training."""

import dataclasses
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from common.checksums import KEY, digests, find_change, is_as_written, take_checksum, with_checksum, with_first_line
from common.errors import Stopped, UserError, is_lost_process
from common.files import PARTIAL, make_folder, remove_folder, write_folder, write_json, write_text
from modeling_luna import LunaConfig
from pretrain.checkpointing.averaging import WeightAverage
from pretrain.checkpointing.model_card import Origin, write_card
from pretrain.checkpointing.sharding import load_masters, load_moments, whole_moments, whole_weights
from pretrain.configuration import PretrainConfig
from pretrain.data.tokenizer import without_code
from pretrain.models.model import config_for_others, new_model
from pretrain.watching.progress import Progress


if TYPE_CHECKING:
    from pretrain.hub.outbox import HubOutbox

WEIGHTS = "model.safetensors"
TRAINING_STATE = "training_state"
OPTIMIZER_FILE = "optimizer.safetensors"
AVERAGE_FILE = "average.safetensors"
PROGRESS_FILE = "progress.json"
STATUS_FILE = "status.json"
# Keys that decide what a step computes; a run that goes on with others would not be the same run.
FIXED = (
    "data", "text_column", "documents", "validation_share", "tokenizer", "vocab_size", "packing", "max_length",
    "model_type", "model_config", "model", "init_from", "masking", "mask_probability", "mask_probability_end",
    "mask_probability_steps", "mean_span_length", "seed", "batch_size", "batch_size_start", "batch_size_ramp_steps",
    "max_length_start", "max_length_ramp_steps",
    "optimizer", "weight_averaging", "averaging_decay", "averaging_start_step", "averaging_interval",
)  # fmt: skip


class ResumeError(UserError):
    """A run's folder that cannot be gone on with."""


class DivergenceError(UserError):
    """A run whose numbers are not finite any more."""


class Checkpoints:
    """The checkpoints below `output_dir` of one run.

    Each holds whole tensors by the names of the parameters (see `sharding`), so that any launch can go on with it.
    Dropout, rows and masks are functions of the step: there is no other state.

    Args:
        accelerator, tokenizer, config: of the run.
        model_config: of the model.
        data: the manifest of the prepared data.
        outbox: takes each checkpoint to the Hub, in the main process of a run that is to do so.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        tokenizer: PreTrainedTokenizerBase,
        config: PretrainConfig,
        model_config: PreTrainedConfig,
        data: dict,
        outbox: "HubOutbox | None" = None,
    ):
        self.accelerator = accelerator
        self.tokenizer = tokenizer if isinstance(model_config, LunaConfig) else without_code(tokenizer)
        self.config = config
        self.fingerprint = data["fingerprint"]
        self.origin = Origin.of_run(config, data, accelerator)
        self.outbox = outbox
        self.folder = Path(config.output_dir)
        with torch.device("meta"):
            self.shell = new_model(config_for_others(model_config))  # what is saved, without weights and wrappers

    def find(self) -> Path | None:
        """The checkpoint to go on from: the newest one, which must be whole, of finite numbers and of this run.

        Raises:
            ResumeError: where it is not. With `on_bad_checkpoint: previous` a damaged one is passed over.
        """
        for folder in reversed(find_checkpoints(self.folder)):
            damage = find_damage(folder) or _find_not_finite(folder)
            if damage is None:
                self._check_origin(folder)
                return folder
            if self.config.on_bad_checkpoint == "error":
                raise ResumeError(
                    f"{folder} is damaged: {damage}. `--on_bad_checkpoint previous` goes on from the newest one that "
                    "is whole."
                )
            if self.accelerator.is_main_process:
                print(f"{folder} is damaged ({damage}) and is passed over", flush=True)
        return None

    def _check_origin(self, folder: Path):
        state = read_state(folder)
        if state["fingerprint"] != self.fingerprint:
            raise ResumeError(
                f"{folder} was trained on other data or with another tokenizer ({state['fingerprint']}, now "
                f"{self.fingerprint}): name another --output_dir to start anew."
            )

    def advice(self, step: int) -> str:
        """What a person can do about a run whose weights are bad from a step on."""
        found = find_checkpoints(self.folder)
        before = [folder for folder in reversed(found) if _step(folder) < step]
        good = next((folder for folder in before if not (find_damage(folder) or _find_not_finite(folder))), None)
        if good is not None:
            advice = f"The last good checkpoint is {good}. "
            if later := [folder.name for folder in found if _step(folder) > _step(good)]:
                advice += f"To resume from it, delete {', '.join(later)}. "
        elif found:
            advice = f"No checkpoint in {self.folder} is from before and good: name another --output_dir. "
        else:
            advice = "There is no checkpoint yet. "
        return f"{advice}Lower the learning_rate or lengthen the warm-up."

    def load_model(self, folder: Path, model: PreTrainedModel):
        """Set the weights of a model that is not wrapped yet."""
        tensors = load_file(folder / WEIGHTS)
        for name, parameter in model.named_parameters():
            if name not in tensors or tensors[name].shape != parameter.shape:
                found = f"is of the shape {tuple(tensors[name].shape)}" if name in tensors else "is missing"
                raise ResumeError(f"{folder} is of another model: {name} {found}, not {tuple(parameter.shape)}.")
            parameter.data.copy_(tensors[name])

    def load_state(self, folder: Path, model: nn.Module, optimizer, average: WeightAverage | None) -> Progress:
        """Set the states of the wrapped model, its optimiser and its average."""
        load_masters(self.accelerator, model, load_file(folder / WEIGHTS))
        load_moments(self.accelerator, model, optimizer, load_file(folder / TRAINING_STATE / OPTIMIZER_FILE))
        if average is not None and (path := folder / TRAINING_STATE / AVERAGE_FILE).exists():
            average.load_state(load_file(path))
        return Progress(**read_state(folder)["progress"])

    def save(
        self, model: nn.Module, optimizer, progress: Progress, metrics: dict, average: WeightAverage | None = None
    ):
        """Write the checkpoint of the steps done, then delete those that are not to be kept.

        Its model has the weights that are trained; an average of them is part of the training state.

        Raises:
            OSError: on every process, where the main one cannot write.
            DivergenceError: on every process, where a number is not finite.
        """
        weights = self._collect(whole_weights(self.accelerator, model))
        states = {OPTIMIZER_FILE: self._collect(whole_moments(self.accelerator, model, optimizer))}
        if average is not None and average.count:
            states[AVERAGE_FILE] = self._collect(average.state())

        def fill(folder: Path):
            for tensors in (weights, *states.values()):
                if name := first_not_finite(tensors):
                    what = f"After step {progress.step:,} {name} holds numbers that are not finite."
                    raise DivergenceError(f"{what} {self.advice(progress.step)}")
            self._write_model(folder, weights, progress)
            (folder / TRAINING_STATE).mkdir()
            for name, tensors in states.items():
                save_file(tensors, folder / TRAINING_STATE / name)
            state = {"progress": dataclasses.asdict(progress), "fingerprint": self.fingerprint, **metrics}
            write_state(folder, state)

        self._write(f"checkpoint-{progress.step}", fill)
        if self.accelerator.is_main_process:
            for old in self._superfluous(progress):
                remove_folder(old)

    def save_model(self, model: nn.Module, progress: Progress, averaged: bool = False) -> Path:
        """Write the finished model alone, to `output_dir/model`; `averaged` where its weights are an average."""
        weights = self._collect(whole_weights(self.accelerator, model))
        return self._write("model", lambda folder: self._write_model(folder, weights, progress, averaged))

    def _write(self, name: str, fill: Callable[[Path], None]) -> Path:
        """Let the main process write a folder below `output_dir`, and queue it for the Hub."""
        folder = self.folder / name
        self._on_main_process(lambda: write_folder(folder, fill))
        if self.outbox is not None:
            self.outbox.add(folder)
        return folder

    def _collect(self, tensors: Iterator[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """What is to be written. All processes take part in gathering it; the main one alone keeps it."""
        kept = {}
        for name, tensor in tensors:
            if self.accelerator.is_main_process:
                kept[name] = tensor.contiguous()
        return kept

    def _on_main_process(self, work: Callable[[], None]):
        """Let the main process work; all end with its error, none waits for ever."""
        problem = None
        if self.accelerator.is_main_process:
            try:
                work()
            except Exception as error:
                problem = error
        (problem,) = broadcast_object_list([problem])
        if problem is not None:
            raise problem

    def _superfluous(self, progress: Progress) -> list[Path]:
        if self.config.save_total_limit is None or progress.skipped_in_a_row:
            return []  # as long as steps are skipped, the newest ones may turn out to be bad
        old = find_checkpoints(self.folder)[: -self.config.save_total_limit]
        every = self.config.keep_every
        kept = {progress.best_step}
        return [path for path in old if (step := _step(path)) not in kept and not (every and step % every == 0)]

    def _write_model(self, folder: Path, weights: dict[str, torch.Tensor], progress: Progress, averaged: bool = False):
        self.shell.save_pretrained(folder, state_dict=weights)
        self.tokenizer.save_pretrained(folder)
        write_card(folder, self.shell, self.origin, progress, averaged)


def read_state(folder: Path) -> dict:
    """What a checkpoint says of itself."""
    return json.loads((folder / TRAINING_STATE / PROGRESS_FILE).read_text(encoding="utf-8"))


def write_state(folder: Path, state: dict):
    """Add to a checkpoint what it says of itself, with the hashes of its other files and of that itself."""
    state = state | {"files": digests(folder)}
    write_json(folder / TRAINING_STATE / PROGRESS_FILE, with_checksum(state))


def find_damage(folder: Path) -> str | None:
    """What is wrong with the files of a checkpoint, or None."""
    try:
        state = read_state(folder)
        right = KEY in state and take_checksum(state)
    except (OSError, ValueError, AttributeError, TypeError) as error:
        return f"{TRAINING_STATE}/{PROGRESS_FILE} cannot be read ({error})"
    if not right:
        return f"{TRAINING_STATE}/{PROGRESS_FILE} is not as it was written"
    return find_change(folder, state["files"])


def _find_not_finite(folder: Path) -> str | None:
    """Which numbers of a whole checkpoint are not finite, or None."""
    for path in sorted(folder.rglob("*.safetensors")):
        if bad := first_not_finite(load_file(path)):
            return f"{bad} in {path.relative_to(folder)} holds numbers that are not finite"
    return None


def first_not_finite(tensors: dict[str, torch.Tensor]) -> str | None:
    """The name of the first tensor that holds a number that is not finite, or None."""
    for name, tensor in tensors.items():
        if tensor.numel() and not torch.stack(tensor.aminmax()).isfinite().all():  # a tenth of the time of `isfinite`
            return name
    return None


def find_checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints below a run's folder, oldest first."""
    return sorted(filter(_step, folder.glob("checkpoint-*")), key=_step)


def _step(folder: Path) -> int:
    """The step of a checkpoint, 0 for what is none."""
    match = re.fullmatch(r"checkpoint-(\d+)", folder.name)
    return int(match[1]) if match else 0


@contextmanager
def run_folder(config: PretrainConfig) -> Iterator[None]:
    """Keep the run's folder to this process, with the resolved configuration and the state of the run in it.

    Raises:
        ResumeError: where another process trains into it, or where its checkpoints are of a run with another value of
            a key that decides what a step computes.
    """
    folder = Path(config.output_dir)
    make_folder(folder, "output_dir")
    try:
        with FileLock(folder / ".lock", timeout=0):
            _store_config(config, folder)
            for leftover in folder.glob(f"checkpoint-*{PARTIAL}"):  # of a launch that was killed
                remove_folder(leftover)
            with _status(folder / STATUS_FILE):
                yield
    except Timeout as error:
        raise ResumeError(
            f"Another process trains into {folder}: wait for it, or name another --output_dir."
        ) from error


@contextmanager
def _status(path: Path) -> Iterator[None]:
    """Keep a file that tells scripts how a run stands, since a launcher ends with its own exit code: "running" (also
    after a kill -9), "finished", "stopped" (asked to, from the keyboard, or by the loss of a process: the same command
    goes on) or "failed"."""

    def write(state: str, message: str = ""):
        write_json(path, {"state": state, "message": message, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")})

    write("running")
    try:
        yield
    except Stopped as stopped:
        write("stopped", str(stopped))
        raise
    except BaseException as error:
        mended_by_the_same_command = isinstance(error, KeyboardInterrupt) or is_lost_process(error)
        with suppress(OSError):  # the disk may be full
            write("stopped" if mended_by_the_same_command else "failed", str(error) or type(error).__name__)
        raise
    write("finished")


def _stored_config(path: Path) -> dict:
    try:
        text = path.read_text(encoding="utf-8")
        values = yaml.safe_load(text) if is_as_written(text) else None
    except (yaml.YAMLError, UnicodeDecodeError):
        values = None
    if not isinstance(values, dict):
        raise ResumeError(
            f"{path} is damaged, or was edited: other values are for the command line or another file. Delete it to "
            "go on; then nothing checks that the configuration is that of the run so far."
        )
    return values


def _store_config(config: PretrainConfig, folder: Path):
    path = folder / "config.yaml"
    now = dataclasses.asdict(config)
    if find_checkpoints(folder) and path.exists():
        before = _stored_config(path)
        changed = [f"{key} (was {before.get(key)!r}, is {now[key]!r})" for key in FIXED if before.get(key) != now[key]]
        if changed:
            raise ResumeError(
                f"{folder} holds checkpoints of a run with another configuration: {'; '.join(changed)}. Give the "
                "values of that run to go on with it, or name another --output_dir."
            )
        for key in now:
            if before.get(key) != now[key]:
                print(f"{key} was {before.get(key)!r} in this run so far and is {now[key]!r} from here on")
    write_text(path, with_first_line(yaml.safe_dump(now, sort_keys=False)))
