# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""LunaConfig: defaults, validation, and the way to and from JSON."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError

from modeling_luna import LunaConfig, LunaForMaskedLM, LunaForSequenceClassification, LunaModel


OFFICIAL_BASE = {
    "vocab_size": 50265,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "projection_length": 128,
    "dynamic_projection": True,
    "tie_key_value": True,
    "num_pack_attention_heads": None,
    "max_position_embeddings": 512,
    "position_embedding_type": "learned",
    "normalize_before": False,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "activation_dropout": 0.0,
    "classifier_pooling": "cls",
    "classifier_dropout": None,
    "classifier_hidden_size": None,
    "layer_norm_eps": 1e-5,
    "initializer_range": 0.02,
    "conv_kernel_size": 0,
    "sparse_prediction": False,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "tie_word_embeddings": True,
}


@pytest.mark.parametrize(("field", "value"), OFFICIAL_BASE.items())
def test_defaults_are_those_of_the_official_base_model(field: str, value: object):
    assert getattr(LunaConfig(), field) == value


impossible_values = pytest.mark.parametrize(
    ("field", "value"),
    [
        ("vocab_size", 0),
        ("hidden_size", 0),
        ("num_attention_heads", 0),
        ("num_attention_heads", 7),
        ("num_pack_attention_heads", 0),
        ("num_pack_attention_heads", 5),
        ("intermediate_size", 0),
        ("projection_length", 0),
        ("projection_length", -1),
        ("max_position_embeddings", 0),
        ("classifier_hidden_size", 0),
        ("classifier_hidden_size", -8),
        ("conv_kernel_size", 4),
        ("conv_kernel_size", -1),
        ("hidden_act", "gelo"),
        ("hidden_dropout_prob", 1.0),
        ("hidden_dropout_prob", -0.1),
        ("attention_probs_dropout_prob", 1.5),
        ("activation_dropout", 1),
        ("activation_dropout", math.nan),
        ("layer_norm_eps", 0),
        ("layer_norm_eps", math.nan),
        ("layer_norm_eps", math.inf),
        ("initializer_range", -0.1),
        ("initializer_range", math.nan),
        ("initializer_range", math.inf),
        ("pad_token_id", -1),
        ("pad_token_id", 50265),
    ],
)


@impossible_values
def test_value_that_cannot_work(field: str, value: object):
    with pytest.raises(StrictDataclassClassValidationError, match=rf"{field}\b.*{value}"):
        LunaConfig(**{field: value})


@impossible_values
def test_value_that_is_set_later(tiny_config: Callable, field: str, value: object):
    config = tiny_config()
    setattr(config, field, value)
    with pytest.raises(ValueError, match=rf"{field}\b.*{value}"):
        LunaModel(config)


@pytest.mark.parametrize("model_class", [LunaModel, LunaForMaskedLM, LunaForSequenceClassification])
@pytest.mark.parametrize(
    ("field", "value"),
    [("num_attention_heads", 7), ("hidden_act", "foo"), ("projection_length", 0), ("conv_kernel_size", 4)],
)
def test_value_that_is_set_while_loading(saved_folder: Path, model_class: type, field: str, value: object):
    with pytest.raises(ValueError, match=rf"{field}\b.*{value}"):
        model_class.from_pretrained(saved_folder, **{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", "768"),
        ("num_hidden_layers", 2.0),
        ("dynamic_projection", "yes"),
        ("position_embedding_type", "rotary"),
        ("classifier_pooling", "max"),
        ("hidden_dropout_prob", "0.1"),
        ("tie_key_value", None),
    ],
)
def test_value_of_the_wrong_type(field: str, value: object):
    with pytest.raises(StrictDataclassFieldValidationError, match=field):
        LunaConfig(**{field: value})


def test_odd_width_with_sinusoidal_positions():
    assert LunaConfig(hidden_size=9, num_attention_heads=3).hidden_size == 9
    with pytest.raises(StrictDataclassClassValidationError, match="even hidden_size, not 9"):
        LunaConfig(hidden_size=9, num_attention_heads=3, position_embedding_type="sinusoidal")


def test_message_for_heads_lists_what_fits():
    with pytest.raises(StrictDataclassClassValidationError, match=r"choose one of \[1, 2, 3, 4, 6, 12\]"):
        LunaConfig(hidden_size=12, num_attention_heads=5)


def test_values_at_the_edge_are_accepted():
    config = LunaConfig(
        projection_length=1,
        num_attention_heads=1,
        num_pack_attention_heads=768,
        hidden_dropout_prob=0,
        attention_probs_dropout_prob=0.99,
        conv_kernel_size=1,
        pad_token_id=None,
        eos_token_id=[2, 3],
    )
    assert (config.num_pack_attention_heads, config.pad_token_id, config.eos_token_id) == (768, None, [2, 3])


def test_round_trip_through_a_json_file(tmp_path: Path):
    changed = {"projection_length": 16, "position_embedding_type": "sinusoidal", "num_pack_attention_heads": 6}
    config = LunaConfig(**changed, hidden_dropout_prob=0, classifier_pooling="packed_max", pad_token_id=None)
    config.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["model_type"] == "luna"
    assert {field: stored[field] for field in changed} == changed

    loaded = LunaConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert loaded.pad_token_id is None
    assert LunaConfig.from_pretrained(tmp_path, projection_length=8).projection_length == 8


def test_broken_json_file_is_refused(tmp_path: Path):
    LunaConfig().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"projection_length": 128', '"projection_length": 0'))
    with pytest.raises(StrictDataclassClassValidationError, match="projection_length must be at least 1"):
        LunaConfig.from_pretrained(tmp_path)


def test_unknown_attribute_is_kept(tmp_path: Path):
    LunaConfig(corpus="moon").save_pretrained(tmp_path)
    assert LunaConfig.from_pretrained(tmp_path).corpus == "moon"
