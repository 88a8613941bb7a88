"""How a run was started: the processes of one launch, and the check that they are one."""

import gc
import os

import datasets
import torch
import transformers
from accelerate import PartialState

from common.allocator import keep_freed_memory
from common.config.yaml_config import ConfigurationError


def start_processes(side_by_side: int) -> bool:
    """Join the processes of the launch; whether this is the main one.

    Args:
        side_by_side: processes that are to run cells each for itself, which those of a launch do not.

    Raises:
        ConfigurationError: where accelerate did not start what the launcher asks for.
    """
    set_up_process()
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size > 1 and side_by_side > 1:
        raise ConfigurationError(
            f"side_by_side is {side_by_side}, but {world_size} processes train each cell together: leave one "
            "of them out."
        )
    if not torch.cuda.is_available() and world_size > 1:
        os.environ["ACCELERATE_USE_CPU"] = "true"  # else each of them would train alone
    state = PartialState(cpu=not torch.cuda.is_available())
    if state.num_processes != world_size:
        raise ConfigurationError(
            f"The launcher started {world_size} processes, but accelerate sees {state.num_processes}: use a file of "
            "configs/accelerate/ (`accelerate launch --config_file configs/accelerate/NAME.yaml ...`)."
        )
    return state.is_main_process


def set_up_process():
    """Leave the terminal to what a run itself has to say, and keep freed memory for the next steps on a CPU."""
    if not torch.cuda.is_available():
        keep_freed_memory()
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()


def end_processes():
    """Leave the process group; a CPU one sometimes aborts at the interpreter's exit if it is still there."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        gc.collect()  # a wrapped model that outlives its process group can hang at exit
        torch.distributed.destroy_process_group()
