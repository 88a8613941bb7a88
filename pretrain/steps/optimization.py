"""One optimiser step over a global batch, and the validation loss."""

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DistributedType
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from torch.distributed.tensor import DTensor

from common.labels import IGNORED


@dataclass(frozen=True)
class StepResult:
    """What an optimiser step did, over the global batch. All are numbers on the device.

    Args:
        loss: nats per predicted token.
        gradient_norm: before clipping.
        skipped: whether the weights were left alone, as a number was not finite.
        correct: labelled tokens predicted right; None where it was not asked for.
        tokens: without padding.
        places: with padding.
        labelled: tokens that are predicted.
        rows: of the batch.
        stops: processes that ask to end the run.
        microseconds: of training before the step, on the main process's clock.
    """

    loss: torch.Tensor
    gradient_norm: torch.Tensor
    skipped: torch.Tensor
    correct: torch.Tensor | None
    tokens: torch.Tensor
    places: torch.Tensor
    labelled: torch.Tensor
    rows: torch.Tensor
    stops: torch.Tensor
    microseconds: torch.Tensor


def optimizer_step(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    micro_batches: list[dict],
    max_grad_norm: float,
    stop: bool = False,
    seconds: float = 0.0,
    count_correct: bool = False,
) -> StepResult:
    """Forward and backward over the micro-batches of this process, then one update.

    The loss is the sum over all predicted tokens of the global batch divided by their number, whatever the numbers of
    processes and of micro-batches. Nothing waits for the device, but for optimisers that cannot skip by themselves
    (see `update`) and for DeepSpeed, which waits in each step.

    Args:
        micro_batches: as arguments of the model, on the CPU.
        stop: whether this process asks to end the run.
        seconds: of training before the step; those of the main process count for all.
        count_correct: whether the predictions that are right are counted.
    """
    device = accelerator.device
    micro_batches = [{**batch, **known_counts(batch)} for batch in micro_batches]
    counts = [
        sum(map(num_tokens, micro_batches)),
        sum(batch["input_ids"].numel() for batch in micro_batches),
        sum(batch["num_predicted"] for batch in micro_batches),
        sum(len(batch["input_ids"]) for batch in micro_batches),
        int(stop),
        round(1e6 * seconds) if accelerator.is_main_process else 0,
    ]
    sent = to_device({"counts": torch.tensor(counts)}, device)
    tokens, places, num_labelled, rows, stops, microseconds = accelerator.reduce(sent["counts"])
    # Gradients are averaged over the processes; a smaller divisor makes a sum of this mean.
    divisor = num_labelled / accelerator.num_processes
    deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
    engine: Any = model  # of DeepSpeed, where it is one

    sums = torch.zeros(2, device=device)  # of losses and of right predictions
    for number, batch in enumerate(micro_batches):
        last = number == len(micro_batches) - 1
        if deepspeed:
            engine.set_gradient_accumulation_boundary(last)
        inputs = to_device(batch, device)
        with nullcontext() if last or deepspeed else accelerator.no_sync(model):
            outputs = model(**inputs, num_items_in_batch=divisor)
            if deepspeed:
                engine.backward(outputs.loss)
            else:
                accelerator.backward(outputs.loss)
        sums[0] += outputs.loss.detach()
        if count_correct:
            sums[1] += num_correct(outputs.logits, inputs["labels"], batch["num_predicted"])
    loss, correct = accelerator.reduce(sums)
    loss = loss / accelerator.num_processes

    if deepspeed:  # it clips, and leaves the weights alone where a gradient is not finite
        engine.step()
        norm = engine.get_global_grad_norm()
        gradient_norm = torch.full((), math.nan if norm is None else float(norm), device=device)
        skipped = torch.full((), bool(engine.optimizer.overflow), device=device)
    else:
        gradient_norm = accelerator.clip_grad_norm_(model.parameters(), max_grad_norm)
        if isinstance(gradient_norm, DTensor):
            gradient_norm = gradient_norm.full_tensor()
        skipped = ~(torch.isfinite(loss) & torch.isfinite(gradient_norm))
        update(optimizer, skipped)
    return StepResult(
        loss=loss,
        gradient_norm=gradient_norm,
        skipped=skipped,
        correct=correct if count_correct else None,
        tokens=tokens,
        places=places,
        labelled=num_labelled,
        rows=rows,
        stops=stops,
        microseconds=microseconds,
    )


