"""Optimisers and averages of weights that FSDP2 has sharded.

As a script, once for each rank, it takes a file for the ranks to meet in, the rank, and the key and value of the
configuration to try (`optimizer stable_adamw`). It trains a small network on its own, and again sharded over both
ranks, and prints the largest difference of weights, averages and outputs.
"""

import os
import subprocess
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from pretrain.checkpointing.averaging import WeightAverage
from pretrain.configuration import PretrainConfig
from pretrain.steps.optimizers import build_optimizer


def run_two_ranks(key: str, value: str, folder: Path, environment: dict[str, str]) -> list[float]:
    """What each of two processes prints."""
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder / "meeting"), rank, key, value],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    try:
        outputs = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors
    return [float(output) for output, _ in outputs]


def build_network() -> nn.Sequential:
    """One layer that two ranks share evenly, and one that they do not."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def shard(network: nn.Sequential) -> nn.Sequential:
    mesh = init_device_mesh("cpu", (2,))
    fully_shard(network[0], mesh=mesh)
    # The outermost parameters stay gathered after a forward pass.
    return fully_shard(network, mesh=mesh, reshard_after_forward=False)


def train(network: nn.Sequential, config: PretrainConfig) -> list[torch.Tensor]:
    """Six steps with gradients of very different sizes; what there is to compare."""
    optimizer = build_optimizer(network, config)
    average = WeightAverage.from_config(config, network)
    results = []
    for step in range(6):
        inputs = torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
        (network(inputs).pow(2).mean() * 10**step).backward()
        optimizer.step()
        optimizer.zero_grad()
        if average is not None:
            average.update(step + 1)
            with torch.no_grad(), average.swapped_in():
                results.append(network(inputs))
        with torch.no_grad():
            results.append(network(inputs))
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    results += [whole(parameter) for parameter in network.parameters()]
    if average is not None:
        tensors = {name: whole(tensor).clone() for name, tensor in average.tensors().items()}
        again = WeightAverage.from_config(config, network)
        again.load_state(dict(average.state()))
        assert again.count == average.count == 3
        assert all(torch.equal(whole(tensor), tensors[name]) for name, tensor in again.tensors().items())
        results += tensors.values()
    return results


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


def main(meeting: str, rank: str, key: str, value: str):
    config = PretrainConfig(output_dir="", learning_rate=0.05, averaging_start_step=2, averaging_interval=2)
    setattr(config, key, value)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=int(rank), world_size=2)
    expected, sharded = train(build_network(), config), train(shard(build_network()), config)
    print(max(float((a - b).abs().max()) for a, b in zip(expected, sharded, strict=True)), flush=True)
    dist.destroy_process_group()
    os._exit(0)  # a process group of gloo sometimes aborts at the interpreter's exit


if __name__ == "__main__":
    main(*sys.argv[1:])
