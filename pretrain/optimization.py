"""The optimiser, its schedule, and one optimiser step over a global batch."""

from dataclasses import dataclass

import torch
from accelerate import Accelerator
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
    clipping, tokens of the global batch, and whether the weights were left alone as a number was not finite."""

    loss: float
    gradient_norm: float
    tokens: int
    skipped: bool


def optimizer_step(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: dict[str, torch.Tensor],
    max_grad_norm: float,
) -> StepResult:
    """Forward and backward over the micro-batches of this process, then one update.

    The loss is the sum over all predicted tokens of the global batch divided by their number, whatever the numbers of
    processes and of accumulation steps.

    Args:
        batch: tensors of (accumulation, micro-batch, length).
    """
    counts = torch.stack([(batch["labels"] != IGNORED).sum(), batch["attention_mask"].sum()])
    labelled, tokens = accelerator.reduce(counts.to(accelerator.device), reduction="sum").tolist()
    accumulation = len(batch["labels"])
    # Gradients are averaged over processes and accumulation steps; a smaller divisor makes sums of these means.
    divisor = torch.tensor(labelled / (accelerator.num_processes * accumulation), device=accelerator.device)

    loss = torch.zeros((), device=accelerator.device)
    skipped = False
    for step in range(accumulation):
        inputs = model_inputs({name: tensor[step] for name, tensor in batch.items()}, accelerator.device)
        with accelerator.accumulate(model):
            micro_loss = model(**inputs, num_items_in_batch=divisor).loss
            accelerator.backward(micro_loss)
            loss += micro_loss.detach()
            if accelerator.sync_gradients:
                gradient_norm = float(accelerator.clip_grad_norm_(model.parameters(), max_grad_norm))
                loss = accelerator.reduce(loss, reduction="mean") / accumulation
                skipped = not (torch.isfinite(loss) and torch.isfinite(torch.tensor(gradient_norm)))
            if not skipped:
                optimizer.step()
            optimizer.zero_grad()
    return StepResult(float(loss), gradient_norm, int(tokens), skipped)


def model_inputs(batch: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """Move a batch to the device, without its mask where nothing is padding: attention is faster then."""
    if batch["attention_mask"].all():
        batch = {name: tensor for name, tensor in batch.items() if name != "attention_mask"}
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


@torch.no_grad()
def evaluate(accelerator: Accelerator, model: nn.Module, batches) -> float:
    """The mean loss over all predicted tokens of the validation rows: sums and counts are added over the processes."""
    model.eval()
    totals = torch.zeros(2, dtype=torch.float64, device=accelerator.device)
    for batch in batches:
        inputs = model_inputs(batch, accelerator.device)
        totals[0] += model(**inputs, num_items_in_batch=1).loss
        totals[1] += (inputs["labels"] != IGNORED).sum()
    model.train()
    loss_sum, labelled = accelerator.reduce(totals, reduction="sum").tolist()
    return loss_sum / labelled
