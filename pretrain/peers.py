"""Other encoders of Transformers in the place of Luna, for comparisons: on the same rows, with the same loss."""

import inspect
import typing

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING_NAMES

from common.encoders import position_limits, position_offset
from common.yaml_config import ConfigurationError, suggest
from pretrain.masking import IGNORED


def peer_config(model_type: str, fields: dict) -> PreTrainedConfig:
    """The configuration of a model of another architecture.

    Args:
        model_type: as Transformers names it, such as `roberta`.
        fields: of its configuration.

    Raises:
        ConfigurationError: where there is no masked language model of that name, or a field is unknown or cannot be.
    """
    if model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        known = ["luna", *MODEL_FOR_MASKED_LM_MAPPING_NAMES]
        raise ConfigurationError(
            f"model_type: {model_type!r} is no masked language model.{suggest(model_type, known)}"
        )
    config_class = CONFIG_MAPPING[model_type]
    known = [*inspect.signature(config_class).parameters, *config_class.attribute_map]
    for key in fields:
        if key not in known:
            raise ConfigurationError(f"model: unknown key {key!r}.{suggest(key, known)}")
    try:
        config = config_class(**fields)
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise ConfigurationError(f"model: {error.__cause__ or error}") from error
    if config.is_encoder_decoder:
        raise ConfigurationError(f"model_type: {model_type} is no encoder alone.")
    return config


def build_peer(config: PreTrainedConfig, attn_implementation: str | None = None) -> PreTrainedModel:
    """A new model with Luna's way of counting the loss: the sum over the predicted tokens, divided by a given number.

    Raises:
        ValueError, ImportError: where it has not this implementation of attention.
    """
    model_class = typing.cast(type[PreTrainedModel], MODEL_FOR_MASKED_LM_MAPPING[type(config)])
    model = _peer_class(model_class)._from_config(config, attn_implementation=attn_implementation)
    model.position_offset = position_offset(model)
    return model


def check_length(model: PreTrainedModel, length: int):
    """Refuse rows that are longer than the positions of a model.

    Raises:
        ConfigurationError
    """
    limit = min(position_limits(model), default=length)
    if limit < length:
        raise ConfigurationError(
            f"max_length is {length}, but the model has positions for {limit} tokens: raise "
            f"model.max_position_embeddings (now {getattr(model.config, 'max_position_embeddings', None)})."
        )


def _peer_class(model_class: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """A masked language model that is called as `LunaForMaskedLM` is."""

    class Peer(model_class):  # type: ignore[valid-type, misc]
        def forward(
            self,
            input_ids: torch.Tensor,
            labels: torch.Tensor,
            attention_mask: torch.Tensor | None = None,
            position_ids: torch.Tensor | None = None,
            num_items_in_batch: torch.Tensor | int | None = None,
            num_predicted: int | None = None,
            num_tokens: int | None = None,
        ) -> MaskedLMOutput:
            labels, inputs = labels.flatten(), {"input_ids": input_ids, "attention_mask": attention_mask}
            if position_ids is not None:
                inputs["position_ids"] = position_ids + self.position_offset
            head = _head(self)
            if head is None:
                logits = super().forward(**inputs).logits.flatten(0, 1)
            else:  # at the labelled tokens only
                size = int((labels != IGNORED).sum()) if num_predicted is None else num_predicted
                places = torch.nonzero_static(labels != IGNORED, size=size).squeeze(1)
                logits, labels = head(self.base_model(**inputs)[0].flatten(0, 1)[places]), labels[places]
            loss = nn.functional.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="sum")
            divisor = (labels != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
            return MaskedLMOutput(loss=loss / divisor, logits=logits)

    Peer.__name__ = model_class.__name__  # what a saved configuration says of its architecture
    return Peer


def _head(model: PreTrainedModel) -> nn.Module | None:
    """What makes logits of the last hidden states, if it is one module."""
    heads = [module for module in model.children() if module is not model.base_model]
    return heads[0] if len(heads) == 1 else None
