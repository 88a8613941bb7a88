# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""The transforms of torch.func take the model: per-sample gradients, forward-mode and second derivatives."""

from collections.abc import Callable

import torch
from torch.func import functional_call, jacfwd, jacrev, jvp

from modeling_luna import LunaForMaskedLM


def test_forward_mode_equals_reverse_mode(tiny_model: Callable):
    model = tiny_model(LunaForMaskedLM)
    embeddings, direction = torch.randn(2, 2, 9, 24, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(18).view(2, 9)
    parameters = dict(model.named_parameters())

    def loss(embeddings: torch.Tensor) -> torch.Tensor:
        inputs = {"inputs_embeds": embeddings, "labels": labels}
        return functional_call(model, parameters, args=(), kwargs=inputs).loss

    _, slope = jvp(loss, (embeddings,), (direction,))
    gradient = jacrev(loss)(embeddings)
    torch.testing.assert_close(slope, (gradient * direction).sum(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(jacfwd(loss)(embeddings), gradient, atol=1e-5, rtol=1e-4)
