# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""How states are laid out for each attention implementation, and the attention functions that Luna brings along."""

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.attention.varlen import varlen_attn
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .kernels_luna import fast_dropout
from .rows_luna import RaggedRows


class AttentionPlan(NamedTuple):
    """How the states of queries and keys are laid out for the attention implementation.

    Args:
        mask: what the implementation takes as a mask, over the states as they are laid out.
        queries, keys: ragged rows that are to be laid out; None where the states are left as they are, (batch, time).
        varlen: lays ragged rows out one after another, for flash attention, instead of padding them.
        by_document: lays them out so for `attention_by_document` instead.
    """

    mask: Any = None
    queries: RaggedRows | None = None
    keys: RaggedRows | None = None
    varlen: bool = False
    by_document: bool = False

    def arrange(self, states: torch.Tensor, rows: RaggedRows | None) -> torch.Tensor:
        if rows is None:
            return states
        return rows.flatten(states) if self.varlen else rows.pad(states)

    def restore(self, context: torch.Tensor) -> torch.Tensor:
        if self.queries is None:
            return context
        return self.queries.unflatten(context) if self.varlen else self.queries.unpad(context)

    def kernel_kwargs(self) -> dict[str, Any]:
        if not self.varlen:
            return {}
        return {
            "cu_seq_lens_q": self.queries.cu_seq_lens.int(),
            "cu_seq_lens_k": self.keys.cu_seq_lens.int(),
            "max_length_q": self.queries.max_length,
            "max_length_k": self.keys.max_length,
        }


def pair_rows(tokens: RaggedRows, num_slots: int, slot_mask: torch.Tensor | None) -> tuple[RaggedRows, RaggedRows]:
    """Ragged rows of tokens and of slots of which the k-th of the ones attends to the k-th of the others.

    Each document gives two pairs: its tokens and the slots that it uses, and no tokens and the slots that it does not
    use. So all slots stay where they are, and a GPU need not be waited for to know how many are used.

    Args:
        tokens: of the documents.
        slot_mask: (documents, l), False at slots that are not used; None where all are.
    """
    lengths = tokens.cu_seq_lens.diff()
    used = torch.full_like(lengths, num_slots) if slot_mask is None else slot_mask.sum(dim=1)
    token_bounds, slot_bounds = (
        nn.functional.pad(torch.stack(pair, dim=1).flatten().cumsum(dim=0), (1, 0))
        for pair in ((lengths, torch.zeros_like(lengths)), (used, num_slots - used))
    )
    slots = RaggedRows.build((len(lengths), num_slots), None, slot_bounds, num_slots)
    return tokens._replace(cu_seq_lens=token_bounds), slots


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """The dtype to compute in what would lose too much in float16 or bfloat16."""
    return torch.promote_types(dtype, torch.float32)


def softmax(scores: torch.Tensor) -> torch.Tensor:
    """Softmax over the last dimension, at least in float32."""
    return nn.functional.softmax(scores, dim=-1, dtype=at_least_float32(scores.dtype))


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention with the weights written out; the mask is additive or boolean (True: attend)."""
    attention_weights = torch.matmul(query * scaling, key.transpose(-1, -2))  # (batch, heads, queries, keys)
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        attention_weights = attention_weights.masked_fill(~attention_mask, torch.finfo(query.dtype).min)
    elif attention_mask is not None:
        attention_weights = attention_weights + attention_mask
    attention_weights = softmax(attention_weights).to(query.dtype)
    attention_weights = fast_dropout(attention_weights, dropout, module.training)
    context = torch.matmul(attention_weights, value)
    return context.transpose(1, 2).contiguous(), attention_weights


def has_varlen_kernel(device: torch.device, dtype: torch.dtype, head_dims: set[int]) -> bool:
    """Whether `varlen_attn` takes heads of these sizes, of this dtype or of autocast's, on this device."""
    if device.type != "cuda":
        return False
    if torch.is_autocast_enabled("cuda"):
        dtype = torch.get_autocast_dtype("cuda")
    return (
        dtype in (torch.float16, torch.bfloat16)
        and all(head_dim <= 256 and head_dim % 8 == 0 for head_dim in head_dims)
        and torch.version.cuda is not None
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


def attention_by_document(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    scaling: float,
    cu_seq_lens_q: torch.Tensor,
    cu_seq_lens_k: torch.Tensor,
    max_length_q: int,
    max_length_k: int,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[torch.Tensor, None]:
    """Attention without dropout of ragged rows, which lie one after another as (1, heads, states, head_dim).

    A GPU does it in one kernel, a CPU with a call for each row.
    """
    if query.device.type != "cpu":
        states = [heads.squeeze(0).transpose(0, 1) for heads in (query, key, value)]
        context = varlen_attn(*states, cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k, scale=scaling)
        return context.unsqueeze(0), None
    lengths_q, lengths_k = cu_seq_lens_q.diff().tolist(), cu_seq_lens_k.diff().tolist()
    rows = zip(query.split(lengths_q, dim=2), key.split(lengths_k, dim=2), value.split(lengths_k, dim=2), strict=True)
    contexts = [
        nn.functional.scaled_dot_product_attention(*row, scale=scaling) if keys else torch.zeros_like(row[0])
        for row, queries, keys in zip(rows, lengths_q, lengths_k, strict=True)
        if queries
    ]
    return torch.cat(contexts, dim=2).transpose(1, 2), None
