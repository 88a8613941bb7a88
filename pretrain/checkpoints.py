"""Checkpoints: each is a folder that `from_pretrained` loads, plus what it takes to go on training."""

import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from accelerate import Accelerator, DistributedType
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_model
from torch import nn
from transformers import PreTrainedTokenizerBase

from pretrain.configuration import PretrainConfig
from pretrain.errors import UserError
from pretrain.files import (
    PARTIAL,
    make_folder,
    publish_folder,
    remove_folder,
    removed_on_error,
    write_json,
    write_text,
)
from pretrain.model_card import model_card


TRAINING_STATE = "training_state"
PROGRESS_FILE = "progress.json"
# Keys that decide what a step computes; a run that goes on with others would not be the same run.
FIXED = (
    "data", "text_column", "documents", "validation_share", "tokenizer", "vocab_size", "max_length", "model_config",
    "model", "mask_probability", "whole_word_masking", "seed", "batch_size",
)  # fmt: skip


class ResumeError(UserError):
    """A run's folder that cannot be gone on with."""


class Checkpoints:
    """The checkpoints below `output_dir` of one run.

    Args:
        accelerator, model, tokenizer: of the run; `model` as prepared by the accelerator.
        config: of the run.
        fingerprint: of the prepared data.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        config: PretrainConfig,
        fingerprint: str,
    ):
        self.accelerator = accelerator
        self.model = model
        self.tokenizer = tokenizer
        self.config = config
        self.fingerprint = fingerprint
        self.folder = Path(config.output_dir)
        if accelerator.distributed_type in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
            # The weights are in the folder above the training state already; sharded ones are not whole anywhere.
            accelerator.register_save_state_pre_hook(lambda models, weights, folder: weights.clear())
            accelerator.register_load_state_pre_hook(self._load_weights)

    def _load_weights(self, models: list[nn.Module], folder: str):
        load_model(self.accelerator.unwrap_model(models.pop()), Path(folder).parent / "model.safetensors")

    def resume(self) -> int:
        """Load the newest checkpoint, if any, and return the number of steps done."""
        folders = find_checkpoints(self.folder)
        if not folders:
            return 0
        state = json.loads((folders[-1] / TRAINING_STATE / PROGRESS_FILE).read_text(encoding="utf-8"))
        if state["fingerprint"] != self.fingerprint:
            raise ResumeError(
                f"{folders[-1]} was trained on other data or with another tokenizer ({state['fingerprint']}, now "
                f"{self.fingerprint}): name another --output_dir to start anew."
            )
        if state["step"] > self.config.max_steps:
            raise ResumeError(
                f"{folders[-1]} has done {state['step']} steps, more than max_steps ({self.config.max_steps}): "
                "raise it, or name another --output_dir."
            )
        try:
            self.accelerator.load_state(str(folders[-1] / TRAINING_STATE))
        except (SafetensorError, RuntimeError, EOFError, FileNotFoundError) as error:
            raise ResumeError(
                f"{folders[-1]} is damaged ({error}): delete it, and the same command goes on from the one before."
            ) from error
        return state["step"]

    def save(self, step: int, metrics: dict):
        """Write the checkpoint of `step` steps, then delete those over the limit."""

        def fill(folder: Path):
            self._write_model(folder, metrics)
            self.accelerator.save_state(str(folder / TRAINING_STATE))
            if self.accelerator.is_main_process:
                progress = {"step": step, "fingerprint": self.fingerprint, **metrics}
                write_json(folder / TRAINING_STATE / PROGRESS_FILE, progress)

        self._publish(self.folder / f"checkpoint-{step}", fill)
        if self.accelerator.is_main_process and self.config.save_total_limit is not None:
            for old in find_checkpoints(self.folder)[: -self.config.save_total_limit]:
                remove_folder(old)

    def save_model(self, metrics: dict) -> Path:
        """Write the model alone, to `output_dir/model`."""
        folder = self.folder / "model"
        self._publish(folder, lambda partial: self._write_model(partial, metrics))
        return folder

    def _publish(self, folder: Path, fill: Callable[[Path], None]):
        """Let all processes write into a folder that gets its name once it is whole."""
        partial = folder.with_name(folder.name + PARTIAL)
        if self.accelerator.is_main_process:
            remove_folder(partial)
            partial.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        with removed_on_error(partial):
            fill(partial)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            publish_folder(partial, folder)
        self.accelerator.wait_for_everyone()

    def _write_model(self, folder: Path, metrics: dict):
        model = self.accelerator.unwrap_model(self.model)
        state_dict = self.accelerator.get_state_dict(self.model)
        if self.accelerator.is_main_process:
            model.save_pretrained(folder, state_dict=state_dict)
            self.tokenizer.save_pretrained(folder)
            write_text(folder / "README.md", model_card(model, self.config, metrics))


def find_checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints below a run's folder, oldest first."""
    matches = [(re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in folder.glob("checkpoint-*")]
    return [path for _, path in sorted((int(match[1]), path) for match, path in matches if match)]


@contextmanager
def run_folder(config: PretrainConfig) -> Iterator[None]:
    """Keep the run's folder to this process, with the resolved configuration in it.

    Raises:
        ResumeError: where another process trains into it, or where its checkpoints are of a run with another value of
            a key that decides what a step computes.
    """
    folder = Path(config.output_dir)
    make_folder(folder, "output_dir")
    try:
        with FileLock(folder / ".lock", timeout=0):
            _store_config(config, folder)
            yield
    except Timeout as error:
        raise ResumeError(
            f"Another process trains into {folder}: wait for it, or name another --output_dir."
        ) from error


def _store_config(config: PretrainConfig, folder: Path):
    path = folder / "config.yaml"
    now = dataclasses.asdict(config)
    if find_checkpoints(folder) and path.exists():
        before = yaml.safe_load(path.read_text(encoding="utf-8"))
        changed = [f"{key} (was {before.get(key)!r}, is {now[key]!r})" for key in FIXED if before.get(key) != now[key]]
        if changed:
            raise ResumeError(
                f"{folder} holds checkpoints of a run with another configuration: {'; '.join(changed)}. Give the "
                "values of that run to go on with it, or name another --output_dir."
            )
        for key in now:
            if before.get(key) != now[key]:
                print(f"{key} was {before.get(key)!r} in this run so far and is {now[key]!r} from here on")
    write_text(path, yaml.safe_dump(now, sort_keys=False))
