"""How a run was started: the accelerator, and the check that it is what the launcher meant."""

import gc
import os

import torch
import transformers
from accelerate import (
    Accelerator,
    DistributedDataParallelKwargs,
    DistributedType,
    InitProcessGroupKwargs,
    PartialState,
)
from accelerate.utils import KwargsHandler
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from common.allocator import keep_freed_memory
from common.config.yaml_config import ConfigurationError
from pretrain.configuration import PretrainConfig
from pretrain.models.peers import WITH_UNUSED_PARTS
from pretrain.steps.batches import BatchPlan, BatchSizes


def start_accelerator(config: PretrainConfig) -> Accelerator:
    """Make the `Accelerator` of this process.

    Raises:
        ConfigurationError: where accelerate did not start what the launcher asks for.
    """
    transformers.logging.disable_progress_bar()
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    handlers: list[KwargsHandler] = []
    if not torch.cuda.is_available():
        handlers += _prepare_for_cpu(world_size)
    if config.model_type in WITH_UNUSED_PARTS:
        handlers.append(DistributedDataParallelKwargs(find_unused_parameters=True))
    accelerator = Accelerator(mixed_precision=config.mixed_precision, kwargs_handlers=handlers)
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        unset_hf_deepspeed_config()  # else Transformers shards a model while it is built
    if accelerator.num_processes != world_size:
        raise ConfigurationError(
            f"The launcher started {world_size} processes, but accelerate sees {accelerator.num_processes}: use "
            "a file of configs/accelerate/ (`accelerate launch --config_file configs/accelerate/NAME.yaml ...`)."
        )
    for variable, wanted in (
        ("ACCELERATE_USE_DEEPSPEED", DistributedType.DEEPSPEED),
        ("ACCELERATE_USE_FSDP", DistributedType.FSDP),
    ):
        if _is_set(variable) and accelerator.distributed_type != wanted:
            raise ConfigurationError(
                f"The launcher asks for {wanted.value}, but accelerate runs {accelerator.distributed_type.value}: use "
                "a file of configs/accelerate/ with at least two processes."
            )
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        _refuse_under_deepspeed(config, accelerator.state.deepspeed_plugin.zero_stage)
    if accelerator.mixed_precision not in ("no", "bf16"):
        raise ConfigurationError(
            f"The launcher asks for mixed_precision {accelerator.mixed_precision}: only bf16 and no are supported."
        )
    return accelerator


def _refuse_under_deepspeed(config: PretrainConfig, zero_stage: int):
    """What needs whole parameters, which ZeRO flattens and partitions, or what its linear maps would make wrong."""
    able: dict[str, tuple] = {"optimizer": ("adamw",), "weight_averaging": (None,)}
    if zero_stage == 3:
        # Its linear maps add the bias in place, unseen by torch: to what selective checkpointing keeps, and once more.
        able["gradient_checkpointing"] = (False, True)
    values = {key: getattr(config, key) for key in able}
    refused = [f"{key} {value}" for key, value in values.items() if value not in able[key]]
    if refused:
        raise ConfigurationError(
            f"DeepSpeed cannot do {' and '.join(refused)}: leave it out, or launch with "
            "configs/accelerate/fsdp2.yaml, which shards the model, too."
        )


def _prepare_for_cpu(world_size: int) -> list[InitProcessGroupKwargs]:
    """Make accelerate do on a CPU what it does on GPUs, instead of training each process alone or unsharded."""
    keep_freed_memory()
    if _is_set("ACCELERATE_USE_DEEPSPEED"):
        os.environ["ACCELERATE_USE_CPU"] = "false"  # true would switch DeepSpeed off
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        return [InitProcessGroupKwargs(backend="gloo")]
    if world_size > 1:
        os.environ["ACCELERATE_USE_CPU"] = "true"
    if _is_set("ACCELERATE_USE_FSDP") and world_size > 1:
        state = PartialState(cpu=True)
        PartialState._shared_state["distributed_type"] = state.distributed_type = DistributedType.MULTI_GPU
        os.environ["ACCELERATE_USE_CPU"] = "false"  # the process group is there; FSDP is for what is no CPU launch
    return []


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() == "true"


def batch_plan(config: PretrainConfig, accelerator: Accelerator) -> BatchPlan:
    """Share the global batch out over the processes."""
    plan = BatchPlan(
        sizes=BatchSizes.from_config(config),
        num_processes=accelerator.num_processes,
        process_index=accelerator.process_index,
        max_micro_batch=config.per_device_train_batch_size,
    )
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        deepspeed_config = accelerator.state.deepspeed_plugin.deepspeed_config
        deepspeed_config["train_micro_batch_size_per_gpu"] = plan.micro_batch_size
        deepspeed_config["gradient_accumulation_steps"] = 1  # the training loop says where an update is due
        deepspeed_config["gradient_clipping"] = config.max_grad_norm
        deepspeed_config["zero_allow_untested_optimizer"] = True
    return plan


def end_processes(accelerator: Accelerator):
    """Leave the process group; a CPU one sometimes aborts at the interpreter's exit if it is still there."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        accelerator.wait_for_everyone()
        accelerator.free_memory()  # a wrapped model that outlives its process group can hang at exit
        gc.collect()
        torch.distributed.destroy_process_group()
