# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""Configuration of Luna, the linear unified nested attention encoder."""

import os
from pathlib import Path
from typing import ClassVar, Literal

from transformers.activations import ACT2FN

from .code_luna import class_reference, copy_code, registered_class
from .releases_luna import PreTrainedConfig, strict


@strict
class LunaConfig(PreTrainedConfig):
    r"""
    Configuration of a Luna encoder (Ma et al., 2021, https://arxiv.org/abs/2106.01540).

    The defaults are those of the official `luna_base_tied_512`. Fields that every Transformers encoder has keep their
    usual meaning; the ones below are Luna's own or deserve a word.

    Args:
        projection_length (`int`, defaults to 128):
            The number of slots l of the packed state P.
        dynamic_projection (`bool`, defaults to `True`):
            A row of m tokens uses min(l, m) slots. `False`: every row uses all l slots.
        tie_key_value (`bool`, defaults to `True`):
            Key and value of an attention share one projection (the official "tied" models).
        num_pack_attention_heads (`int`, *optional*):
            Heads of the pack attention; `num_attention_heads` where it is None.
        max_position_embeddings (`int`, defaults to 512):
            The number of tokens that a row may hold. Learned positions keep `pad_token_id + 1` more rows in their
            table, as RoBERTa does; position ids nevertheless start at 0. Sinusoidal positions have no limit.
        position_embedding_type (`"learned"` or `"sinusoidal"`, defaults to `"learned"`):
            Sinusoidal positions are added to the tokens and to P; learned ones to the tokens alone.
        positional_slots (`bool`, defaults to `False`):
            Slot j stands for the positions j, j + l, j + 2 l and so on. At initialisation P is the sum of their
            embeddings, and the query projection of the pack attention its key projection (times the square root of
            the number of heads), so that each slot reads its own positions. A document that begins at a later
            position (`position_ids`) uses the slots of its positions; else nothing differs. An extension: the
            paper's slots have no order.
        normalize_before (`bool`, defaults to `False`):
            Layer normalisation before the attention and the feed-forward network (pre-norm) instead of after them.
        activation_dropout (`float`, defaults to 0.0):
            Dropout after the activation inside the feed-forward network.
        classifier_pooling (`"cls"`, `"mean"`, `"packed_max"` or `"packed_attention"`, defaults to `"cls"`):
            What a head that gives one result a document reads: its first token, the mean of its tokens, the maximum
            over its slots of P, or what its first token gathers from P by attention. The last two are the official
            heads that read P.
        classifier_reads_first_column (`bool`, defaults to `False`):
            The first token is looked for in the first column alone, also where a row begins with padding, as the
            official code does. Set by the converter; it matters under left padding only.
        classifier_hidden_size (`int`, *optional*):
            Width between the two projections of such a head; `hidden_size` where it is None.
        classifier_activation (`str`, defaults to `"tanh"`):
            Activation between the two projections of such a head.
        classifier_dropout (`float`, *optional*):
            Dropout of the classification heads; `hidden_dropout_prob` where it is None.
        conv_kernel_size (`int`, defaults to 0):
            Width of a depthwise convolution over the tokens at the input of each layer: 0 for none, else odd. It
            starts as the identity and never sees padding. An extension: the paper's model has none.
        sparse_prediction (`bool`, defaults to `False`):
            Where labels are given, the masked-LM head computes logits at the labelled positions only; they then have
            the shape (number of labelled positions, vocab_size).
        output_packed_hidden_states, output_pack_attentions (`bool`, default to `False`):
            Whether the outputs hold the packed states and the pack attention of all layers where the call does not
            say it: for P what `output_hidden_states` and `output_attentions` are for the tokens.

    Example:

    ```python
    >>> from modeling_luna import LunaConfig, LunaForMaskedLM

    >>> model = LunaForMaskedLM(LunaConfig(projection_length=64))
    ```
    """

    model_type = "luna"
    # The Trainer leaves it out of the predictions, which are then the logits alone.
    keys_to_ignore_at_inference = ["packed_last_hidden_state"]
    base_model_fsdp_plan = {"layers.*": "free_full_weight"}
    # P keeps all heads after the pack attention, which has no output projection: it stays whole on every device.
    base_model_tp_plan = {
        "embeddings.word_embeddings": "embedding_rowwise",
        "layers.*.unpack_attention.q_proj": "colwise",
        "layers.*.unpack_attention.kv_proj": "colwise",
        "layers.*.unpack_attention.k_proj": "colwise",
        "layers.*.unpack_attention.v_proj": "colwise",
        "layers.*.unpack_attention.out_proj": "rowwise",
        "layers.*.mlp.fc1": "colwise",
        "layers.*.mlp.fc2": "rowwise",
    }

    vocab_size: int = 50265
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    projection_length: int = 128
    dynamic_projection: bool = True
    tie_key_value: bool = True
    num_pack_attention_heads: int | None = None
    max_position_embeddings: int = 512
    position_embedding_type: Literal["learned", "sinusoidal"] = "learned"
    positional_slots: bool = False
    normalize_before: bool = False
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    activation_dropout: float | int = 0.0
    classifier_pooling: Literal["cls", "mean", "packed_max", "packed_attention"] = "cls"
    classifier_reads_first_column: bool = False
    classifier_hidden_size: int | None = None
    classifier_activation: str = "tanh"
    classifier_dropout: float | int | None = None
    layer_norm_eps: float | int = 1e-5
    initializer_range: float | int = 0.02
    conv_kernel_size: int = 0
    sparse_prediction: bool = False
    output_packed_hidden_states: bool = False
    output_pack_attentions: bool = False
    pad_token_id: int | None = 1
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = True
    # For a folder whose tokenizer_config.json names no class.
    tokenizer_class: str | None = "RobertaTokenizer"

    # While a model is saved: the classes whose code the folder is to carry; the first is the model's architecture.
    saved_model_classes: ClassVar[tuple[type, ...]] = ()

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        cls._auto_class = None  # the code of a subclass is saved where it is registered itself

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        absent = ("k_proj", "v_proj") if self.tie_key_value else ("kv_proj",)
        self.base_model_tp_plan = {  # type: ignore[misc]
            module: style
            for module, style in type(self).base_model_tp_plan.items()
            if module.rsplit(".", 1)[-1] not in absent
        }

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs):
        """Save as every configuration of Transformers does; `auto_map` names code that is in the folder alone."""
        config_class = registered_class(type(self), default=LunaConfig)
        model_classes = vars(self).pop("saved_model_classes", ())
        if model_classes:
            self.architectures = [model_classes[0].__name__]
        os.makedirs(save_directory, exist_ok=True)
        for referred in (*model_classes, config_class):
            copy_code(referred, save_directory)
        references = (getattr(self, "auto_map", None) or {}) | {"AutoConfig": class_reference(config_class)}
        self.auto_map = {
            auto_class: reference
            for auto_class, reference in references.items()
            if "--" in reference or (Path(save_directory) / f"{reference.split('.')[0]}.py").exists()
        }
        super().save_pretrained(save_directory, push_to_hub, **kwargs)

    def validate_architecture(self):
        """Name the field whose value cannot be; `@strict` turns the `ValueError` into its own error."""
        for field in (
            "vocab_size",
            "hidden_size",
            "num_attention_heads",
            "intermediate_size",
            "projection_length",
            "max_position_embeddings",
            "classifier_hidden_size",
        ):
            if getattr(self, field) is not None and getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, not {getattr(self, field)}.")
        if self.num_hidden_layers < 0:
            raise ValueError(f"num_hidden_layers must be at least 0, not {self.num_hidden_layers}.")
        for field in ("num_attention_heads", "num_pack_attention_heads"):
            heads = getattr(self, field)
            if heads is not None and (heads < 1 or self.hidden_size % heads):
                raise ValueError(
                    f"hidden_size ({self.hidden_size}) must be a multiple of {field} ({heads}): choose one of "
                    f"{[h for h in range(1, self.hidden_size + 1) if self.hidden_size % h == 0]}."
                )
        if self.position_embedding_type == "sinusoidal" and self.hidden_size % 2:
            raise ValueError(f"Sinusoidal positions need an even hidden_size, not {self.hidden_size}.")
        if self.positional_slots and self.position_embedding_type != "learned":
            raise ValueError("positional_slots needs learned positions: set position_embedding_type to 'learned'.")
        if self.conv_kernel_size < 0 or (self.conv_kernel_size and self.conv_kernel_size % 2 == 0):
            raise ValueError(f"conv_kernel_size must be 0 (none) or an odd width, not {self.conv_kernel_size}.")
        for field in ("hidden_act", "classifier_activation"):
            if getattr(self, field) not in ACT2FN:
                raise ValueError(f"Unknown {field} {getattr(self, field)!r}: choose one of {sorted(ACT2FN)}.")
        for field in ("layer_norm_eps", "initializer_range"):
            if not 0 < getattr(self, field) < float("inf"):
                raise ValueError(f"{field} must be above 0 and finite, not {getattr(self, field)}.")
        for field in (
            "hidden_dropout_prob",
            "attention_probs_dropout_prob",
            "activation_dropout",
            "classifier_dropout",
        ):
            if getattr(self, field) is not None and not 0 <= getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 0 and below 1, not {getattr(self, field)}.")
        if self.pad_token_id is not None and not 0 <= self.pad_token_id < self.vocab_size:
            raise ValueError(f"pad_token_id ({self.pad_token_id}) is not an id of the {self.vocab_size} tokens.")


__all__ = ["LunaConfig"]
