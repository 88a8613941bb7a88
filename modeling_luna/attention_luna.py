# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""How a batch is laid out for each attention implementation, and the attention functions that Luna brings along.

`eager_attention_forward` is the plain attention that every implementation must equal.
"""

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.attention.varlen import varlen_attn
from transformers import PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import is_flash_attention_requested

from .kernels_luna import fast_dropout, is_plain, linear_by_document
from .releases_luna import create_bidirectional_mask
from .rows_luna import RaggedRows, prepare_rows, smaller_size, used_slots
from .tracing_luna import is_recorded, is_vmapped, runs_eagerly


class RowBounds(NamedTuple):
    """Where the ragged rows of queries and keys begin and end, by the names that attention implementations use."""

    cu_seq_lens_q: torch.Tensor
    cu_seq_lens_k: torch.Tensor
    max_length_q: int
    max_length_k: int


class AttentionPlan(NamedTuple):
    """How the queries and keys of one attention, pack or unpack, are laid out.

    Args:
        mask: what the attention implementation takes as a mask.
        queries, keys: documents that are padded for the attention; None where the states stay as they are.
        bounds: of queries and keys that lie one after another without padding; None where they are padded.
        by_document: whether `attention_by_document` takes the place of the implementation.
    """

    mask: Any = None
    queries: RaggedRows | None = None
    keys: RaggedRows | None = None
    bounds: RowBounds | None = None
    by_document: bool = False

    def pad_queries(self, states: torch.Tensor) -> torch.Tensor:
        return states if self.queries is None else self.queries.pad(states)

    def pad_keys(self, states: torch.Tensor) -> torch.Tensor:
        return states if self.keys is None else self.keys.pad(states)

    def unpad_queries(self, states: torch.Tensor) -> torch.Tensor:
        return states if self.queries is None else self.queries.unpad(states)

    def kernel_arguments(self) -> dict[str, Any]:
        return {} if self.bounds is None else self.bounds._asdict()


class BatchLayout(NamedTuple):
    """How a batch is laid out: made once in a forward pass, and handed to embeddings, layers and heads.

    A tuple of tuples, so that whatever moves tensors between devices finds them.

    Args:
        token_mask: (batch, n), False at padding; None where every position is a token.
        documents: of rows that may hold several; None where every row is one document.
        num_slots: l, the slots of a document.
        slot_mask: (documents, l), False at slots that a document does not use; None where it uses all.
        pack, unpack: the layouts of the two attentions.
        tokens: what a layer computes, padding left out; None where it computes every position.
    """

    token_mask: torch.Tensor | None
    documents: RaggedRows | None
    num_slots: int
    slot_mask: torch.Tensor | None
    pack: AttentionPlan = AttentionPlan()
    unpack: AttentionPlan = AttentionPlan()
    tokens: RaggedRows | None = None

    @property
    def document_mask(self) -> torch.Tensor | None:
        """(documents, n), False at padding."""
        return self.token_mask if self.documents is None else self.documents.mask

    def by_document(self, states: torch.Tensor) -> torch.Tensor:
        """(batch, n, ...) -> (documents, n, ...)"""
        return states if self.documents is None else self.documents.pad(states)

    def by_row(self, states: torch.Tensor) -> torch.Tensor:
        """(documents, n, ...) -> (batch, n, ...)"""
        return states if self.documents is None else self.documents.unpad(states)

    def count_positions(self, inputs: torch.Tensor) -> torch.Tensor:
        """(batch, n) or (1, n), the place of each token in its document, whatever the side of the padding."""
        if self.documents is not None:
            return self.documents.positions()
        if self.token_mask is not None:
            return (self.token_mask.long().cumsum(dim=-1) - 1).clamp(min=0)
        return torch.arange(inputs.shape[1], device=inputs.device).unsqueeze(0)

    def remove_padding(self, hidden_states: torch.Tensor, packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Lay both states out as (1, states, hidden), if the attention takes them so."""
        if self.tokens is None:
            return hidden_states, packed
        return self.tokens.flatten(hidden_states), packed.flatten(0, 1).unsqueeze(0)

    def restore_padding(self, hidden_states: torch.Tensor, packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Undo `remove_padding`, with zeros at padding."""
        if self.tokens is None:
            return hidden_states, packed
        return self.tokens.unflatten(hidden_states), packed.squeeze(0).unflatten(0, (-1, self.num_slots))


def lay_out_batch(
    encoder: PreTrainedModel,
    inputs: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    cu_seq_lens_k: torch.Tensor | None = None,
    max_length_q: int | None = None,
    max_length_k: int | None = None,
    num_tokens: int | None = None,
    **kwargs,
) -> BatchLayout:
    """Check the mask and the boundaries of a batch, and plan the attention of a [`LunaModel`].

    Args:
        inputs: (batch, n, ...), ids or embeddings.
        attention_mask and further arguments: see [`LunaModel.forward`].
    """
    config = encoder.config
    token_mask, documents = prepare_rows(
        inputs, attention_mask, position_ids, cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k, num_tokens
    )
    width = inputs.shape[1] if documents is None else documents.max_length
    num_slots, slot_mask = config.projection_length, None
    if config.dynamic_projection:
        num_slots = smaller_size(num_slots, width)
    layout = BatchLayout(token_mask, documents, num_slots, slot_mask)
    if layout.document_mask is not None and config.dynamic_projection:
        layout = layout._replace(slot_mask=used_slots(layout.document_mask, num_slots))

    by_document = documents is not None and attends_by_document(encoder, documents)
    if by_document or (is_flash_attention_requested(config) and layout.document_mask is not None):
        return plan_without_padding(layout, by_document)
    return plan_with_masks(layout, encoder, inputs)


def plan_without_padding(layout: BatchLayout, by_document: bool) -> BatchLayout:
    """Tokens and slots one after another, for kernels that take the boundaries of their rows.

    Transformers' own way would take the padding out of the queries with the mask of the keys.
    """
    tokens = layout.documents
    if tokens is None:
        tokens = RaggedRows.from_mask(layout.token_mask)
    num_slots, longest = layout.num_slots, tokens.max_length
    of_tokens, of_slots = pair_bounds(tokens.cu_seq_lens, num_slots, layout.slot_mask)
    return layout._replace(
        pack=AttentionPlan(bounds=RowBounds(of_slots, of_tokens, num_slots, longest), by_document=by_document),
        unpack=AttentionPlan(bounds=RowBounds(of_tokens, of_slots, longest, num_slots), by_document=by_document),
        tokens=tokens,
    )


def plan_with_masks(layout: BatchLayout, encoder: PreTrainedModel, inputs: torch.Tensor) -> BatchLayout:
    """Padded documents, and the masks of the attention implementation over their tokens and slots."""
    mask, config = layout.document_mask, encoder.config
    num_documents, width = inputs.shape[:2] if mask is None else mask.shape
    # All queries have the same line of the mask: one is enough, but for flex attention, which counts them.
    every_query = config._attn_implementation == "flex_attention"

    def states(count: int) -> torch.Tensor:
        """Stand for states, of which Transformers reads shape, dtype and device."""
        return torch.empty(num_documents, count, 0, dtype=encoder.dtype, device=inputs.device)

    def plan_mask(num_queries: int, num_keys: int, key_mask: torch.Tensor | None) -> Any:
        # A mask that is true everywhere can be left out, but checking that forces a device synchronisation.
        may_look = (inputs.device.type == "cpu" or not encoder.training) and not is_vmapped(key_mask)
        return create_bidirectional_mask(
            config=config,
            inputs_embeds=states(num_queries if every_query else 1),
            attention_mask=key_mask,
            encoder_hidden_states=states(num_keys),
            allow_is_bidirectional_skip=may_look or key_mask is None,
        )

    pack_mask = plan_mask(layout.num_slots, width, mask)
    unpack_mask = plan_mask(width, layout.num_slots, layout.slot_mask)
    return layout._replace(
        pack=AttentionPlan(pack_mask, keys=layout.documents),
        unpack=AttentionPlan(unpack_mask, queries=layout.documents),
    )


def pair_bounds(
    cu_seq_lens: torch.Tensor, num_slots: int, slot_mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Boundaries of tokens and of slots, (2 documents + 1) each, of which the k-th rows attend to each other.

    Each document gives two pairs: its tokens and the slots that it uses, and no tokens and the slots that it does not
    use. So all slots stay where they are, and no device synchronisation is needed to count the used ones.

    Args:
        cu_seq_lens: (documents + 1), of the tokens.
        slot_mask: (documents, l), False at slots that are not used; None where all are.
    """
    lengths = cu_seq_lens.diff()
    used = torch.full_like(lengths, num_slots) if slot_mask is None else slot_mask.sum(dim=1)
    token_bounds, slot_bounds = (
        nn.functional.pad(torch.stack(pair, dim=1).flatten().cumsum(dim=0), (1, 0)).int()
        for pair in ((lengths, torch.zeros_like(lengths)), (used, num_slots - used))
    )
    return token_bounds, slot_bounds


def attends_by_document(encoder: PreTrainedModel, documents: RaggedRows) -> bool:
    """Whether `attention_by_document` can take the place of sdpa over padded documents, and is faster."""
    attentions = [
        attention for layer in encoder.layers for attention in (layer.pack_attention, layer.unpack_attention)
    ]
    trained = any(attention.training for attention in attentions)
    if (
        encoder.config._attn_implementation != "sdpa"
        or not runs_eagerly()
        or (trained and encoder.config.attention_probs_dropout_prob > 0.0)
    ):
        return False
    if documents.mask.device.type != "cpu":
        head_dims = {attention.head_dim for attention in attentions}
        return has_varlen_kernel(documents.mask.device, encoder.dtype, head_dims)
    if any(layer._compiled_call_impl is not None for layer in encoder.layers):  # each number of documents is compiled
        return False
    return 0 < 1.25 * documents.places.numel() < documents.mask.numel()


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


def softmax(scores: torch.Tensor) -> torch.Tensor:
    """Softmax over the last dimension, at least in float32."""
    return nn.functional.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))


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
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention without dropout of ragged rows, which lie one after another as (1, heads, states, head_dim).

    It equals `eager_attention_forward` over the padded rows. A GPU does it in one kernel, a CPU with a call for each
    row.
    """
    if query.device.type != "cpu":
        query, key, value = (heads.squeeze(0).transpose(0, 1) for heads in (query, key, value))
        bounds = (cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k)
        context = varlen_attn(query, key, value, *bounds, scale=scaling)
        return context.unsqueeze(0), None
    lengths_q, lengths_k = cu_seq_lens_q.diff().tolist(), cu_seq_lens_k.diff().tolist()
    rows = zip(query.split(lengths_q, dim=2), key.split(lengths_k, dim=2), value.split(lengths_k, dim=2), strict=True)
    contexts = [
        nn.functional.scaled_dot_product_attention(*row, scale=scaling) if keys else torch.zeros_like(row[0])
        for row, queries, keys in zip(rows, lengths_q, lengths_k, strict=True)
        if queries
    ]
    return torch.cat(contexts, dim=2).transpose(1, 2), None


def absorbs_projections(attention: nn.Module, hidden_states: torch.Tensor, plan: AttentionPlan) -> bool:
    """Whether `absorbed_attention` can take the place of an unpack attention, and is faster.

    It takes 2 l h d multiply-adds for each token, with h heads, instead of 2 d^2 + 2 l d. Up to half of them the gain
    is more than what writing out the weights costs. For short rows the folded maps, 2 l h d numbers a row, would take
    more memory than the states.
    """
    config: Any = attention.config
    num_weights = config.projection_length * config.num_attention_heads  # of a token
    return (
        2 * num_weights <= config.hidden_size
        and (is_recorded() or hidden_states.shape[1] >= num_weights)
        and config._attn_implementation == "sdpa"
        and not (attention.training and config.attention_probs_dropout_prob > 0.0)
        and plan.queries is None
        and plan.bounds is None
        and is_plain(attention.q_proj)
        and is_plain(attention.out_proj)
    )


def absorbed_attention(
    hidden_states: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    q_proj: nn.Linear,
    out_proj: nn.Linear,
) -> torch.Tensor:
    """`out_proj(attention(q_proj(hidden_states), key, value))`, with both maps folded into the keys and values.

    Args:
        hidden_states: (documents, n, hidden).
        key, value: (documents, heads, l, head_dim).
        mask: (documents, 1, 1, l), True where a slot is used.
    """
    head_dim = key.shape[-1]
    # In the equations: batch, heads, l, head dimension e, hidden size d.
    key = key * scaling
    query_weight = q_proj.weight.unflatten(0, (-1, head_dim))
    query_bias = q_proj.bias.unflatten(0, (-1, head_dim))
    out_weight = out_proj.weight.unflatten(1, (-1, head_dim))
    to_scores = torch.einsum("bhle,hed->bhld", key, query_weight)
    to_output = torch.einsum("bhle,dhe->bdhl", value, out_weight)

    scores = linear_by_document(hidden_states, to_scores.flatten(1, 2)).unflatten(-1, (to_scores.shape[1], -1))
    bias = torch.einsum("bhle,he->bhl", key, query_bias).unsqueeze(1)
    scores = scores + bias.to(scores.dtype)  # (batch, n, heads, l)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights = softmax(scores).to(scores.dtype)
    output = linear_by_document(weights.flatten(2), to_output.flatten(2))
    return output + out_proj.bias.to(output.dtype)
