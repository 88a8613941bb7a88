# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""What the models return."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers.modeling_outputs import ModelOutput


@dataclass
class LunaModelOutput(ModelOutput):
    """
    Output of [`LunaModel`].

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(batch, n, hidden_size)`):
            The tokens after the last layer; at padding it is finite and holds no meaning.
        packed_last_hidden_state (`torch.FloatTensor` of shape `(batch, l, hidden_size)`):
            The packed state P after the last layer, l = min(projection_length, n) (projection_length where
            `dynamic_projection` is off). A row of m < l tokens uses the first m slots; the others hold no meaning.
        hidden_states (`tuple`, with `output_hidden_states=True`):
            The tokens after the embeddings and after each layer (with pre-norm the last after the final norm).
        packed_hidden_states (`tuple`, with `output_packed_hidden_states=True`):
            P after the embeddings and after each layer (with pre-norm: before the final norm).
        attentions (`tuple`, with `output_attentions=True` and the eager implementation):
            Unpack attention of each layer, `(batch, heads, n, l)`.
        pack_attentions (`tuple`, with `output_pack_attentions=True` and the eager implementation):
            Pack attention of each layer, `(batch, heads, l, n)`.
    """

    last_hidden_state: torch.FloatTensor | None = None
    packed_last_hidden_state: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    packed_hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    pack_attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class LunaMaskedLMOutput(ModelOutput):
    """
    Output of [`LunaForMaskedLM`].

    Args:
        loss (scalar `torch.FloatTensor`, where labels are given):
            Mean cross entropy over the labelled positions, in nats.
        logits (`torch.FloatTensor` of shape `(batch, n, vocab_size)`):
            Scores before the softmax; of shape `(labelled positions, vocab_size)` with labels and
            `sparse_prediction`, but under `torch.func.vmap`, which cannot know their number.
        hidden_states, attentions, packed_last_hidden_state, packed_hidden_states, pack_attentions:
            As in [`LunaModelOutput`].
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    packed_last_hidden_state: torch.FloatTensor | None = None
    packed_hidden_states: tuple[torch.FloatTensor, ...] | None = None
    pack_attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class LunaClassifierOutput(ModelOutput):
    """
    Output of [`LunaForSequenceClassification`], [`LunaForTokenClassification`] and [`LunaForMultipleChoice`].

    Args:
        loss (scalar `torch.FloatTensor`, where labels are given):
            Cross entropy in nats; for regression the mean squared error, for several labels the binary cross entropy.
        logits (`torch.FloatTensor`):
            `(documents, num_labels)`, `(batch, n, num_labels)` and `(batch, choices)`.
        hidden_states, attentions, packed_last_hidden_state, packed_hidden_states, pack_attentions:
            As in [`LunaModelOutput`].
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    packed_last_hidden_state: torch.FloatTensor | None = None
    packed_hidden_states: tuple[torch.FloatTensor, ...] | None = None
    pack_attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class LunaQuestionAnsweringOutput(ModelOutput):
    """
    Output of [`LunaForQuestionAnswering`].

    Args:
        loss (scalar `torch.FloatTensor`, where positions are given):
            Mean of the cross entropies of start and end, in nats.
        start_logits, end_logits (`torch.FloatTensor` of shape `(documents, n)`):
            Scores before the softmax; the lowest number of the dtype at padding.
        hidden_states, attentions, packed_last_hidden_state, packed_hidden_states, pack_attentions:
            As in [`LunaModelOutput`].
    """

    loss: torch.FloatTensor | None = None
    start_logits: torch.FloatTensor | None = None
    end_logits: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    packed_last_hidden_state: torch.FloatTensor | None = None
    packed_hidden_states: tuple[torch.FloatTensor, ...] | None = None
    pack_attentions: tuple[torch.FloatTensor, ...] | None = None


def recorded_outputs(outputs: LunaModelOutput) -> dict[str, Any]:
    """What a head passes on of the encoder's outputs."""
    return {name: value for name, value in outputs.items() if name != "last_hidden_state"}


def classifier_output(
    loss: torch.FloatTensor | None, logits: torch.FloatTensor, outputs: LunaModelOutput
) -> LunaClassifierOutput:
    return LunaClassifierOutput(loss=loss, logits=logits, **recorded_outputs(outputs))
