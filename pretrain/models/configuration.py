"""The configuration of a run's model: the fields that the run gives, checked, for its tokenizer and its rows."""

import math
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

from common.config.yaml_config import ConfigurationError, check_plain, read_json, shown, suggest
from modeling_luna import LunaConfig
from pretrain.configuration import LARGEST_SIZE, PretrainConfig
from pretrain.models.peers import peer_config


# What a saved configuration holds besides the fields of the model.
IGNORED_MODEL_KEYS = ("architectures", "auto_map", "dtype", "model_type", "return_dict", "transformers_version")
MOST_LAYERS = 10**4


def model_configuration(
    config: PretrainConfig, vocab_size: int | None, special_ids: dict[str, int] | None = None
) -> PreTrainedConfig:
    """The configuration of the model that a run with fresh weights trains.

    Args:
        config: of the run.
        vocab_size: of the tokenizer, if it is known; counts where the configuration gives none.
        special_ids: `pad_token_id` and the like of the tokenizer, which the model takes over.

    Raises:
        ConfigurationError: where the tokenizer or the rows do not fit into the model.
    """
    fields = _given_fields(config)
    of_tokenizer = {} if vocab_size is None else {"vocab_size": fields.get("vocab_size", vocab_size)}
    of_tokenizer |= special_ids or {}
    if config.model_type == "luna":
        model_config: PreTrainedConfig = _luna_config(config, fields | of_tokenizer)
    else:
        model_config = _peer_config(config, fields, of_tokenizer)
    if vocab_size is not None and model_config.vocab_size < vocab_size:
        raise ConfigurationError(
            f"model.vocab_size is {model_config.vocab_size}, but the tokenizer has {vocab_size} tokens: raise it to "
            f"at least {vocab_size}, or leave it out to take the tokenizer's."
        )
    return model_config


def _luna_config(config: PretrainConfig, fields: dict) -> LunaConfig:
    known = list(LunaConfig.__annotations__)
    for key in fields:
        if key not in known:
            raise ConfigurationError(f"model: unknown key {key!r}.{suggest(key, known)}")
    try:
        luna_config = LunaConfig(**fields)
    except StrictDataclassError as error:
        raise ConfigurationError(f"model: {error.__cause__ or error}") from error
    if luna_config.conv_kernel_size > 2 * config.max_length:
        raise ConfigurationError(
            f"model.conv_kernel_size is {luna_config.conv_kernel_size:,}: it must not exceed twice max_length "
            f"({config.max_length:,}), as no token has more neighbours."
        )
    if luna_config.position_embedding_type == "learned" and luna_config.max_position_embeddings < config.max_length:
        raise ConfigurationError(
            f"max_length is {config.max_length}, but model.max_position_embeddings is "
            f"{luna_config.max_position_embeddings}: rows must not be longer than the model's positions."
        )
    return luna_config


def _peer_config(config: PretrainConfig, fields: dict, of_tokenizer: dict) -> PreTrainedConfig:
    if config.packing == "best_fit":
        raise ConfigurationError(
            f"packing is 'best_fit': {config.model_type} does not keep documents apart: take stream or full_sentences."
        )
    return peer_config(config.model_type, fields, of_tokenizer)


def _given_fields(config: PretrainConfig) -> dict[str, Any]:
    """The fields of the model's configuration that the run gives."""
    fields = {}
    if config.model_config is not None:
        fields = read_json(Path(config.model_config))
        if fields.get("model_type", config.model_type) != config.model_type:
            raise ConfigurationError(
                f"{config.model_config} is of a {fields['model_type']} model, but model_type is {config.model_type}."
            )
        fields = {key: value for key, value in fields.items() if key not in IGNORED_MODEL_KEYS}
    fields |= config.model
    if fields.get("return_dict", True) is not True:
        raise ConfigurationError(f"model.return_dict is {shown(fields['return_dict'])}: leave it out.")
    for key, value in fields.items():
        check_plain(f"model.{key}", value)
        _check_size(key, value)
    return fields


def _check_size(key: object, value: Any):
    """
    Raises:
        ConfigurationError: for a number that no field of a model can have.
    """
    for item in value if isinstance(value, list) else [value]:
        most = MOST_LAYERS if "layer" in str(key) else LARGEST_SIZE
        if isinstance(item, int) and abs(item) > most:
            raise ConfigurationError(f"model.{key} is {item:,}: it must be at most {most:,}.")
        if isinstance(item, float) and not math.isfinite(item):
            raise ConfigurationError(f"model.{key} is {item}: it must be a finite number.")
