# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""Transformers' pipelines on saved folders: what they say, and that a batch says the same as each text alone."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, Pipeline, RobertaTokenizer, pipeline

from modeling_luna import (
    LunaForMaskedLM,
    LunaForSequenceClassification,
    LunaForTokenClassification,
    LunaModel,
    LunaPreTrainedModel,
)


TEXTS = [
    "The moon goes round the earth.",
    "Luna",
    "A short row uses fewer slots than a long row, and the earth goes round the sun.",
]
POSITIONS = 64
POOLINGS = ("cls", "mean", "packed_max", "packed_attention")
LABELS = {0: "earth", 1: "moon", 2: "sun"}
ENTAILMENT = {0: "contradiction", 1: "neutral", 2: "entailment"}


@pytest.fixture(scope="module")
def tokenizer(saved_folder: Path) -> RobertaTokenizer:
    return AutoTokenizer.from_pretrained(saved_folder, model_max_length=POSITIONS)


@pytest.fixture
def save(tiny_model: Callable, tokenizer: RobertaTokenizer, tmp_path: Path) -> Callable:
    """Save a model with the tokenizer, and give the folder."""

    def save_model(model_class: type, **fields) -> str:
        model: LunaPreTrainedModel = tiny_model(
            model_class, vocab_size=len(tokenizer), max_position_embeddings=POSITIONS, **fields
        )
        model.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        return str(tmp_path)

    return save_model


@pytest.fixture
def encode(tokenizer: RobertaTokenizer) -> Callable:
    """A text alone, without padding, as the model takes it."""
    return lambda *texts: tokenizer(*texts, return_tensors="pt")


def assert_same(result: object, expected: object):
    """Equal lists and dictionaries, numbers up to 1e-5."""
    assert type(result) is type(expected)
    if isinstance(expected, dict):
        assert result.keys() == expected.keys()
        for key in expected:
            assert_same(result[key], expected[key])
    elif isinstance(expected, list):
        assert len(result) == len(expected)
        for left, right in zip(result, expected, strict=True):
            assert_same(left, right)
    elif isinstance(expected, float | np.floating):
        assert result == pytest.approx(expected, abs=1e-5)
    else:
        assert result == expected


def batch_and_single(pipe: Pipeline, inputs: list[str], **arguments) -> list:
    """Results of a batch, seen to be those of each input alone."""
    alone = [pipe(text, **arguments) for text in inputs]
    assert_same(pipe(inputs, batch_size=len(inputs), **arguments), alone)
    return alone


@torch.no_grad()
def test_fill_mask(saved_folder: Path, encode: Callable):
    pipe = pipeline("fill-mask", model=str(saved_folder))
    texts = ["The <mask> goes round the earth.", "<mask>", "A short row uses fewer slots than a <mask> row."]
    found = batch_and_single(pipe, texts, top_k=4)
    model = LunaForMaskedLM.from_pretrained(saved_folder)
    for text, fillings in zip(texts, found, strict=True):
        inputs = encode(text)
        place = (inputs["input_ids"][0] == pipe.tokenizer.mask_token_id).nonzero().item()
        best = model(**inputs).logits[0, place].softmax(dim=-1).topk(4)
        assert [filling["token"] for filling in fillings] == best.indices.tolist()
        assert [filling["score"] for filling in fillings] == pytest.approx(best.values.tolist(), abs=1e-5)


@torch.no_grad()
def test_feature_extraction(save: Callable, encode: Callable):
    folder = save(LunaModel)
    pipe = pipeline("feature-extraction", model=folder)
    model = LunaModel.from_pretrained(folder)
    alone = [pipe(text, return_tensors=True) for text in TEXTS]
    for text, batched, features in zip(TEXTS, pipe(TEXTS, batch_size=3, return_tensors=True), alone, strict=True):
        expected = model(**encode(text)).last_hidden_state
        torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(batched[:, : expected.shape[1]], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("pooling", POOLINGS)
def test_text_classification(save: Callable, encode: Callable, pooling: str):
    folder = save(LunaForSequenceClassification, classifier_pooling=pooling, id2label=LABELS)
    pipe = pipeline("text-classification", model=folder)
    model = LunaForSequenceClassification.from_pretrained(folder)
    for text, scores in zip(TEXTS, batch_and_single(pipe, TEXTS, top_k=None), strict=True):
        expected = model(**encode(text)).logits[0].softmax(dim=-1).tolist()
        assert {score["label"]: score["score"] for score in scores} == pytest.approx(
            dict(zip(LABELS.values(), expected, strict=True)), abs=1e-5
        )


@torch.no_grad()
def test_text_classification_with_several_labels(save: Callable, encode: Callable):
    folder = save(LunaForSequenceClassification, problem_type="multi_label_classification", id2label=LABELS)
    scores = pipeline("text-classification", model=folder)(TEXTS[0], top_k=None)
    logits = LunaForSequenceClassification.from_pretrained(folder)(**encode(TEXTS[0])).logits[0]
    expected = dict(zip(LABELS.values(), logits.sigmoid().tolist(), strict=True))
    assert {score["label"]: score["score"] for score in scores} == pytest.approx(expected, abs=1e-5)


@torch.no_grad()
def test_token_classification(save: Callable, encode: Callable):
    folder = save(LunaForTokenClassification, id2label=LABELS)
    pipe = pipeline("token-classification", model=folder, ignore_labels=[])
    model = LunaForTokenClassification.from_pretrained(folder)
    for text, tokens in zip(TEXTS, batch_and_single(pipe, TEXTS), strict=True):
        best = model(**encode(text)).logits[0, 1:-1].softmax(dim=-1).max(dim=-1)  # without <s> and </s>
        assert [token["entity"] for token in tokens] == [LABELS[label] for label in best.indices.tolist()]
        assert [float(token["score"]) for token in tokens] == pytest.approx(best.values.tolist(), abs=1e-5)
        assert "".join(text[token["start"] : token["end"]] for token in tokens) == text.replace(" ", "")


@pytest.mark.parametrize(
    ("task", "model_class"),
    [("feature-extraction", LunaModel), ("token-classification", LunaForTokenClassification)],
)
def test_model_that_returns_tuples(save: Callable, task: str, model_class: type):
    """In the pipelines that take tuples; the other ones of Transformers take none, of no model."""
    folder = save(model_class)
    pipe = pipeline(task, model=folder, model_kwargs={"return_dict": False})
    assert pipe.model.config.return_dict is False
    assert_same(pipe(TEXTS[0]), pipeline(task, model=folder)(TEXTS[0]))


@torch.no_grad()
@pytest.mark.parametrize("pooling", POOLINGS)
def test_zero_shot_classification(save: Callable, encode: Callable, pooling: str):
    folder = save(
        LunaForSequenceClassification,
        classifier_pooling=pooling,
        id2label=ENTAILMENT,
        label2id={name: index for index, name in ENTAILMENT.items()},
    )
    pipe = pipeline("zero-shot-classification", model=folder)
    assert pipe.entailment_id == 2
    labels = ["moon", "a long row"]
    model = LunaForSequenceClassification.from_pretrained(folder)
    for text, result in zip(TEXTS, batch_and_single(pipe, TEXTS, candidate_labels=labels), strict=True):
        logits = [model(**encode(text, f"This example is {label}.")).logits[0, 2] for label in labels]
        expected = dict(zip(labels, torch.stack(logits).softmax(dim=0).tolist(), strict=True))
        assert dict(zip(result["labels"], result["scores"], strict=True)) == pytest.approx(expected, abs=1e-5)
