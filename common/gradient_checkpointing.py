"""Gradient checkpointing of whole layers, or of what is cheap to compute again."""

from functools import partial
from typing import Any

import torch
import torch.nn.attention.varlen  # registers its operation
from torch.utils.checkpoint import create_selective_checkpoint_contexts
from transformers import PreTrainedModel


aten = torch.ops.aten
# Products of states with weights, some of which are convolutions (`kernels_luna.onednn_linear`), and torch's own fused
# attention. Not `bmm`, by which attention weights are written out.
EXPENSIVE = [
    aten.mm.default,
    aten.addmm.default,
    aten.convolution.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.torch_attn._varlen_attn.default,
]


def enable_checkpointing(model: PreTrainedModel, selective: bool = False):
    """Let the backward pass compute again what the forward pass then need not keep.

    Args:
        selective: keep the results of `EXPENSIVE` operations, and of a layer compute only the others again: norms,
            activations, dropout, attention weights that are written out. Else the layers' inputs alone are kept. A
            model that changes such a result in place cannot be trained so, see `pretrain.launch` for an example.

    Raises:
        ValueError: where the model has no gradient checkpointing.
    """
    options: dict[str, Any] = {"use_reentrant": False}
    if selective:
        options["context_fn"] = partial(create_selective_checkpoint_contexts, EXPENSIVE)
    model.activation_checkpointing_enable(options)
