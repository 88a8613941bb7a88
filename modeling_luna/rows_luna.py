# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""Rows of different lengths: padding, several documents in a row, and the slots that a document uses."""

from typing import NamedTuple

import torch
from torch import nn

from .tracing_luna import can_be_read, is_recorded, is_vmapped, without_transforms


class RaggedRows(NamedTuple):
    """Where rows of different lengths lie in a batch of states (batch, width, ...).

    The states, read row by row and without padding, hold one ragged row after another: the documents of a batch, of
    which one row of the batch may hold several.

    A tuple, so that whatever moves tensors between devices finds them.

    Args:
        shape: (batch, width).
        indices: places in the flattened batch, padding left out; None where there is no padding.
        cu_seq_lens: (rows + 1), where each row begins and ends among the places of `indices`.
        max_length: at least the length of the longest row.
        mask: (rows, max_length), which cells of the padded form hold a state.
        cells: (rows, max_length), the place in the flattened batch that fills each of these cells; cells outside
            the mask repeat a state of their own row.
        places: (states), the cell of the padded form that each state is in.
    """

    shape: tuple[int, ...]
    indices: torch.Tensor | None
    cu_seq_lens: torch.Tensor
    max_length: int
    mask: torch.Tensor
    cells: torch.Tensor
    places: torch.Tensor

    @classmethod
    def build(
        cls, shape: tuple[int, ...], indices: torch.Tensor | None, cu_seq_lens: torch.Tensor, max_length: int
    ) -> "RaggedRows":
        device = cu_seq_lens.device
        starts, lengths = cu_seq_lens[:-1].unsqueeze(1), cu_seq_lens.diff().unsqueeze(1)
        steps = torch.arange(max_length, device=device)
        num_states = shape[0] * shape[1] if indices is None else indices.shape[0]
        cells = (starts + torch.minimum(steps, (lengths - 1).clamp(min=0))).clamp(max=num_states - 1)
        states = torch.arange(num_states, device=device)
        rows = torch.searchsorted(cu_seq_lens[1:], states, right=True)
        return cls(
            shape=shape,
            indices=indices,
            cu_seq_lens=cu_seq_lens,
            max_length=max_length,
            mask=steps < lengths,
            cells=cells if indices is None else indices[cells],
            places=rows * max_length + states - cu_seq_lens[rows],
        )

    @classmethod
    def from_mask(cls, mask: torch.Tensor) -> "RaggedRows":
        """One ragged row for each row of a mask (batch, width), whose True are states.

        A row without any keeps its first one: attention kernels differ in what they make of an empty row.
        """
        batch_size, width = mask.shape
        mask = mask | (~mask.any(dim=1, keepdim=True) & (torch.arange(width, device=mask.device) == 0))
        cu_seq_lens = nn.functional.pad(mask.sum(dim=1).cumsum(dim=0), (1, 0))
        return cls.build((batch_size, width), mask.flatten().nonzero().squeeze(1), cu_seq_lens, width)

    def pad(self, states: torch.Tensor) -> torch.Tensor:
        """(batch, width, ...) -> (rows, max_length, ...)"""
        return take(states.flatten(0, 1), self.cells)

    def unpad(self, states: torch.Tensor) -> torch.Tensor:
        """(rows, max_length, ...) -> (batch, width, ...), zeros at padding"""
        return self._spread(take(states.flatten(0, 1), self.places))

    def flatten(self, states: torch.Tensor) -> torch.Tensor:
        """(batch, width, ...) -> (1, states, ...)"""
        states = states.flatten(0, 1)
        return (states if self.indices is None else take(states, self.indices)).unsqueeze(0)

    def unflatten(self, states: torch.Tensor) -> torch.Tensor:
        """(1, states, ...) -> (batch, width, ...), zeros at padding"""
        return self._spread(states.squeeze(0))

    def positions(self) -> torch.Tensor:
        """(batch, width), the place of each state within its row; 0 at padding"""
        return self._spread(self.places % self.max_length)

    def _spread(self, states: torch.Tensor) -> torch.Tensor:
        if self.indices is not None:
            batch = states.new_zeros(self.shape[0] * self.shape[1], *states.shape[1:])
            states = batch.index_copy(0, self.indices, states)
        return states.unflatten(0, self.shape)


