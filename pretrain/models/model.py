"""The model of a run: with fresh weights, or with those of a saved one."""

import copy

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from common.compilation import compile_parts
from common.config.yaml_config import ConfigurationError
from common.errors import reason_of
from common.gradient_checkpointing import enable_checkpointing
from modeling_luna import LunaConfig, LunaForMaskedLM
from pretrain.configuration import PretrainConfig
from pretrain.data.tokenizer import row_ends
from pretrain.models.configuration import model_configuration
from pretrain.models.peers import build_peer
from pretrain.models.saved_model import load_saved_model


def build_model(config: PretrainConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Make the model in float32, the same on each process and however the random state was before.

    Fresh weights come from the run's seed; with `init_from` they are those of a saved model, for the tokenizer and
    the length of the rows.

    Raises:
        ConfigurationError: where the configuration, the tokenizer and a saved model do not go together.
    """
    special_ids = special_ids_of(tokenizer)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        if config.init_from is None:
            model_config, weights = model_configuration(config, len(tokenizer), special_ids), None
        else:
            model_config, weights = load_saved_model(config, tokenizer, special_ids)
        model = model_to_train(config, model_config)
    if weights is not None:
        model.load_state_dict(weights, strict=False)  # a new convolution keeps what it was made with
    if config.torch_compile:
        compile_parts(model)
    return model


def model_to_train(config: PretrainConfig, model_config: PreTrainedConfig) -> PreTrainedModel:
    """A model with random weights, ready to be trained as the run trains it.

    Raises:
        ConfigurationError: where it has not the attention or the checkpointing that the run wants.
    """
    try:
        model = new_model(model_config, config.attn_implementation)
    except (ValueError, ImportError) as error:
        raise ConfigurationError(f"attn_implementation: {reason_of(error)}") from error
    dropout = getattr(model_config, "attention_probs_dropout_prob", 0.0)  # not every architecture has it
    if config.attn_implementation == "flex_attention" and dropout > 0:
        raise ConfigurationError(
            "attn_implementation: flex_attention has no dropout: give --model.attention_probs_dropout_prob 0 with it."
        )
    prepare_for_training(model, config)
    return model


def prepare_for_training(model: PreTrainedModel, config: PretrainConfig):
    """Switch gradient checkpointing on where it is asked for.

    Raises:
        ConfigurationError: where the architecture has none.
    """
    if config.gradient_checkpointing:
        try:
            enable_checkpointing(model, selective=config.gradient_checkpointing == "selective")
        except ValueError as error:
            raise ConfigurationError(f"gradient_checkpointing: {error}") from error


def special_ids_of(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The ids of a tokenizer that a model's configuration holds."""
    first, last = row_ends(tokenizer)
    return {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": first, "eos_token_id": last}


def new_model(config: PreTrainedConfig, attn_implementation: str | None = None) -> PreTrainedModel:
    """A masked language model with random weights: Luna, or another architecture of Transformers.

    Raises:
        ValueError, ImportError: where it has not this implementation of attention.
    """
    if isinstance(config, LunaConfig):
        return LunaForMaskedLM._from_config(config, attn_implementation=attn_implementation)
    return build_peer(config, attn_implementation)


def config_for_others(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration that is saved: without what a training run alone wants.

    Logits at the predicted tokens alone have another shape than Transformers' Trainer and scripts expect.
    """
    config = copy.deepcopy(config)
    if hasattr(config, "sparse_prediction"):
        config.sparse_prediction = False
    return config
