"""Weights and optimiser states by the names of the parameters, whole, however a launch has sharded them.

One process and DDP hold them whole; FSDP2 holds DTensors; DeepSpeed's ZeRO holds flat partitions. Any launch can
resume from a checkpoint of whole tensors. All functions are collective: every process calls them.
"""

from collections.abc import Iterator

import torch
from accelerate import Accelerator, DistributedType
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor


MOMENTS = ("exp_avg", "exp_avg_sq")  # what Adam keeps for each weight


def whole_weights(accelerator: Accelerator, model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Each parameter in float32 on the CPU, a tied one once."""
    for name, parameter in _named_parameters(accelerator, model):
        yield name, _gathered(accelerator, parameter)


def load_masters(accelerator: Accelerator, model: nn.Module, tensors: dict[str, torch.Tensor]):
    """Set the float32 weights that ZeRO keeps beside those of the model, which it has made of bf16 ones perhaps."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        for name, parameter in _named_parameters(accelerator, model):
            _set_zero(parameter, tensors[name])


def whole_moments(accelerator: Accelerator, model: nn.Module, optimizer) -> Iterator[tuple[str, torch.Tensor]]:
    """The states of Adam as `MOMENT.PARAMETER`, in float32 on the CPU, and the number of updates as `updates`."""
    base = _base_optimizer(optimizer)
    states = base.state
    if not states:  # no update yet
        return
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        _link_zero_states(optimizer.optimizer)
    for name, parameter in _named_parameters(accelerator, model):
        for moment in MOMENTS:
            if accelerator.distributed_type == DistributedType.DEEPSPEED:
                yield f"{moment}.{name}", _gathered(accelerator, parameter, moment)
            elif parameter in states:
                yield f"{moment}.{name}", _gathered(accelerator, states[parameter][moment])
    step = base.param_groups[0]["step"] if _counts_in_groups(base) else next(iter(states.values()))["step"]
    yield "updates", torch.tensor(float(step))


def load_moments(accelerator: Accelerator, model: nn.Module, optimizer, tensors: dict[str, torch.Tensor]):
    """Set the states of Adam from whole tensors, those of an optimiser that has made no update from none."""
    if not tensors:
        return
    base = _base_optimizer(optimizer)
    updates = tensors["updates"]
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        _make_zero_states(optimizer.optimizer, base, updates)
        for name, parameter in _named_parameters(accelerator, model):
            for moment in MOMENTS:
                _set_zero(parameter, tensors[f"{moment}.{name}"], moment)
        return
    for name, parameter in _named_parameters(accelerator, model):
        if f"{MOMENTS[0]}.{name}" in tensors:
            state: dict = {m: sharded_like(tensors[f"{m}.{name}"], parameter) for m in MOMENTS}
            if _counts_in_groups(base):
                base.state[parameter] = {**state, "kahan_comp": None}
            else:
                base.state[parameter] = {"step": updates.to(parameter.device, copy=True), **state}
    if _counts_in_groups(base):
        for group in base.param_groups:
            group["step"] = int(updates)


def reshard(model: nn.Module):
    """Let FSDP2 give up what it has gathered: an evaluation leaves the outermost parameters so, and they are others
    than those that the optimiser changes."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def gathered(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor or DTensor whole, in float32 on the CPU."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().float().cpu()


def sharded_like(whole: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """A copy of this process's part of a whole tensor that all processes hold."""
    if isinstance(parameter, DTensor):
        whole = whole.to(parameter.device)
        # No source rank: every process has read the file, there is nothing to send.
        return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None).clone()
    return whole.to(parameter.device, copy=True)


def _named_parameters(accelerator: Accelerator, model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    reshard(model)
    return accelerator.unwrap_model(model).named_parameters()


def _base_optimizer(optimizer) -> torch.optim.Optimizer:
    """The optimiser below the wrappers of accelerate and DeepSpeed."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def _counts_in_groups(base: torch.optim.Optimizer) -> bool:
    """Whether the optimiser counts its updates by group of parameters instead of by parameter: StableAdamW does."""
    return "step" in base.param_groups[0]


def _make_zero_states(zero, base: torch.optim.Optimizer, updates: torch.Tensor):
    """Give the flat partitions the states that ZeRO itself makes at the first update."""
    stage_3 = hasattr(zero, "fp32_partitioned_groups_flat")
    for flat in zero.fp32_partitioned_groups_flat if stage_3 else zero.single_partition_of_fp32_groups:
        step = int(updates) if type(base).__name__ == "DeepSpeedCPUAdam" else updates.to(flat.device, copy=True)
        base.state[flat] = {"step": step, **{moment: torch.zeros_like(flat.data) for moment in MOMENTS}}
    _link_zero_states(zero)


def _link_zero_states(zero):
    """Let the parameters find their states in the flat partitions. Stages 1 and 2 do it by themselves after the first
    update of the first parameter group, when the other groups have no states yet."""
    if hasattr(zero, "_lazy_init_hp_params_optimizer_state"):
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()


def _gathered(accelerator: Accelerator, tensor: torch.Tensor, moment: str | None = None) -> torch.Tensor:
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        tensor = safe_get_full_fp32_param(tensor) if moment is None else safe_get_full_optimizer_state(tensor, moment)
    return gathered(tensor)


def _set_zero(parameter: nn.Parameter, value: torch.Tensor, moment: str | None = None):
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    if moment is None:
        safe_set_full_fp32_param(parameter, value)
    else:
        safe_set_full_optimizer_state(parameter, value, moment)
