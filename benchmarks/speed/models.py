"""The models that are compared: Luna and its peers out of Transformers, at base size, with random weights.

A name is `luna-L` with L slots or a key of `PEERS`. Behind a `+` may stand an implementation of attention, a key of
`ATTENTIONS`: `modernbert+flash`. Without one Transformers chooses: sdpa where the model has it.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

import torch
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, PreTrainedConfig, PreTrainedModel

import modeling_luna  # noqa: F401 - registers Luna with the Auto classes
from common.errors import UserError


# Fields of a peer's configuration for rows of n tokens. All others are the defaults of its class, which are those of
# the published model of base size.
PEERS: dict[str, Callable[[int], dict]] = {
    # Both count positions from the row after that of padding.
    "roberta": lambda n: {"max_position_embeddings": n + 2, "type_vocab_size": 1},
    "longformer": lambda n: {"max_position_embeddings": n + 2, "type_vocab_size": 1},
    "modernbert": lambda n: {"max_position_embeddings": n, "sparse_prediction": True, "cls_token_id": 0},
    "nystromformer": lambda n: {"max_position_embeddings": n, "segment_means_seq_len": n},
    "bigbird": lambda n: {"max_position_embeddings": -(-n // 64) * 64},  # it pads to whole blocks
    "fnet": lambda n: {"max_position_embeddings": n},
}
MODEL_TYPES = {"bigbird": "big_bird"}  # where Transformers has another name
ATTENTIONS = {
    "eager": "eager",
    "sdpa": "sdpa",
    "flex": "flex_attention",
    "flash": "flash_attention_2",
}
VARLEN_PEERS = ("roberta", "modernbert")  # with flash attention they take rows without padding

# The same for all, so that embeddings and heads cost the same.
COMMON = {"vocab_size": 50265, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "sep_token_id": 2}
SIZES: dict[str, dict] = {
    "base": {},
    "tiny": {"vocab_size": 128, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64},  # for tests
}
DROPOUTS = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "embedding_dropout",
    "attention_dropout",
    "mlp_dropout",
)


class ModelName(NamedTuple):
    kind: str  # `luna` or a key of `PEERS`
    slots: int | None
    attention: str | None  # as Transformers names it

    @classmethod
    def parse(cls, name: str) -> "ModelName":
        """
        Raises:
            UserError: for a name that is none.
        """
        base, _, attention = name.partition("+")
        luna = re.fullmatch(r"luna-([1-9]\d*)", base)
        if (not luna and base not in PEERS) or (attention and attention not in ATTENTIONS):
            raise UserError(
                f"--models: {name!r} is no model. Write luna-L with L slots, or one of {', '.join(PEERS)}; behind it "
                f"may stand one of {', '.join('+' + key for key in ATTENTIONS)}."
            )
        return cls("luna" if luna else base, int(luna[1]) if luna else None, ATTENTIONS.get(attention))

    @property
    def takes_varlen(self) -> bool:
        """Whether rows may hold several documents that do not see each other."""
        flash = self.attention == ATTENTIONS["flash"]
        return self.kind == "luna" or (self.kind in VARLEN_PEERS and flash)


def new_config(
    name: ModelName, length: int, dropout: float = 0.0, layers: int | None = None, size: str = "base"
) -> PreTrainedConfig:
    """The configuration of a model for rows of `length` tokens.

    Args:
        dropout: everywhere where the published model has one.
        layers: of a stack in the model's place; None for the whole model. ModernBERT's keeps its mix, one layer of
            global attention and then two of local attention.
        size: a key of `SIZES`.
    """
    fields = COMMON | SIZES[size]
    if name.kind == "luna":
        fields |= {
            "max_position_embeddings": length,
            "projection_length": name.slots,
            "sparse_prediction": True,
        }
    else:
        fields |= PEERS[name.kind](length)
    if layers is not None:
        fields["num_hidden_layers"] = layers
    config = AutoConfig.for_model(MODEL_TYPES.get(name.kind, name.kind), **fields)
    for field in DROPOUTS:
        if hasattr(config, field):
            setattr(config, field, dropout)
    return config


def new_model(name: ModelName, config: PreTrainedConfig, head: bool) -> PreTrainedModel:
    """A model with random weights, for masked language modelling or without a head."""
    auto_class = AutoModelForMaskedLM if head else AutoModel
    return auto_class.from_config(config, attn_implementation=name.attention)


def count_parameters(name: ModelName, config: PreTrainedConfig, head: bool) -> int:
    """Of a model that is not made."""
    with torch.device("meta"):
        return new_model(name, config, head).num_parameters()
