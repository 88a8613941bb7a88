"""A second set of weights, averaged over the steps of a run."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import get_swa_multi_avg_fn

from pretrain.checkpointing.sharding import gathered, reshard, sharded_like
from pretrain.configuration import PretrainConfig


COUNT = "count"  # in a checkpoint, beside the tensors


class WeightAverage:
    """The average of a model's weights, in float32 on their device; a tied weight counts once.

    It begins with the weights at the first step that counts. Of sharded weights each process averages its part.

    Args:
        model: as wrapped for training: itself, by DDP, or sharded by FSDP2.
        decay: of an exponential average; it grows from 2/11 to this value as (1 + n)/(10 + n) over the first n sets of
            weights, so that the first ones are soon forgotten. None: the plain mean.
        start_step, interval: the weights after `start_step` steps count, and those after each `interval` steps from
            there on.

    Attributes:
        count: the sets of weights in the average.
    """

    def __init__(self, model: nn.Module, decay: float | None, start_step: int, interval: int):
        self.model = model.module if isinstance(model, DistributedDataParallel) else model
        self.decay = decay
        self.start_step = start_step
        self.interval = interval
        self.count = 0
        self._averages = {name: weight.float().clone() for name, weight in self._weights().items()}

    @classmethod
    def from_config(cls, config: PretrainConfig, model: nn.Module) -> "WeightAverage | None":
        """The average that the configuration asks for, if any."""
        if config.weight_averaging is None:
            return None
        decay = config.averaging_decay if config.weight_averaging == "exponential" else None
        return cls(model, decay, config.averaging_start_step, config.averaging_interval)

    @torch.no_grad()
    def update(self, step_done: int):
        """Take the weights after so many steps into the average, if they count."""
        if step_done < self.start_step or (step_done - self.start_step) % self.interval:
            return
        weights = [local_part(weight).float() for weight in self._weights().values()]
        averages = [local_part(average) for average in self._averages.values()]
        if self.count == 0:
            torch._foreach_copy_(averages, weights)
        elif self.decay is None:
            get_swa_multi_avg_fn()(averages, weights, self.count)
        else:
            decay = min(self.decay, (1 + self.count) / (10 + self.count))
            torch._foreach_lerp_(averages, weights, 1 - decay)
        self.count += 1

    def tensors(self) -> dict[str, torch.Tensor]:
        """The averaged weights by the names that they have in the model before it was wrapped; those of the model as
        long as none count. Sharded ones stay so."""
        return self._averages if self.count else {name: weight.float() for name, weight in self._weights().items()}

    def state(self) -> Iterator[tuple[str, torch.Tensor]]:
        """What a checkpoint holds, whole and on the CPU; nothing as long as no weights count. Every process calls
        this."""
        if self.count:
            yield COUNT, torch.tensor(self.count)
            for name, average in self._averages.items():
                yield name, gathered(average)

    def load_state(self, tensors: dict[str, torch.Tensor]):
        """Set the average from what `state` gives, which all processes hold."""
        self._averages = {name: sharded_like(tensors[name], average) for name, average in self._averages.items()}
        self.count = int(tensors[COUNT])

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Let the model have the averaged weights for a while."""
        weights = self._weights()
        kept = {name: weight.clone() for name, weight in weights.items()}
        self._set(self.tensors())
        try:
            yield
        finally:
            self._set(kept)

    @torch.no_grad()
    def _set(self, tensors: dict[str, torch.Tensor]):
        for name, weight in self._weights().items():
            weight.copy_(tensors[name])

    def _weights(self) -> dict[str, torch.Tensor]:
        reshard(self.model)
        return {name: parameter.detach() for name, parameter in self.model.named_parameters()}


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """The memory of this process's part of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
