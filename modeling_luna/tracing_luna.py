# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""Whether a compiler records this call for other data, or a transform of `torch.func` runs it."""

import torch


def is_recorded() -> bool:
    """Whether a graph is recorded for other data: by torch.compile, torch.export or torch.jit.trace."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def is_transformed() -> bool:
    """Whether a transform of `torch.func` is at work (vmap, grad, jvp or what is made of them) and not recorded."""
    return not is_recorded() and torch._C._are_functorch_transforms_active()


def runs_eagerly() -> bool:
    return not (is_recorded() or is_transformed())


def without_transforms(values: torch.Tensor) -> torch.Tensor:
    """The values of a tensor for all samples of `torch.func.vmap`, with a dimension more for each vmap."""
    while is_transformed() and torch._C._functorch.is_functorch_wrapped_tensor(values):
        values = torch._C._functorch.get_unwrapped(values)
    return values


def is_vmapped(values: torch.Tensor | None) -> bool:
    return values is not None and values.ndim != without_transforms(values).ndim


def can_be_read(values: torch.Tensor) -> bool:
    """Whether a program may look at the values: on a GPU it would have to wait for them."""
    return values.device.type == "cpu" and not is_recorded() and not is_vmapped(values)
