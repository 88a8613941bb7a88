# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""From the attention of tokens to slots and of slots to tokens to that of tokens to tokens."""

import torch
from transformers.modeling_outputs import ModelOutput


def token_attentions(outputs: ModelOutput) -> tuple[torch.Tensor, ...]:
    """
    Compose the unpack and pack attention of each layer: how much token i reads of token j through the slots.

    The map of unpack head h is `A_h = U_h mean_g(R_g)`, with the unpack attention U_h (n x l) and the pack attention
    R_g (l x n) of each pack head g. An unpack head projects all pack heads together, so that none of them belongs to
    it, whether their numbers are equal or not. Rows sum to one, and the columns of padding are zero.

    Args:
        outputs (`ModelOutput`):
            What a model with the eager attention gave with `output_attentions=True` and `output_pack_attentions=True`.

    Returns:
        `tuple(torch.FloatTensor)`: a map of shape `(batch, heads, n, n)` for each layer, as `attentions` of a
        Transformer with full attention; where a row holds several documents, `(documents, heads, n, n)` with the
        length n of the longest. The mean over dimension 1 is the map of a layer.

    Raises:
        ValueError: where `outputs` lacks either attention.
    """
    attentions, pack_attentions = (getattr(outputs, name, None) for name in ("attentions", "pack_attentions"))
    if not attentions or not pack_attentions:
        raise ValueError(
            "token_attentions needs both attentions: load the model with attn_implementation='eager' and call it with "
            "output_attentions=True and output_pack_attentions=True."
        )
    return tuple(
        torch.matmul(unpack, pack.mean(dim=1, keepdim=True))
        for unpack, pack in zip(attentions, pack_attentions, strict=True)
    )


__all__ = ["token_attentions"]
