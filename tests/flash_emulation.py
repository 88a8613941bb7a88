# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""The two kernels of the flash-attn package in plain torch, as strict about their arguments as the real ones."""

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel, modeling_flash_attention_utils


def flash_attn_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
) -> torch.Tensor:
    """Attention of (batch, queries, heads, head_dim) without a mask."""
    assert not causal and dropout_p == 0.0
    q, k, v = (states.transpose(1, 2) for states in (q, k, v))
    return nn.functional.scaled_dot_product_attention(q, k, v, scale=softmax_scale).transpose(1, 2)


def flash_attn_varlen_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
) -> torch.Tensor:
    """Attention of (states, heads, head_dim) inside each sequence; queries without keys give zeros."""
    for cu_seqlens, max_seqlen, states in ((cu_seqlens_q, max_seqlen_q, q), (cu_seqlens_k, max_seqlen_k, k)):
        assert cu_seqlens.dtype == torch.int32
        assert isinstance(max_seqlen, int)
        assert cu_seqlens[0] == 0 and cu_seqlens[-1] == len(states)
        lengths = cu_seqlens.diff()
        assert lengths.min() >= 0 and lengths.max() <= max_seqlen
    assert len(cu_seqlens_q) == len(cu_seqlens_k)

    contexts = []
    for i in range(len(cu_seqlens_q) - 1):
        queries = q[cu_seqlens_q[i] : cu_seqlens_q[i + 1]]
        keys, values = (states[cu_seqlens_k[i] : cu_seqlens_k[i + 1]] for states in (k, v))
        if len(keys) == 0:
            contexts.append(torch.zeros_like(queries))
            continue
        contexts.append(flash_attn_func(*(s.unsqueeze(0) for s in (queries, keys, values)), dropout_p, softmax_scale))
    return torch.cat([context.flatten(0, -3) for context in contexts])


def use_flash_attention(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch):
    """Make the model use `flash_attention_2`, whose package needs a GPU, with the kernels above."""
    names = {
        "_loaded_implementation": "flash_attention_2",
        "_flash_fn": flash_attn_func,
        "_flash_varlen_fn": flash_attn_varlen_func,
        "_flash_with_kvcache_fn": None,
        "_process_flash_kwargs_fn": modeling_flash_attention_utils._lazy_define_process_function(
            flash_attn_varlen_func
        ),
        "_process_with_kvcache_kwargs_fn": dict,
    }
    for name, value in names.items():
        monkeypatch.setattr(modeling_flash_attention_utils, name, value)
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module.config._attn_implementation = "flash_attention_2"