def take(states: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """states[places], with a backward pass that is several times faster."""
    return states.index_select(0, places.flatten()).unflatten(0, places.shape)


def smaller_size(limit: int, size: int | torch.SymInt | torch.Tensor) -> int | torch.SymInt | torch.Tensor:
    """The minimum, as an expression where a graph is recorded; the sizes of torch.jit.trace are tensors."""
    return size.clamp(max=limit) if isinstance(size, torch.Tensor) else torch.sym_min(limit, size)


def used_slots(document_mask: torch.Tensor, num_slots: int) -> torch.Tensor:
    """Which of its slots a document uses, (documents, l), where `document_mask` (documents, n) tells its tokens.

    A document without a token has one slot all the same, so that whatever is computed from its slots is finite.
    """
    lengths = document_mask.sum(dim=-1, keepdim=True).clamp(min=1)
    return torch.arange(num_slots, device=document_mask.device) < lengths


def first_positions(
    position_ids: torch.Tensor, attention_mask: torch.Tensor | None, documents: RaggedRows | None
) -> torch.Tensor:
    """The position of the first token of each document, (documents, 1); (1, 1) where it is the same for all rows."""
    if documents is not None:
        return documents.pad(position_ids.expand(documents.shape))[:, :1]
    if attention_mask is not None:
        return position_ids.expand_as(attention_mask).gather(1, attention_mask.int().argmax(dim=1, keepdim=True))
    return position_ids[:, :1]


def prepare_rows(
    inputs: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    cu_seq_lens_k: torch.Tensor | None = None,
    max_length_q: int | None = None,
    max_length_k: int | None = None,
    num_tokens: int | None = None,
    **kwargs,
) -> tuple[torch.Tensor | None, RaggedRows | None]:
    """Check the mask and the boundaries of a batch (see [`LunaModel.forward`]).

    Returns the mask as booleans, and the documents where a row may hold several.
    """
    shape = tuple(inputs.shape[:2])
    if attention_mask is not None:
        if attention_mask.shape != shape:
            raise ValueError(
                f"attention_mask must have the shape (batch, n) = {shape}, not {tuple(attention_mask.shape)}: 1 for "
                "tokens, 0 for padding."
            )
        attention_mask = attention_mask.bool()
    if position_ids is not None and position_ids.shape not in (shape, (1, shape[1])):
        raise ValueError(
            f"position_ids must have the shape (batch, n) = {shape} or (1, n), not {tuple(position_ids.shape)}."
        )
    cu_seq_lens = cu_seq_lens_q if cu_seq_lens_q is not None else cu_seq_lens_k
    if cu_seq_lens is not None:
        cu_seq_lens = cu_seq_lens.to(inputs.device)
    max_length = max_length_q if max_length_q is not None else max_length_k
    return attention_mask, locate_documents(shape, attention_mask, position_ids, cu_seq_lens, max_length, num_tokens)


SEVERAL_DOCUMENTS = (
    "Several documents in a row: give cu_seq_lens_q and max_length_q to a compiled model; torch.jit.trace needs rows "
    "of one document."
)


def locate_documents(
    shape: tuple[int, ...],
    attention_mask: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    cu_seq_lens: torch.Tensor | None = None,
    max_length: int | None = None,
    num_tokens: int | None = None,
) -> RaggedRows | None:
    """Find the documents of a batch whose rows hold several of them.

    Args:
        shape: (batch, n).
        attention_mask: (batch, n), False at padding.
        position_ids: (batch, n) or (1, n); without `cu_seq_lens` a document begins where they do not rise.
        cu_seq_lens: (documents + 1), where the documents begin and end in the batch read row by row, padding included.
        max_length: the length of the longest document; it saves a device synchronisation.
        num_tokens: the same for the number of tokens, where there is a mask.

    Returns:
        None where every row is one document.

    Raises:
        ValueError: for `cu_seq_lens` under torch.jit.trace; (on a CPU) for those that do not span the batch, or a
            `max_length` that is too small.
    """
    if cu_seq_lens is not None and torch.jit.is_tracing():
        raise ValueError(SEVERAL_DOCUMENTS)
    if cu_seq_lens is not None:
        indices = None if attention_mask is None else true_places(attention_mask, num_tokens)
        check_cu_seq_lens(cu_seq_lens, shape[0] * shape[1])
        if attention_mask is not None:
            cu_seq_lens = nn.functional.pad(attention_mask.flatten().cumsum(dim=0), (1, 0))[cu_seq_lens]
    elif position_ids is not None:
        position_ids = position_ids.expand(shape)
        if is_recorded() or is_vmapped(position_ids) or is_vmapped(attention_mask):
            require_one_document(position_ids, attention_mask)
            return None
        indices = None if attention_mask is None else true_places(attention_mask, num_tokens)
        cu_seq_lens = bounds_of_positions(position_ids, indices)
    if cu_seq_lens is None:
        return None
    if max_length is None:
        max_length = int(cu_seq_lens.diff().max())
    elif can_be_read(cu_seq_lens):
        longest = int(cu_seq_lens.diff().max())
        if longest > max_length:
            raise ValueError(f"max_length_q is {max_length}, but the longest document has {longest} tokens.")
    return RaggedRows.build(shape, indices, cu_seq_lens, max_length)


def bounds_of_positions(position_ids: torch.Tensor, indices: torch.Tensor | None) -> torch.Tensor | None:
    """(documents + 1), the ends of documents, which begin where positions (batch, n) do not rise, and with each row.

    Args:
        indices: places of the tokens in the flattened batch; None without padding.

    Returns:
        None where every row is one document.
    """
    places = torch.arange(position_ids.numel(), device=position_ids.device) if indices is None else indices
    positions, rows = position_ids.flatten()[places], places // position_ids.shape[1]
    new_row, restart = rows.diff() > 0, positions.diff() <= 0
    if not (restart & ~new_row).any():
        return None
    starts = (restart | new_row).nonzero().squeeze(1) + 1
    cu_seq_lens = nn.functional.pad(starts, (1, 1))
    cu_seq_lens[-1] = places.shape[0]
    return cu_seq_lens


def true_places(mask: torch.Tensor, count: int | None = None) -> torch.Tensor:
    """Where a flattened mask is true; `count` says how often that is, which saves a device synchronisation."""
    if count is None:
        return mask.flatten().nonzero().squeeze(1)
    if can_be_read(mask) and count != mask.sum():
        raise ValueError(f"num_tokens or num_predicted is {count}, but the batch has {int(mask.sum())}.")
    return torch.nonzero_static(mask.flatten(), size=count).squeeze(1)


def require_one_document(position_ids: torch.Tensor, attention_mask: torch.Tensor | None):
    """Fail for rows of several documents where their number, on which shapes depend, cannot be known."""
    rises = position_ids.diff() > 0
    if attention_mask is not None:
        rises = rises | ~attention_mask[:, 1:] | ~attention_mask[:, :-1]
    if is_recorded():
        torch._assert_async(rises.all(), SEVERAL_DOCUMENTS)
    elif not without_transforms(rises).all():
        raise ValueError("Several documents in a row: torch.func.vmap takes rows of one document.")


def check_cu_seq_lens(cu_seq_lens: torch.Tensor, num_tokens: int):
    if not can_be_read(cu_seq_lens):
        return
    if (
        cu_seq_lens.ndim != 1
        or cu_seq_lens.numel() < 2
        or cu_seq_lens[0] != 0
        or cu_seq_lens[-1] != num_tokens
        or (cu_seq_lens.diff() < 0).any()
    ):
        raise ValueError(
            f"cu_seq_lens_q must rise from 0 to the number of tokens of the batch ({num_tokens}), as "
            f"[0, end of the first document, ...]; found {cu_seq_lens.tolist()}."
        )


def check_range(ids: torch.Tensor, limit: int, name: str):
    """Raise a `ValueError` for ids outside [0, limit), on a CPU alone: a GPU would have to wait for the answer."""
    ids = without_transforms(ids)
    if not can_be_read(ids) or ids.numel() == 0:
        return
    smallest, largest = (int(value) for value in torch.aminmax(ids))
    if smallest < 0 or largest >= limit:
        raise ValueError(f"{name} must lie between 0 and {limit - 1}; found {smallest} to {largest}.")


def check_choices(documents: RaggedRows, num_questions: int):
    """Raise a `ValueError`, on a CPU alone, unless each question has as many documents as the others."""
    if not can_be_read(documents.mask):
        return
    num_places = documents.shape[0] * documents.shape[1]
    places = torch.arange(num_places) if documents.indices is None else documents.indices
    # Of each token, the question it stands in and the document it belongs to.
    questions, choices = places // (num_places // num_questions), documents.places // documents.max_length
    num_choices, rest = divmod(documents.mask.shape[0], num_questions)
    if rest or (choices // num_choices != questions).any():
        found = torch.stack((questions, choices)).unique(dim=1)[0].bincount(minlength=num_questions)
        raise ValueError(f"Each question must have the same number of choices; found {found.tolist()}.")
