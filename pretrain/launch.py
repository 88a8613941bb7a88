"""How a run was started: the accelerator, and the check that it is what the launcher meant."""

import gc
import os

import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, set_seed

from pretrain.configuration import ConfigurationError, PretrainConfig
from pretrain.packed_data import BatchPlan


def start_accelerator(config: PretrainConfig) -> Accelerator:
    """Make the `Accelerator` of this process and seed it.

    Raises:
        ConfigurationError: where accelerate did not start as many processes as the launcher has.
    """
    transformers.logging.disable_progress_bar()
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size > 1 and not torch.cuda.is_available():
        # Without it accelerate lets every process of a CPU launch believe that it is alone.
        os.environ.setdefault("ACCELERATE_USE_CPU", "true")
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=config.gradient_accumulation_steps, sync_with_dataloader=False
        ),
    )
    if accelerator.num_processes != world_size:
        raise ConfigurationError(
            f"The launcher started {world_size} processes, but accelerate sees {accelerator.num_processes}: use "
            "a file of configs/accelerate/ (`accelerate launch --config_file configs/accelerate/NAME.yaml ...`)."
        )
    if accelerator.mixed_precision not in ("no", "bf16"):
        raise ConfigurationError(
            f"The launcher asks for mixed_precision {accelerator.mixed_precision}: only bf16 and no are supported."
        )
    set_seed(config.seed + accelerator.process_index)
    return accelerator


def batch_plan(config: PretrainConfig, accelerator: Accelerator) -> BatchPlan:
    """Share the global batch out over the processes.

    Raises:
        ConfigurationError: where it does not divide.
    """
    shares = accelerator.num_processes * config.gradient_accumulation_steps
    if config.batch_size % shares:
        raise ConfigurationError(
            f"batch_size is {config.batch_size}, which {accelerator.num_processes} process(es) with "
            f"gradient_accumulation_steps {config.gradient_accumulation_steps} do not divide: take a multiple of "
            f"{shares}."
        )
    return BatchPlan(
        batch_size=config.batch_size,
        accumulation=config.gradient_accumulation_steps,
        num_processes=accelerator.num_processes,
        process_index=accelerator.process_index,
    )


def end_processes(accelerator: Accelerator):
    """Leave the process group; a CPU one sometimes aborts at the interpreter's exit if it is still there."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        accelerator.wait_for_everyone()
        accelerator.free_memory()  # a wrapped model that outlives its process group can hang at exit
        gc.collect()
        torch.distributed.destroy_process_group()
