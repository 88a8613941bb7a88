"""The folders of checkpoints: which there are, what each holds, and whether it is as it was written."""

import re
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from common.checksums import digests, find_change
from common.errors import UserError
from common.files import DamagedFile, read_checked_json, write_checked_json
from common.finite import is_finite


WEIGHTS = "model.safetensors"
TRAINING_STATE = "training_state"
OPTIMIZER_FILE = "optimizer.safetensors"
AVERAGE_FILE = "average.safetensors"
PROGRESS_FILE = "progress.json"
FINAL_MODEL = "model"  # below the run's folder: the model of a finished run


class ResumeError(UserError):
    """A run's folder that cannot be resumed."""


def read_state(folder: Path) -> dict:
    """What a checkpoint says of itself.

    Raises:
        UserError: where that is missing, not as it was written, or may not be read.
    """
    return read_checked_json(folder / TRAINING_STATE / PROGRESS_FILE)


def write_state(folder: Path, state: dict):
    """Add to a checkpoint what it says of itself, with the hashes of its other files and of that itself."""
    write_checked_json(folder / TRAINING_STATE / PROGRESS_FILE, state | {"files": digests(folder)})


def find_damage(folder: Path) -> str | None:
    """What is wrong with the files of a checkpoint, or None."""
    try:
        state = read_state(folder)
    except DamagedFile:
        return f"{TRAINING_STATE}/{PROGRESS_FILE} is not as it was written, or is missing"
    except UserError as error:
        return str(error).removesuffix(".")
    return find_change(folder, state["files"])


def find_not_finite(folder: Path) -> str | None:
    """Which numbers of a whole checkpoint are not finite, or None."""
    for path in sorted(folder.rglob("*.safetensors")):
        if bad := first_not_finite(load_file(path)):
            return f"{bad} in {path.relative_to(folder)} holds numbers that are not finite"
    return None


def first_not_finite(tensors: dict[str, torch.Tensor]) -> str | None:
    """The name of the first tensor that holds a number that is not finite, or None."""
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            return name
    return None


def find_checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints below a run's folder, oldest first."""
    return sorted(filter(step_of, folder.glob("checkpoint-*")), key=step_of)


def newest_whole(run: Path, on_bad_checkpoint: str, say: Callable[[str], object] = print) -> Path | None:
    """The checkpoint that a run resumes from: the newest one, which must be whole and of finite numbers.

    Args:
        run: the run's folder.
        on_bad_checkpoint: `previous` passes damaged ones over; `error` does not.
        say: told of each that is passed over.

    Raises:
        ResumeError: where it is damaged, unless `on_bad_checkpoint` is `previous`.
    """
    for folder in reversed(find_checkpoints(run)):
        damage = find_damage(folder) or find_not_finite(folder)
        if damage is None:
            return folder
        if on_bad_checkpoint == "error":
            raise ResumeError(
                f"{folder} is damaged: {damage}. `--on_bad_checkpoint previous` goes on from the newest one that is "
                "whole."
            )
        say(f"{folder} is damaged ({damage}) and is passed over")
    return None


def step_of(folder: Path) -> int:
    """The step of a checkpoint, 0 for what is none."""
    match = re.fullmatch(r"checkpoint-([0-9]+)", folder.name)
    return int(match[1]) if match else 0