def update(optimizer: Any, skipped: torch.Tensor):
    """Update the weights, unless the step is to be skipped; then neither they nor the optimiser's state change.

    The fused optimisers of torch look at this flag on the device, as they do for gradient scaling. For others the
    host has to know it and waits for the device.
    """
    base = optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer
    if getattr(base, "_step_supports_amp_scaling", False):
        base.found_inf = skipped.float()
        optimizer.step()
    elif not skipped:
        optimizer.step()
    optimizer.zero_grad()


def known_counts(batch: dict) -> dict[str, int]:
    """What the model would have to ask the device for, counted while the batch is on the CPU."""
    counts = {"num_predicted": labelled(batch)}
    if "attention_mask" in batch:
        counts["num_tokens"] = num_tokens(batch)
    return counts


def num_correct(logits: torch.Tensor, labels: torch.Tensor, num_predicted: int) -> torch.Tensor:
    """How many of the labelled tokens have the highest logit.

    Args:
        logits: (rows, length, vocabulary), or (labelled tokens, vocabulary) under `sparse_prediction`.
        labels: (rows, length).
        num_predicted: how many of them are labelled.
    """
    if logits.ndim == 2:
        places = torch.nonzero_static((labels != IGNORED).flatten(), size=num_predicted).squeeze(1)
        labels = labels.flatten()[places]
    return (logits.argmax(dim=-1) == labels).sum()


def seed_step(seed: int, step: int, process_index: int):
    """Make dropout a function of (seed, step, process): there is no random state to keep in a checkpoint."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, process_index]).generate_state(1, np.uint64)[0]))


def labelled(batch: dict) -> int:
    """The number of tokens of a batch that are predicted."""
    return int(np.count_nonzero(batch["labels"].numpy() != IGNORED))


def num_tokens(batch: dict) -> int:
    """The number of tokens of a batch that are not padding."""
    if "attention_mask" not in batch:
        return int(batch["input_ids"].numel())
    return int(np.count_nonzero(batch["attention_mask"].numpy()))


def to_device(batch: dict, device: torch.device) -> dict:
    """A batch with its tensors on the device, sent there without waiting."""

    def send(tensor: torch.Tensor) -> torch.Tensor:
        if device.type == "cuda" and not tensor.is_pinned():
            tensor = tensor.pin_memory()
        return tensor.to(device, non_blocking=True)

    return {name: send(value) if torch.is_tensor(value) else value for name, value in batch.items()}


@torch.no_grad()
def evaluate(accelerator: Accelerator, model: nn.Module, batches) -> dict[str, float]:
    """The mean loss over all predicted tokens of the validation rows and the share of them predicted right: sums and
    counts are added over the processes."""
    model.eval()
    totals = torch.zeros(3, dtype=torch.float64, device=accelerator.device)
    for batch in batches:
        batch = {**batch, **known_counts(batch)}
        inputs = to_device(batch, accelerator.device)
        outputs = model(**inputs, num_items_in_batch=1)
        totals[0] += outputs.loss
        totals[1] += num_correct(outputs.logits, inputs["labels"], batch["num_predicted"])
        totals[2] += batch["num_predicted"]
    model.train()
    loss_sum, correct, num_labelled = accelerator.reduce(totals, reduction="sum").tolist()
    return {"validation_loss": loss_sum / num_labelled, "validation_accuracy": correct / num_labelled}
