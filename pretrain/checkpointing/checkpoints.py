"""Checkpoints: each is a folder that `from_pretrained` loads, plus what it takes to go on training."""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from common.errors import UserError
from common.files import remove_folder, write_folder
from modeling_luna import LunaConfig
from pretrain.checkpointing.averaging import WeightAverage
from pretrain.checkpointing.folders import (
    AVERAGE_FILE,
    FINAL_MODEL,
    OPTIMIZER_FILE,
    TRAINING_STATE,
    WEIGHTS,
    ResumeError,
    find_checkpoints,
    find_damage,
    find_not_finite,
    first_not_finite,
    newest_whole,
    read_state,
    step_of,
    write_state,
)
from pretrain.checkpointing.model_card import Origin, write_card
from pretrain.checkpointing.sharding import load_masters, load_moments, whole_moments, whole_weights
from pretrain.configuration import PretrainConfig
from pretrain.data.tokenizer import without_code
from pretrain.models.model import config_for_others, new_model
from pretrain.watching.progress import Progress


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
        on_written: called with the folder of each checkpoint, and of the finished model, once it is whole; given to
            the main process alone.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        tokenizer: PreTrainedTokenizerBase,
        config: PretrainConfig,
        model_config: PreTrainedConfig,
        data: dict,
        on_written: Callable[[Path], object] | None = None,
    ):
        self.accelerator = accelerator
        self.tokenizer = tokenizer if isinstance(model_config, LunaConfig) else without_code(tokenizer)
        self.config = config
        self.fingerprint = data["fingerprint"]
        self.origin = Origin.of_run(config, data, accelerator)
        self.on_written = on_written
        self.folder = Path(config.output_dir)
        with torch.device("meta"):
            self.shell = new_model(config_for_others(model_config))  # what is saved, without weights and wrappers

    def find(self) -> Path | None:
        """The checkpoint to go on from: the newest one, which must be whole, of finite numbers and of this run.

        Raises:
            ResumeError: where it is not. With `on_bad_checkpoint: previous` a damaged one is passed over.
        """
        folder = newest_whole(self.folder, self.config.on_bad_checkpoint, partial(self.accelerator.print, flush=True))
        if folder is not None:
            self._check_origin(folder)
        return folder

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
        before = [folder for folder in reversed(found) if step_of(folder) < step]
        good = next((folder for folder in before if not (find_damage(folder) or find_not_finite(folder))), None)
        if good is not None:
            advice = f"The last good checkpoint is {good}. "
            if later := [folder.name for folder in found if step_of(folder) > step_of(good)]:
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
        return self._write(FINAL_MODEL, lambda folder: self._write_model(folder, weights, progress, averaged))

    def _write(self, name: str, fill: Callable[[Path], None]) -> Path:
        """Let the main process write a folder below `output_dir`, and say so to `on_written`."""
        folder = self.folder / name
        self._on_main_process(lambda: write_folder(folder, fill))
        if self.on_written is not None:
            self.on_written(folder)
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
        return [path for path in old if (step := step_of(path)) not in kept and not (every and step % every == 0)]

    def _write_model(self, folder: Path, weights: dict[str, torch.Tensor], progress: Progress, averaged: bool = False):
        self.shell.save_pretrained(folder, state_dict=weights)
        self.tokenizer.save_pretrained(folder)
        write_card(folder, self.shell, self.origin, progress, averaged)
