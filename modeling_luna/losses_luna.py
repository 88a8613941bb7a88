# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""The losses of the heads."""

from collections.abc import Callable

import torch
from torch import nn

from .configuration_luna import LunaConfig


def num_labelled(labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None) -> torch.Tensor | int:
    """What divides a sum of losses: the number given, or that of the labels that are not -100; 1 where it is 0."""
    count = labels.ne(-100).sum() if num_items_in_batch is None else num_items_in_batch
    if torch.is_tensor(count):
        count = count.to(labels.device)
    return count + (count == 0)


def in_float32(logits: torch.Tensor) -> torch.Tensor:
    """For a loss: in float32, or as they are where that is more."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Cross entropy in nats of logits (..., classes); labels (...) of -100 are ignored.

    The mean over the other ones, 0 where there are none, or their sum divided by `num_items_in_batch`.
    """
    labels = labels.to(logits.device)
    loss = nn.functional.cross_entropy(in_float32(logits).flatten(0, -2), labels.flatten(), reduction="sum")
    return loss / num_labelled(labels, num_items_in_batch)


def document_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    config: LunaConfig,
    num_items_in_batch: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """The loss of `config.problem_type` for logits (documents, num_labels), divided as in `cross_entropy`.

    Where `problem_type` is None, the labels decide it, and it is set.

    Raises:
        ValueError: for numbers, or several labels, of another shape than the logits.
    """
    if config.problem_type is None:
        if config.num_labels == 1:
            config.problem_type = "regression"
        elif labels.dtype in (torch.long, torch.int):
            config.problem_type = "single_label_classification"
        else:
            config.problem_type = "multi_label_classification"
    if config.problem_type == "single_label_classification":
        return cross_entropy(logits, labels, num_items_in_batch)

    if config.num_labels == 1:
        labels = labels.view(-1, 1)
    if labels.shape != logits.shape:
        raise ValueError(
            f"labels must have the shape (documents, num_labels) = {tuple(logits.shape)}, not {tuple(labels.shape)}."
        )
    logits, labels = in_float32(logits), labels.to(logits.device)
    missing = labels == -100
    losses: dict[str, Callable] = {
        "regression": nn.functional.mse_loss,
        "multi_label_classification": nn.functional.binary_cross_entropy_with_logits,
    }
    loss = losses[config.problem_type](logits, labels.masked_fill(missing, 0).to(logits.dtype), reduction="none")
    return loss.masked_fill(missing, 0.0).sum() / num_labelled(labels, num_items_in_batch)


def position_loss(
    logits: torch.Tensor,
    positions: torch.Tensor,
    mask: torch.Tensor | None,
    num_items_in_batch: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """Cross entropy of logits (documents, n); positions (documents,) without a token are ignored."""
    positions = positions.flatten()  # (documents, 1) is allowed, too
    inside = positions.clamp(0, logits.shape[1] - 1)
    found = inside == positions
    if mask is not None:
        found = found & mask.gather(1, inside.unsqueeze(1)).squeeze(1)
    return cross_entropy(logits, positions.masked_fill(~found, -100), num_items_in_batch)
