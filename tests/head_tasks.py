# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""A tiny model and examples with labels for each head, the same in every process."""

from dataclasses import dataclass, field

import torch
from transformers import default_data_collator

from modeling_luna import (
    LunaConfig,
    LunaForMaskedLM,
    LunaForMultipleChoice,
    LunaForQuestionAnswering,
    LunaForSequenceClassification,
    LunaForTokenClassification,
    LunaPreTrainedModel,
)


TOKENS, CHOICES, VOCABULARY = 9, 3, 53
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "projection_length": 6,
    "max_position_embeddings": 32,
    "initializer_range": 0.2,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


@dataclass
class HeadTask:
    model_class: type
    fields: dict = field(default_factory=dict)


HEAD_TASKS = {
    "masked_lm": HeadTask(LunaForMaskedLM),
    "masked_lm_sparse": HeadTask(LunaForMaskedLM, {"sparse_prediction": True, "normalize_before": True}),
    "class": HeadTask(LunaForSequenceClassification, {"classifier_pooling": "cls", "num_labels": 3}),
    "number": HeadTask(LunaForSequenceClassification, {"classifier_pooling": "mean", "num_labels": 1}),
    "numbers": HeadTask(
        LunaForSequenceClassification,
        {"classifier_pooling": "packed_max", "num_labels": 2, "problem_type": "regression"},
    ),
    "classes": HeadTask(LunaForSequenceClassification, {"classifier_pooling": "packed_attention", "num_labels": 3}),
    "token": HeadTask(LunaForTokenClassification, {"num_labels": 3}),
    "answer": HeadTask(LunaForQuestionAnswering),
    "choice_cls": HeadTask(LunaForMultipleChoice, {"classifier_pooling": "cls"}),
    "choice_mean": HeadTask(LunaForMultipleChoice, {"classifier_pooling": "mean"}),
    "choice_packed_max": HeadTask(LunaForMultipleChoice, {"classifier_pooling": "packed_max"}),
    "choice_packed_attention": HeadTask(LunaForMultipleChoice, {"classifier_pooling": "packed_attention"}),
}


def head_model(task: str, **fields) -> LunaPreTrainedModel:
    """The model of a task, without dropout; its weights depend on the configuration alone."""
    config = LunaConfig(**(SMALL | HEAD_TASKS[task].fields | fields))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return HEAD_TASKS[task].model_class(config)


def head_examples(task: str, count: int) -> list[dict[str, torch.Tensor]]:
    """Rows of different lengths; those of the heads for tokens have different numbers of labels, 1 to 7, and some
    documents and choices have none or lack one."""
    generator = torch.Generator().manual_seed(1)
    shape = (CHOICES, TOKENS) if task.startswith("choice") else (TOKENS,)
    examples = []
    for index in range(count):
        input_ids = torch.randint(3, VOCABULARY, shape, generator=generator)
        mask = (torch.arange(TOKENS) < TOKENS - index % 3).long().expand(shape)
        labelled = torch.arange(TOKENS) < 1 + 3 * index % 7
        known = index % 5 != 1
        labels = {
            "masked_lm": {"labels": input_ids.masked_fill(~labelled, -100)},
            "class": {"labels": torch.tensor(index % 3 if known else -100)},
            "number": {"labels": torch.tensor(index - 1.5 if known else -100.0)},
            "numbers": {"labels": torch.tensor([index - 1.5, 0.5 if known else -100.0])},
            "classes": {"labels": torch.tensor([index % 2, 1.0, 0.0 if known else -100.0])},
            "token": {"labels": (input_ids % 3).masked_fill(~labelled, -100)},
            "answer": {"start_positions": torch.tensor(index % 3), "end_positions": torch.tensor(3 + index % 3)},
            "choice": {"labels": torch.tensor(index % CHOICES if known else -100)},
        }
        kind = "choice" if task.startswith("choice") else task.removesuffix("_sparse")
        examples.append({"input_ids": input_ids, "attention_mask": mask, **labels[kind]})
    return examples


def head_batch(task: str, first: int, last: int) -> dict[str, torch.Tensor]:
    """The examples from `first` to before `last` as one batch."""
    return default_data_collator(head_examples(task, last)[first:])


def number_of_labels(batch: dict[str, torch.Tensor]) -> int:
    """What divides the summed loss of a batch."""
    labels = batch["labels"] if "labels" in batch else batch["start_positions"]
    return int(labels.ne(-100).sum())
