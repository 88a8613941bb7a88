"""Other encoders of Transformers in the place of Luna, for comparisons: on the same rows, with the same loss."""

import inspect
import typing

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING_NAMES

from common.architectures import position_limits, position_offset
from common.config.yaml_config import ConfigurationError, shown, suggest
from common.errors import reason_of
from common.labels import IGNORED


# Architectures that are tried in every test run; docs/pretraining-recipes.md lists them. Another one of a later
# Transformers is tried by a step before the data are prepared (`pretrain.feasibility`).
TESTED = (
    "albert", "bert", "big_bird", "camembert", "convbert", "data2vec-text", "deberta", "deberta-v2", "distilbert",
    "electra", "ernie", "esm", "esmc", "eurobert", "flaubert", "fnet", "funnel", "gte", "jina_embeddings_v3",
    "layoutlm", "longformer", "luke", "megatron-bert", "mobilebert", "modernbert", "mpnet", "neomme", "nomic_bert",
    "nystromformer", "perceiver", "reformer", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer",
    "squeezebert", "tapas", "ultrabert", "xlm", "xlm-roberta", "xlm-roberta-xl", "xmod", "yoso",
)  # fmt: skip
LISTED = " docs/pretraining-recipes.md lists them."
REFUSED = {
    "ibert": "it keeps numbers besides its parameters, which checkpoints do not hold",
    "mra": "its attention gives zeros where its CUDA kernel has not been compiled",
    "modernvbert": "it takes pictures with the text",
    "ultravbert": "it takes pictures with the text",
}
COUNTS = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
    "max_position_embeddings",
)  # fmt: skip
FIXED = {"return_dict": True, "is_decoder": False, "add_cross_attention": False}  # fields that cannot be others
# Those with parts that no prediction of words reaches; DDP has to look for them.
WITH_UNUSED_PARTS = (
    "big_bird", "esm", "fnet", "layoutlm", "longformer", "luke", "neomme", "reformer", "squeezebert",
)  # fmt: skip


def peer_config(model_type: str, fields: dict, of_tokenizer: dict | None = None) -> PreTrainedConfig:
    """The configuration of a model of another architecture.

    Args:
        model_type: as Transformers names it, such as `roberta`.
        fields: of its configuration.
        of_tokenizer: more fields, which count where the architecture has them.

    Raises:
        ConfigurationError: where there is no masked language model of that name, or a field is unknown or cannot be.
    """
    if model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        known = ["luna", *MODEL_FOR_MASKED_LM_MAPPING_NAMES]
        raise ConfigurationError(
            f"model_type: {shown(model_type)} is no masked language model.{suggest(model_type, known, LISTED)}"
        )
    if model_type in REFUSED:
        raise ConfigurationError(f"model_type: {model_type} cannot be trained here: {REFUSED[model_type]}.")
    config_class = CONFIG_MAPPING[model_type]
    known = [*inspect.signature(config_class).parameters, *config_class.attribute_map]
    for key in fields:
        if key not in known:
            listed = f" Those of {config_class.__name__} are known."
            raise ConfigurationError(f"model: unknown key {key!r}.{suggest(key, known, listed)}")
    fields = fields | {key: value for key, value in (of_tokenizer or {}).items() if key in known}
    try:
        config = config_class(**fields)
    except Exception as error:  # few architectures check their fields: what is wrong ends in errors of any type
        raise ConfigurationError(f"model: {reason_of(error.__cause__ or error)}") from error
    if config.is_encoder_decoder:
        raise ConfigurationError(f"model_type: {model_type} is no encoder alone.")
    for key in COUNTS:
        value = getattr(config, key, None)
        if isinstance(value, int) and value < 1:
            raise ConfigurationError(f"model.{key} is {value}: it must be at least 1.")
    for key, wanted in FIXED.items():
        if getattr(config, key, wanted) != wanted:
            raise ConfigurationError(f"model.{key} is {getattr(config, key)}: leave it out, encoders learn without.")
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


def check_positions(model: PreTrainedModel, length: int, in_pieces: bool):
    """Refuse rows that are longer than the positions of a model, and pieces of rows where it counts the positions.

    Raises:
        ConfigurationError
    """
    model_class = typing.cast(type[PreTrainedModel], type(model).__bases__[0])
    if in_pieces and "position_ids" not in inspect.signature(model_class.forward).parameters:
        raise ConfigurationError(
            f"max_length_start: {model.config.model_type} takes no position_ids, by which tokens keep their positions."
        )
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
            length, labels = input_ids.shape[1], labels.flatten()
            inputs = {"input_ids": input_ids}
            if attention_mask is not None:
                inputs["attention_mask"] = attention_mask
            if position_ids is not None:
                inputs["position_ids"] = position_ids + self.position_offset
            size = int((labels != IGNORED).sum()) if num_predicted is None else num_predicted
            places = torch.nonzero_static(labels != IGNORED, size=size).squeeze(1)
            head = _head(self)
            if head is None:  # some give logits of all their positions, however long the rows are
                logits = super().forward(**inputs).logits[:, :length].flatten(0, 1)[places]
            else:
                logits = head(self.base_model(**inputs)[0].flatten(0, 1)[places])
                logits = logits[0] if isinstance(logits, tuple) else logits
            loss = nn.functional.cross_entropy(logits.float(), labels[places], reduction="sum")
            divisor = (labels != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
            return MaskedLMOutput(loss=loss / divisor, logits=logits)

    Peer.__name__ = model_class.__name__  # what a saved configuration says of its architecture
    return Peer


def _head(model: PreTrainedModel) -> nn.Module | None:
    """What makes logits of the last hidden states, if it is one module."""
    heads = [module for module in model.children() if module is not model.base_model]
    output = model.get_output_embeddings()
    return heads[0] if len(heads) == 1 and any(module is output for module in heads[0].modules()) else None
