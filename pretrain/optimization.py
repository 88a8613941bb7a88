"""The optimiser, its schedule, and one optimiser step over a global batch."""

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DistributedType
from torch import nn

from pretrain.configuration import PretrainConfig
from pretrain.masking import IGNORED


def build_optimizer(model: nn.Module, config: PretrainConfig) -> torch.optim.AdamW:
    """AdamW as in the paper's appendix: no weight decay on biases and norms, the parameters of one dimension."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups,
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        fused=True,
    )


def learning_rate(step: int, config: PretrainConfig) -> float:
    """The rate of step `step` (from 0): linear warm-up to the peak, then linear decay that would reach 0 at the step
    after the last. A function of the step alone, so there is no scheduler state to resume."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    return config.learning_rate * (config.max_steps - step) / max(1, config.max_steps - config.warmup_steps)


@dataclass(frozen=True)
class StepResult:
    """What an optimiser step did: loss (nats per predicted token of the global batch), norm of the gradient before
    clipping, tokens of the global batch, whether the weights were left alone as a number was not finite, and whether
    some process asks to end the run."""

    loss: float
    gradient_norm: float
    tokens: int
    skipped: bool
    stop: bool


def optimizer_step(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    micro_batches: list[dict],
    max_grad_norm: float,
    stop: bool = False,
) -> StepResult:
    """Forward and backward over the micro-batches of this process, then one update.

    The loss is the sum over all predicted tokens of the global batch divided by their number, whatever the numbers of
    processes and of micro-batches.

    Args:
        stop: whether this process asks to end the run.
    """
    counts = [sum(labelled(batch) for batch in micro_batches), sum(map(num_tokens, micro_batches)), int(stop)]
    num_labelled, tokens, stops = accelerator.reduce(torch.tensor(counts).to(accelerator.device)).tolist()
    # Gradients are averaged over the processes; a smaller divisor makes a sum of this mean.
    divisor = torch.tensor(num_labelled / accelerator.num_processes, device=accelerator.device)
    deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
    engine: Any = model  # of DeepSpeed, where it is one

    loss = torch.zeros((), device=accelerator.device)
    for number, batch in enumerate(micro_batches):
        last = number == len(micro_batches) - 1
        if deepspeed:
            engine.set_gradient_accumulation_boundary(last)
        with nullcontext() if last or deepspeed else accelerator.no_sync(model):
            micro_loss = model(**to_device(batch, accelerator.device), num_items_in_batch=divisor).loss
            if deepspeed:
                engine.backward(micro_loss)
            else:
                accelerator.backward(micro_loss)
        loss += micro_loss.detach()
    loss = accelerator.reduce(loss, reduction="mean")

    if deepspeed:  # it clips, and leaves the weights alone where a gradient is not finite
        engine.step()
        norm = engine.get_global_grad_norm()
        gradient_norm = math.nan if norm is None else float(norm)
        skipped = bool(engine.optimizer.overflow)
    else:
        gradient_norm = float(accelerator.clip_grad_norm_(model.parameters(), max_grad_norm))
        skipped = not (torch.isfinite(loss) and math.isfinite(gradient_norm))
        if not skipped:
            optimizer.step()
        optimizer.zero_grad()
    return StepResult(float(loss), gradient_norm, int(tokens), skipped, stops > 0)


def seed_step(seed: int, step: int, process_index: int):
    """Make dropout a function of (seed, step, process): there is no random state to keep in a checkpoint."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, process_index]).generate_state(1, np.uint64)[0]))


def labelled(batch: dict) -> int:
    """The number of tokens of a batch that are predicted."""
    return int((batch["labels"] != IGNORED).sum())


def num_tokens(batch: dict) -> int:
    """The number of tokens of a batch that are not padding."""
    return int(batch["attention_mask"].sum()) if "attention_mask" in batch else batch["input_ids"].numel()


def to_device(batch: dict, device: torch.device) -> dict:
    """A batch with its tensors on the device."""
    return {name: v.to(device, non_blocking=True) if torch.is_tensor(v) else v for name, v in batch.items()}


@torch.no_grad()
def evaluate(accelerator: Accelerator, model: nn.Module, batches) -> float:
    """The mean loss over all predicted tokens of the validation rows: sums and counts are added over the processes."""
    model.eval()
    totals = torch.zeros(2, dtype=torch.float64, device=accelerator.device)
    for batch in batches:
        totals[0] += model(**to_device(batch, accelerator.device), num_items_in_batch=1).loss
        totals[1] += labelled(batch)
    model.train()
    loss_sum, num_labelled = accelerator.reduce(totals, reduction="sum").tolist()
    return loss_sum / num_labelled
