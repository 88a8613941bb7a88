# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""Rows of tokens as a padded batch and as documents of one row, and the kinds of model they are tried on."""

import torch


SLOTS = 6
LENGTHS = (3, SLOTS, 11)
VARIANTS = {
    "default": {},
    "fixed": {"dynamic_projection": False},
    "untied": {"tie_key_value": False},
    "sinusoidal": {"position_embedding_type": "sinusoidal"},
    "positional-slots": {"positional_slots": True},
    "pre-norm": {"normalize_before": True},
    "pack-heads": {"num_pack_attention_heads": 2},
    "convolution": {"conv_kernel_size": 5},
    "all": {
        "dynamic_projection": False,
        "tie_key_value": False,
        "position_embedding_type": "sinusoidal",
        "normalize_before": True,
        "num_pack_attention_heads": 6,
        "conv_kernel_size": 5,
    },
}


def random_rows(lengths: tuple[int, ...] = LENGTHS, vocab_size: int = 53) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, vocab_size, (length,), generator=generator) for length in lengths]


def padded(
    rows: list[torch.Tensor], side: str = "right", extra: int = 0, padding_id: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows as one batch (batch, n) with `extra` columns that hold padding alone, and its mask."""
    width = max(len(row) for row in rows) + extra
    input_ids = torch.full((len(rows), width), padding_id)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        start = width - len(row) if side == "left" else 0
        input_ids[index, start : start + len(row)] = row
        mask[index, start : start + len(row)] = 1
    return input_ids, mask
