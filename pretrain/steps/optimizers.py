"""The optimiser of a run."""

import torch
from torch import nn

from pretrain.configuration import PretrainConfig


def build_optimizer(model: nn.Module, config: PretrainConfig) -> torch.optim.Optimizer:
    """AdamW as in the paper's appendix, or StableAdamW (Wortsman et al., 2023, https://arxiv.org/abs/2304.13013).

    The latter shortens the step of a parameter whose gradient is larger than its second moment expects. There is no
    weight decay on biases and norms, the parameters of one dimension.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if _dimensions(p) > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if _dimensions(p) <= 1], "weight_decay": 0.0},
    ]
    rate, betas, epsilon = config.learning_rate, (config.adam_beta1, config.adam_beta2), config.adam_epsilon
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=rate, betas=betas, eps=epsilon, fused=True)
    from pytorch_optimizer import StableAdamW  # imports a hundred optimisers

    class ShardedStableAdamW(StableAdamW):
        """The library takes the root in place, which fails where each process holds a part of a mean."""

        @staticmethod
        def get_stable_adamw_rms(grad: torch.Tensor, exp_avg_sq: torch.Tensor, eps: float = 1e-16) -> torch.Tensor:
            return (grad.pow(2) / exp_avg_sq.clip(min=eps)).mean().sqrt().clip(min=1.0)

    optimizer = ShardedStableAdamW(groups, lr=rate, betas=betas, eps=epsilon)
    for group in optimizer.param_groups:
        group["step"] = 0  # where it counts its updates
    return optimizer


def _dimensions(parameter: nn.Parameter) -> int:
    """Of the whole parameter, which under DeepSpeed ZeRO-3 no process holds."""
    return len(getattr(parameter, "ds_shape", parameter.shape))
