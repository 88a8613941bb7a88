# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""Memory of a training step, counted allocation by allocation."""

from collections.abc import Callable

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from modeling_luna import LunaConfig, LunaForMaskedLM, LunaModel


def peak_memory(step: Callable) -> int:
    """The most bytes that `step` holds at a time, beyond those held before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    held = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


@pytest.mark.slow
def test_sparse_prediction_needs_a_third_of_the_memory_of_the_head():
    """The head of luna-base, 8 rows of 512 tokens, 15 % of them labelled."""
    config = LunaConfig(num_hidden_layers=0, hidden_dropout_prob=0.0)
    input_ids = torch.randint(3, config.vocab_size, (8, 512))
    labels = input_ids.where(torch.rand(8, 512, generator=torch.Generator().manual_seed(0)) < 0.15, -100)
    peaks, losses = {}, {}
    for sparse in (False, True):
        torch.manual_seed(0)
        config.sparse_prediction = sparse
        model = LunaForMaskedLM(config)

        def step(model: LunaForMaskedLM = model, sparse: bool = sparse):
            losses[sparse] = model(input_ids, labels=labels).loss
            losses[sparse].backward()

        peaks[sparse] = peak_memory(step)
    torch.testing.assert_close(losses[True], losses[False], atol=1e-4, rtol=0)
    logits = 8 * 512 * config.vocab_size * 4
    assert peaks[False] > 2 * logits
    assert peaks[False] > 3 * peaks[True], peaks


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("documents", [False, True])
def test_sdpa_keeps_no_attention_map(masked: bool, documents: bool):
    """Twice the tokens need twice the memory, and far less than one map of all heads of one layer would add."""
    config = LunaConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=8,
        projection_length=256,
        max_position_embeddings=4096,
        vocab_size=64,
    )
    model = LunaModel._from_config(config, attn_implementation="sdpa").eval()

    def peak(tokens: int) -> int:
        inputs = {"input_ids": torch.full((1, tokens), 5)}
        if masked:
            inputs["attention_mask"] = torch.ones(1, tokens)
            inputs["attention_mask"][:, -9:] = 0
        if documents:
            inputs["cu_seq_lens_q"] = torch.tensor([0, tokens])

        def step():
            outputs = model(**inputs)
            (outputs.last_hidden_state.sum() + outputs.packed_last_hidden_state.sum()).backward()

        step()
        return peak_memory(step)

    one_map = 8 * 256 * 4096 * 4
    longer, shorter = peak(4096), peak(2048)
    assert longer < 2.2 * shorter
    assert longer < one_map / 2, (longer, one_map)
