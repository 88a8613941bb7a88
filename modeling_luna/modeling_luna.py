# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""Luna, the linear unified nested attention encoder (Ma et al., 2021, https://arxiv.org/abs/2106.01540).

Two states run through the layers: the hidden states X of the n tokens, and the packed state P of l slots. Each layer
packs X into P and unpacks the result into X, so that time and memory grow with n * l instead of n * n.
"""

import math
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple

from .attention_luna import (
    AttentionPlan,
    BatchLayout,
    absorbed_attention,
    absorbs_projections,
    attention_by_document,
    eager_attention_forward,
    lay_out_batch,
)
from .code_luna import class_reference, registered_class
from .configuration_luna import LunaConfig
from .kernels_luna import apply_convolution, apply_decoder, apply_dropout, apply_linear
from .losses_luna import cross_entropy, document_loss, position_loss
from .outputs_luna import (
    LunaClassifierOutput,
    LunaMaskedLMOutput,
    LunaModelOutput,
    LunaQuestionAnsweringOutput,
    classifier_output,
    recorded_outputs,
)
from .releases_luna import (
    ALL_ATTENTION_FUNCTIONS,
    OutputRecorder,
    capture_outputs,
    merge_with_config_defaults,
)
from .rows_luna import check_choices, check_range, first_positions, take, true_places
from .tracing_luna import is_transformed, is_vmapped


class LunaAttention(nn.Module):
    """What pack and unpack attention share: projections, heads and the choice of the attention implementation.

    For queries Q and keys and values C, in each head of size e:

        Attn(Q, C) = softmax((Q W_q) (C W_k)^T / sqrt(e)) (C W_v),    W_k = W_v where `tie_key_value`
    """

    is_causal = False

    def __init__(self, config: LunaConfig, num_heads: int):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // num_heads
        self.scaling = self.head_dim**-0.5
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        if config.tie_key_value:
            self.kv_proj = nn.Linear(config.hidden_size, config.hidden_size)
        else:
            self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
            self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def attend(
        self,
        query_states: torch.Tensor,
        key_value_states: torch.Tensor,
        plan: AttentionPlan,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attention of (batch, queries, hidden) over (batch, keys, hidden), heads merged, and its weights."""
        query = self._split_heads(plan.pad_queries(apply_linear(self.q_proj, query_states)))
        key, value = self.keys_and_values(key_value_states, plan)
        dropout = self.config.attention_probs_dropout_prob if self.training else 0.0
        interface = attention_by_document if plan.by_document else self._attention_interface(dropout, query)
        context, attention_weights = interface(
            self,
            query,
            key,
            value,
            plan.mask,
            dropout=dropout,
            scaling=self.scaling,
            **plan.kernel_arguments(),
            **kwargs,
        )
        return plan.unpad_queries(context.flatten(start_dim=-2)), attention_weights

    def keys_and_values(self, states: torch.Tensor, plan: AttentionPlan) -> tuple[torch.Tensor, torch.Tensor]:
        """(batch, keys, hidden) -> two of (documents, heads, keys, head_dim), which are one where they are tied"""
        maps = (self.kv_proj,) if self.config.tie_key_value else (self.k_proj, self.v_proj)
        projected = [self._split_heads(plan.pad_keys(apply_linear(module, states))) for module in maps]
        return projected[0], projected[-1]

    def _split_heads(self, states: torch.Tensor) -> torch.Tensor:
        num_heads = states.shape[-1] // self.head_dim  # fewer on each device under tensor parallelism
        return states.view(*states.shape[:-1], num_heads, self.head_dim).transpose(1, 2)

    def _attention_interface(self, dropout: float, query: torch.Tensor) -> Callable:
        implementation = self.config._attn_implementation
        # torch's kernel for CPUs has no dropout, and is slow in bfloat16: Luna's small maps are cheaper written out.
        # No kernel has the derivatives of `torch.func.jvp` and `hessian`.
        cheaper = query.device.type == "cpu" and (dropout > 0.0 or query.dtype == torch.bfloat16)
        if implementation == "sdpa" and (cheaper or is_transformed()):
            return eager_attention_forward
        return ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)


class LunaPackAttention(LunaAttention):
    """P attends to the tokens (section 3.1 of the paper): Y_P = Attn(P, X), with l x n weights in each head.

    There is no output projection (official `LunarMultiheadAttention`).
    """

    def __init__(self, config: LunaConfig):
        super().__init__(config, config.num_pack_attention_heads or config.num_attention_heads)

    def align_queries(self):
        """Initialise the queries such that a slot attends to the tokens that it resembles.

        The scores of each head are as large as those of a single one.
        """
        keys = self.kv_proj if self.config.tie_key_value else self.k_proj
        num_heads = self.config.hidden_size // self.head_dim
        init.copy_(self.q_proj.weight, math.sqrt(num_heads) * keys.weight)

    def forward(
        self,
        packed: torch.Tensor,
        hidden_states: torch.Tensor,
        plan: AttentionPlan,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self.attend(packed, hidden_states, plan, **kwargs)


class LunaUnpackAttention(LunaAttention):
    """The tokens attend to the packed context (section 3.1 of the paper): Y_X = Attn(X, Y_P) W_o, n x l weights."""

    def __init__(self, config: LunaConfig):
        super().__init__(config, config.num_attention_heads)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        packed_context: torch.Tensor,
        plan: AttentionPlan,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if absorbs_projections(self, hidden_states, plan):
            key, value = self.keys_and_values(packed_context, plan)
            maps = (self.q_proj, self.out_proj)
            return absorbed_attention(hidden_states, key, value, plan.mask, self.scaling, *maps), None
        context, attention_weights = self.attend(hidden_states, packed_context, plan, **kwargs)
        return apply_linear(self.out_proj, context), attention_weights


class LunaEmbeddings(nn.Module):
    """Token and position embeddings, and the learned start of P."""

    def __init__(self, config: LunaConfig):
        super().__init__()
        self.config = config
        # RoBERTa's table of positions: row pad_token_id belongs to padding, the first token has the next one.
        self.position_offset = 0 if config.pad_token_id is None else config.pad_token_id + 1
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        if config.position_embedding_type == "learned":
            self.position_embeddings = nn.Embedding(
                config.max_position_embeddings + self.position_offset,
                config.hidden_size,
                padding_idx=config.pad_token_id,
            )
        self.packed_embeddings = nn.Parameter(torch.empty(config.projection_length, config.hidden_size))
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.packed_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        layout: BatchLayout,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the tokens (batch, n, hidden) and P (documents, l, hidden)."""
        if inputs_embeds is None:
            check_range(input_ids, self.config.vocab_size, "Do tokenizer and model belong together? input_ids")
            inputs_embeds = self.word_embeddings(input_ids)
        hidden_states = inputs_embeds + self._embed_positions(inputs_embeds, position_ids, layout)
        hidden_states = apply_dropout(self.dropout, self.layer_norm(hidden_states))
        if layout.token_mask is not None:
            hidden_states = hidden_states.masked_fill(~layout.token_mask.unsqueeze(-1), 0.0)

        num_documents = (inputs_embeds if layout.document_mask is None else layout.document_mask).shape[0]
        packed = self.packed_layer_norm(self._embed_slots(position_ids, layout)).expand(num_documents, -1, -1)
        packed = apply_dropout(self.dropout, packed)
        if layout.slot_mask is not None:
            packed = packed.masked_fill(~layout.slot_mask.unsqueeze(-1), 0.0)
        return hidden_states, packed

    def sums_of_positions(self) -> torch.Tensor:
        """(l, hidden): in row j the sum of the embeddings of the positions j, j + l and so on, if there are any."""
        positions = self.position_embeddings.weight[self.position_offset :]
        slots = torch.arange(len(positions), device=positions.device) % self.config.projection_length
        sums = self.packed_embeddings.clone()
        sums[: len(positions)] = 0.0
        return sums.index_add(0, slots, positions)

    def _embed_slots(self, position_ids: torch.Tensor | None, layout: BatchLayout) -> torch.Tensor:
        """(l, hidden) or (documents, l, hidden)"""
        packed = self.packed_embeddings[: layout.num_slots]
        if self.config.positional_slots and position_ids is not None:
            firsts = first_positions(position_ids, layout.token_mask, layout.documents)
            slots = (firsts + torch.arange(layout.num_slots, device=firsts.device)) % self.config.projection_length
            packed = self.packed_embeddings[slots]
        if self.config.position_embedding_type == "sinusoidal":
            packed = packed + sinusoids(torch.arange(layout.num_slots, device=packed.device), packed)
        return packed

    def _embed_positions(
        self, inputs_embeds: torch.Tensor, position_ids: torch.Tensor | None, layout: BatchLayout
    ) -> torch.Tensor:
        counted = position_ids is None
        if counted:
            position_ids = layout.count_positions(inputs_embeds)
        if self.config.position_embedding_type == "sinusoidal":
            return sinusoids(position_ids + self.position_offset, inputs_embeds)
        limit = self.config.max_position_embeddings
        check_range(
            position_ids,
            limit,
            f"A row holds more tokens than max_position_embeddings ({limit}): truncate it (`tokenizer(..., "
            f"truncation=True, max_length={limit})`) or use a model with more positions. The largest position"
            if counted
            else "position_ids",
        )
        return self.position_embeddings(position_ids + self.position_offset)


def sinusoids(positions: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Sinusoidal embeddings of integer positions: sines in the first half of the dimensions, cosines in the second.

    Args:
        positions: integers of any shape.
        like: gives the size of the last dimension, which is even, and the dtype of the result.
    """
    half, dtype = like.shape[-1] // 2, torch.promote_types(like.dtype, torch.float32)
    steps = torch.arange(half, dtype=dtype, device=positions.device)
    frequencies = torch.exp(steps * (-math.log(10000.0) / max(half - 1, 1)))
    angles = positions.unsqueeze(-1).to(dtype) * frequencies
    return torch.cat((angles.sin(), angles.cos()), dim=-1).to(like.dtype)


class LunaMLP(nn.Module):
    def __init__(self, config: LunaConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.activation_dropout = nn.Dropout(config.activation_dropout)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.activation(apply_linear(self.fc1, hidden_states))
        return apply_linear(self.fc2, apply_dropout(self.activation_dropout, hidden_states))


class LunaLayer(GradientCheckpointingLayer):
    """One layer over tokens X and packed state P (section 3.2 of the paper):

        Y_P = pack(P, X)                Y_X = unpack(X, Y_P)
        P <- LN(P + Y_P)                X <- LN(X + Y_X);  X <- LN(X + FFN(X))

    With `normalize_before` the norms stand before the attentions and the FFN instead, outside of the residuals.
    """

    def __init__(self, config: LunaConfig):
        super().__init__()
        self.normalize_before = config.normalize_before
        self.convolution = None
        if config.conv_kernel_size:
            width, channels = config.conv_kernel_size, config.hidden_size
            self.convolution = nn.Conv1d(channels, channels, width, padding=width // 2, groups=channels)
        self.pack_attention = LunaPackAttention(config)
        self.unpack_attention = LunaUnpackAttention(config)
        self.attention_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.packed_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = LunaMLP(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        hidden_states: torch.Tensor,
        packed: torch.Tensor,
        layout: BatchLayout,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.convolution is not None:  # before the residual branches off, which therefore holds its output
            hidden_states = convolve(self.convolution, hidden_states, layout)
        hidden_states, packed = layout.remove_padding(hidden_states, packed)

        residual, packed_residual = hidden_states, packed
        if self.normalize_before:
            hidden_states = self.attention_layer_norm(hidden_states)
            packed = self.packed_layer_norm(packed)
        packed_context, _ = self.pack_attention(packed, hidden_states, layout.pack, **kwargs)
        hidden_states, _ = self.unpack_attention(hidden_states, packed_context, layout.unpack, **kwargs)
        hidden_states = residual + apply_dropout(self.dropout, hidden_states)
        packed = packed_residual + apply_dropout(self.dropout, packed_context)
        if not self.normalize_before:
            hidden_states = self.attention_layer_norm(hidden_states)
            packed = self.packed_layer_norm(packed)

        residual = hidden_states
        if self.normalize_before:
            hidden_states = self.final_layer_norm(hidden_states)
        hidden_states = residual + apply_dropout(self.dropout, self.mlp(hidden_states))
        if not self.normalize_before:
            hidden_states = self.final_layer_norm(hidden_states)
        return layout.restore_padding(hidden_states, packed)


def convolve(convolution: nn.Conv1d, hidden_states: torch.Tensor, layout: BatchLayout) -> torch.Tensor:
    """Depthwise convolution over the tokens, with zeros in place of padding and of other documents."""
    hidden_states = layout.by_document(hidden_states)
    if layout.document_mask is not None:
        hidden_states = hidden_states.masked_fill(~layout.document_mask.unsqueeze(-1), 0.0)
    return layout.by_row(apply_convolution(convolution, hidden_states))


class LunaPreTrainedModel(PreTrainedModel):
    config: LunaConfig
    base_model_prefix = "luna"
    supports_gradient_checkpointing = True
    _no_split_modules = ["LunaEmbeddings", "LunaLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {
        "hidden_states": LunaLayer,
        "packed_hidden_states": [OutputRecorder(LunaEmbeddings, index=1), OutputRecorder(LunaLayer, index=1)],
        "attentions": LunaUnpackAttention,
        "pack_attentions": LunaPackAttention,
    }

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        cls._auto_class = None  # the code of a subclass is saved where it is registered itself

    @classmethod
    def is_remote_code(cls) -> bool:
        """False: Luna saves its code itself, and Transformers 5.3 does not tie the weights of remote code."""
        return False

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        """True: Transformers would look for it in the text of the class's file, and each release for another text."""
        return True

    def __init__(self, config: LunaConfig, *args, **kwargs):
        super().__init__(config, *args, **kwargs)
        # A configuration is checked when it is made, but `from_pretrained(folder, field=value)` sets fields later.
        config.validate_architecture()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, LunaEmbeddings):
            init.normal_(module.packed_embeddings, mean=0.0, std=self.config.initializer_range)
            if self.config.positional_slots:
                init.copy_(module.packed_embeddings, module.sums_of_positions())

    @torch.no_grad()
    def initialize_weights(self):
        layers = [module for module in self.modules() if isinstance(module, LunaLayer) and module.convolution]
        fresh = [layer.convolution for layer in layers if not getattr(layer.convolution, "_is_hf_initialized", False)]
        super().initialize_weights()
        for convolution in fresh:  # as the identity
            init.dirac_(convolution.weight, groups=convolution.groups)
        if self.config.positional_slots:  # not in `_init_weights`, which is not called for modules without parameters
            for module in self.modules():
                if isinstance(module, LunaPackAttention):
                    module.align_queries()

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        state_dict: dict[str, torch.Tensor] | None = None,
        **kwargs,
    ):
        """Save as every Transformers model does; beside the weights lies the code, for `trust_remote_code=True`.

        A subclass is saved as the nearest class of Luna, unless `register_for_auto_class` was called on it.
        """
        saved_class = registered_class(type(self), default=LunaModel)
        auto_classes = AUTO_CLASSES | {vars(saved_class)["_auto_class"]: saved_class}
        self.config.auto_map = {name: class_reference(model_class) for name, model_class in auto_classes.items()}
        self.config.saved_model_classes = (saved_class, LunaModel)
        # Transformers tells tied weights by their memory, which is no longer one where shards were gathered.
        state_dict = dict(self.state_dict() if state_dict is None else state_dict)
        for target, source in self.all_tied_weights_keys.items():
            if state_dict.keys() >= {target, source} and self.get_parameter(target) is self.get_parameter(source):
                del state_dict[target]
        try:
            super().save_pretrained(save_directory, is_main_process, state_dict, **kwargs)
        finally:
            vars(self.config).pop("saved_model_classes", None)

    def get_position_embeddings(self) -> nn.Embedding | None:
        """The table of learned positions, with `pad_token_id + 1` rows before the first position, or None."""
        return getattr(self.base_model.embeddings, "position_embeddings", None)

    def resize_position_embeddings(self, new_num_position_embeddings: int):
        """Let rows hold `new_num_position_embeddings` tokens: `config.max_position_embeddings` becomes that number.

        Learned positions are repeated: position i starts as the old position i mod n, where n is the old number.
        What the model computes for rows of up to n tokens does not change. Fewer positions keep the first ones.
        Sinusoidal positions go on by themselves.

        Raises:
            ValueError: for anything but an int of at least 1.
        """
        if type(new_num_position_embeddings) is not int or new_num_position_embeddings < 1:
            raise ValueError(
                f"The number of positions must be an int of at least 1, not {new_num_position_embeddings!r}."
            )
        embeddings = self.base_model.embeddings
        old = self.get_position_embeddings()
        if old is not None:
            offset = embeddings.position_offset
            with gathered_for_resizing(old.weight):
                weight = old.weight.detach()
                positions = torch.arange(new_num_position_embeddings, device=weight.device)
                positions = positions % self.config.max_position_embeddings
                weight = torch.cat((weight[:offset], weight[offset:][positions]))
            new = nn.Embedding.from_pretrained(
                weight, freeze=not old.weight.requires_grad, padding_idx=old.padding_idx
            )
            embeddings.position_embeddings = new
        self.config.max_position_embeddings = new_num_position_embeddings


def gathered_for_resizing(weight: nn.Parameter) -> AbstractContextManager:
    """Under DeepSpeed ZeRO-3 every process holds a part of the weight: gather it to read the whole."""
    if not hasattr(weight, "ds_id"):
        return nullcontext()
    # Not by an import statement, which would make DeepSpeed a requirement of this file as remote code.
    return sys.modules["deepspeed"].zero.GatheredParameters([weight])


class LunaModel(LunaPreTrainedModel):
    """The bare encoder: tokens in, hidden states and packed state out."""

    def __init__(self, config: LunaConfig):
        super().__init__(config)
        self.embeddings = LunaEmbeddings(config)
        self.layers = nn.ModuleList([LunaLayer(config) for _ in range(config.num_hidden_layers)])
        if config.normalize_before:
            self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
            self.packed_final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding):
        self.embeddings.word_embeddings = value

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        cu_seq_lens_q: torch.IntTensor | None = None,
        cu_seq_lens_k: torch.IntTensor | None = None,
        max_length_q: int | None = None,
        max_length_k: int | None = None,
        num_tokens: int | None = None,
        layout: BatchLayout | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> LunaModelOutput:
        r"""
        Args:
            input_ids (`torch.LongTensor` of shape `(batch, n)`):
                Token ids. Either these or `inputs_embeds`.
            attention_mask (`torch.Tensor` of shape `(batch, n)`, *optional*):
                1 for tokens, 0 for padding, on either side. Without it every position is a token, also one that
                holds `pad_token_id`.
            position_ids (`torch.LongTensor` of shape `(batch, n)`, *optional*):
                Positions from 0. Without them the tokens of a document are counted. Where they do not rise from one
                token of a row to the next, another document begins.
            inputs_embeds (`torch.FloatTensor` of shape `(batch, n, hidden_size)`, *optional*):
                Token embeddings in place of `input_ids`.
            cu_seq_lens_q (`torch.IntTensor` of shape `(documents + 1,)`, *optional*):
                Rows that hold several documents: where these begin and end in the batch read row by row, as
                `DataCollatorWithFlattening(return_flash_attn_kwargs=True)` gives it. No document sees another. Each
                has its own P: `packed_last_hidden_state` and the maps of `output_attentions` then have one row a
                document, as if the documents were a padded batch.
            max_length_q (`int`, *optional*):
                Length of the longest document.
            cu_seq_lens_k, max_length_k:
                The same; they may be left out.
            num_tokens (`int`, *optional*):
                Sum of `attention_mask`. With it and `max_length_q`, several documents in a row need no device
                synchronisation.
            layout (`BatchLayout`, *optional*):
                What `lay_out_batch` makes of the arguments above, where a head has called it already.

        Raises:
            ValueError: for a mask of another shape, a document of more than `max_position_embeddings` tokens, or (on a
                CPU) ids out of range, or boundaries or counts that do not fit.
        """
        if layout is None:
            inputs, bounds = the_given_one(input_ids, inputs_embeds), (cu_seq_lens_q, cu_seq_lens_k)
            lengths = (max_length_q, max_length_k, num_tokens)
            layout = lay_out_batch(self, inputs, attention_mask, position_ids, *bounds, *lengths)
        self._warn_about_padding(input_ids, layout)

        hidden_states, packed = self.embeddings(input_ids, inputs_embeds, position_ids, layout)
        for layer in self.layers:
            hidden_states, packed = layer(hidden_states, packed, layout, **kwargs)
        if self.config.normalize_before:
            hidden_states = self.final_layer_norm(hidden_states)
            packed = self.packed_final_layer_norm(packed)
        hidden_states, packed = join_gradients(hidden_states, packed)
        return LunaModelOutput(last_hidden_state=hidden_states, packed_last_hidden_state=packed)

    def _warn_about_padding(self, input_ids: torch.Tensor | None, layout: BatchLayout):
        """Warn where ids hold padding and there is no mask; not in training on a GPU, which this would synchronise."""
        if input_ids is None or is_vmapped(input_ids) or (self.training and input_ids.device.type != "cpu"):
            return
        self.warn_if_padding_and_no_attention_mask(input_ids, layout.token_mask)


def the_given_one(input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None) -> torch.Tensor:
    given = [inputs for inputs in (input_ids, inputs_embeds) if inputs is not None]
    if len(given) != 1:
        raise ValueError("Give exactly one of input_ids and inputs_embeds.")
    return given[0]


def join_gradients(hidden_states: torch.Tensor, packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pass both states on; the one that no loss reads gets a gradient of zeros instead of none.

    The norm of P in the last layer would otherwise have no gradient under a masked-LM loss, and
    `DistributedDataParallel` would wait for it.
    """
    if not torch.is_grad_enabled() or torch.jit.is_tracing() or torch.compiler.is_exporting():
        return hidden_states, packed
    # The sum of an empty slice is 0, whatever the state holds, and so is its gradient.
    from_hidden, from_packed = (states[..., :0].sum() for states in (hidden_states, packed))
    return hidden_states + from_packed.to(hidden_states), packed + from_hidden.to(packed)


class LunaLMHead(nn.Module):
    """RoBERTa's masked-LM head; the decoder alone holds the bias."""

    def __init__(self, config: LunaConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.layer_norm(self.activation(apply_linear(self.dense, hidden_states)))
        return apply_decoder(self.decoder, hidden_states)


class LunaForMaskedLM(LunaPreTrainedModel):
    """Luna with the masked language modelling head."""

    _tied_weights_keys = {"lm_head.decoder.weight": "luna.embeddings.word_embeddings.weight"}
    _tp_plan = {"lm_head.decoder": "colwise_gather_output"}

    def __init__(self, config: LunaConfig):
        super().__init__(config)
        self.luna = LunaModel(config)
        self.lm_head = LunaLMHead(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head.decoder

    def set_output_embeddings(self, new_embeddings: nn.Linear):
        self.lm_head.decoder = new_embeddings

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        num_predicted: int | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> LunaMaskedLMOutput:
        r"""
        Args:
            input_ids, attention_mask, position_ids, inputs_embeds:
                As in [`LunaModel.forward`].
            labels (`torch.LongTensor` of shape `(batch, n)`, *optional*):
                The ids to predict; -100 where there is nothing to predict.
            num_predicted (`int`, *optional*):
                How many labels are not -100; it saves a device synchronisation under `sparse_prediction`.
            num_items_in_batch (`torch.Tensor` or `int`, *optional*):
                Divides the summed loss instead of the number of labels in this batch: the number of labels in the
                whole batch where it is spread over accumulation steps or processes.
        """
        outputs = self.luna(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            return_dict=True,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        if labels is not None and labels.shape != hidden_states.shape[:2]:
            raise ValueError(
                f"labels must have the shape (batch, n) = {tuple(hidden_states.shape[:2])}, not {tuple(labels.shape)}."
            )
        if labels is not None and self.config.sparse_prediction and not is_vmapped(labels):
            hidden_states, labels = select_labelled(hidden_states, labels, num_predicted)
        logits = self.lm_head(hidden_states)

        loss = None
        if labels is not None:
            loss = cross_entropy(logits, labels, num_items_in_batch)
        return LunaMaskedLMOutput(loss=loss, logits=logits, **recorded_outputs(outputs))


def select_labelled(
    hidden_states: torch.Tensor, labels: torch.Tensor, num_predicted: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The states (labelled, hidden) and labels (labelled) of positions whose label is not -100."""
    places = true_places(labels != -100, num_predicted)
    return take(hidden_states.flatten(0, 1), places), labels.flatten()[places]


class LunaPackedAttentionPooling(nn.Module):
    """The first token of a document attends to its slots of P (official `attention_classification_head`)."""

    def __init__(self, config: LunaConfig):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, first_token: torch.Tensor, packed: torch.Tensor, slot_mask: torch.Tensor | None) -> torch.Tensor:
        query = self._split_heads(self.q_proj(first_token).unsqueeze(1))
        key, value = self._split_heads(self.k_proj(packed)), self._split_heads(self.v_proj(packed))
        mask = None if slot_mask is None else slot_mask[:, None, None, :]
        context, _ = eager_attention_forward(self, query, key, value, mask, scaling=query.shape[-1] ** -0.5)
        return self.layer_norm(self.out_proj(context.flatten(start_dim=1)))

    def _split_heads(self, states: torch.Tensor) -> torch.Tensor:
        return states.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class LunaClassificationHead(nn.Module):
    """One result a document: what `classifier_pooling` names, then a feed-forward network."""

    def __init__(self, config: LunaConfig, num_labels: int):
        super().__init__()
        self.config = config
        if config.classifier_pooling == "packed_max":
            self.in_proj = nn.Linear(config.hidden_size, config.hidden_size)
        elif config.classifier_pooling == "packed_attention":
            self.attention = LunaPackedAttentionPooling(config)
        inner_size = config.classifier_hidden_size or config.hidden_size
        self.dense = nn.Linear(config.hidden_size, inner_size)
        self.activation = ACT2FN[config.classifier_activation]
        self.dropout = nn.Dropout(classifier_dropout(config))
        self.out_proj = nn.Linear(inner_size, num_labels)

    def forward(self, hidden_states: torch.Tensor, packed: torch.Tensor, layout: BatchLayout) -> torch.Tensor:
        """(documents, num_labels), from the last states of tokens and P."""
        pooled = apply_dropout(self.dropout, self._pool(layout.by_document(hidden_states), packed, layout))
        return self.out_proj(apply_dropout(self.dropout, self.activation(self.dense(pooled))))

    def _pool(self, hidden_states: torch.Tensor, packed: torch.Tensor, layout: BatchLayout) -> torch.Tensor:
        mask, slot_mask = layout.document_mask, layout.slot_mask
        if self.config.classifier_pooling == "mean":
            if mask is None:
                return hidden_states.mean(dim=1)
            tokens = mask.unsqueeze(-1)
            return hidden_states.masked_fill(~tokens, 0.0).sum(dim=1) / tokens.sum(dim=1).clamp(min=1)
        if self.config.classifier_pooling == "packed_max":
            packed = self.in_proj(packed)
            if slot_mask is not None:
                packed = packed.masked_fill(~slot_mask.unsqueeze(-1), torch.finfo(packed.dtype).min)
            return packed.amax(dim=1)

        if mask is None or self.config.classifier_reads_first_column:
            first_token = hidden_states[:, 0]
        else:
            first = mask.int().argmax(dim=1)
            first_token = hidden_states[torch.arange(first.shape[0], device=first.device), first]
        if self.config.classifier_pooling == "packed_attention":
            return self.attention(first_token, packed, slot_mask)
        return first_token


def classifier_dropout(config: LunaConfig) -> float:
    return config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout


def classify_documents(
    model: LunaPreTrainedModel,
    input_ids: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    inputs_embeds: torch.Tensor | None,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[LunaModelOutput, torch.Tensor, BatchLayout]:
    """Run the encoder and the head.

    Returns the encoder's outputs, the logits (documents, num_labels), and how the batch is laid out.
    """
    inputs = the_given_one(input_ids, inputs_embeds)
    layout = lay_out_batch(model.luna, inputs, attention_mask, position_ids, **kwargs)
    outputs = model.luna(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=position_ids,
        inputs_embeds=inputs_embeds,
        layout=layout,
        return_dict=True,
        **kwargs,
    )
    logits = model.classifier(outputs.last_hidden_state, outputs.packed_last_hidden_state, layout)
    return outputs, logits, layout


class LunaForSequenceClassification(LunaPreTrainedModel):
    """Luna with a head that classifies, or gives a number for, each document."""

    def __init__(self, config: LunaConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.luna = LunaModel(config)
        self.classifier = LunaClassificationHead(config, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> LunaClassifierOutput:
        r"""
        Args:
            input_ids, attention_mask, position_ids, inputs_embeds:
                As in [`LunaModel.forward`]. Where a row holds several documents, each has its own logits and label.
            labels (`torch.Tensor` of shape `(documents,)` or `(documents, num_labels)`, *optional*):
                Classes (integers, cross entropy), with `num_labels=1` numbers (mean squared error), or for each class
                0.0 or 1.0 (binary cross entropy). `config.problem_type` says which where that is not plain. A label of
                -100 is a missing one.
            num_items_in_batch (`torch.Tensor` or `int`, *optional*):
                Divides the summed loss instead of the number of labels in this batch.
        """
        outputs, logits, _ = classify_documents(
            self,
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        loss = None
        if labels is not None:
            loss = document_loss(logits, labels, self.config, num_items_in_batch)
        return classifier_output(loss, logits, outputs)


class LunaForMultipleChoice(LunaPreTrainedModel):
    """Luna with a head that gives a score to each of several choices, as for RACE or CommonsenseQA."""

    def __init__(self, config: LunaConfig):
        super().__init__(config)
        self.luna = LunaModel(config)
        self.classifier = LunaClassificationHead(config, num_labels=1)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> LunaClassifierOutput:
        r"""
        Args:
            input_ids, attention_mask, position_ids, inputs_embeds:
                As in [`LunaModel.forward`], with a dimension more: `(batch, choices, n)`. Instead, the choices of a
                question may be the documents of one row, `(batch, 1, n)`; each row must then have as many.
            labels (`torch.LongTensor` of shape `(batch,)`, *optional*):
                Which choice is right, from 0; -100 where that is not known.
            num_items_in_batch (`torch.Tensor` or `int`, *optional*):
                Divides the summed loss instead of the number of labels in this batch.

        Raises:
            ValueError: (on a CPU) where the questions have different numbers of choices.
        """
        num_questions = the_given_one(input_ids, inputs_embeds).shape[0]
        outputs, logits, layout = classify_documents(
            self,
            **{
                name: None if value is None else value.flatten(0, 1)
                for name, value in {
                    "input_ids": input_ids,
                    "attention_mask": attention_mask,
                    "position_ids": position_ids,
                    "inputs_embeds": inputs_embeds,
                }.items()
            },
            **kwargs,
        )
        if layout.documents is not None:
            check_choices(layout.documents, num_questions)
        logits = logits.view(num_questions, -1)
        loss = None
        if labels is not None:
            loss = cross_entropy(logits, labels, num_items_in_batch)
        return classifier_output(loss, logits, outputs)


class LunaForTokenClassification(LunaPreTrainedModel):
    """Luna with a head that classifies each token."""

    def __init__(self, config: LunaConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.luna = LunaModel(config)
        self.dropout = nn.Dropout(classifier_dropout(config))
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> LunaClassifierOutput:
        r"""
        Args:
            input_ids, attention_mask, position_ids, inputs_embeds:
                As in [`LunaModel.forward`].
            labels (`torch.LongTensor` of shape `(batch, n)`, *optional*):
                The class of each token; -100 for those without one.
            num_items_in_batch (`torch.Tensor` or `int`, *optional*):
                Divides the summed loss instead of the number of labels in this batch.
        """
        outputs = self.luna(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            return_dict=True,
            **kwargs,
        )
        logits = self.classifier(apply_dropout(self.dropout, outputs.last_hidden_state))
        loss = None
        if labels is not None:
            loss = cross_entropy(logits, labels, num_items_in_batch)
        return classifier_output(loss, logits, outputs)


class LunaForQuestionAnswering(LunaPreTrainedModel):
    """Luna with a head that finds where the answer to a question begins and ends."""

    def __init__(self, config: LunaConfig):
        super().__init__(config)
        self.luna = LunaModel(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        start_positions: torch.LongTensor | None = None,
        end_positions: torch.LongTensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> LunaQuestionAnsweringOutput:
        r"""
        Args:
            input_ids, attention_mask, position_ids, inputs_embeds:
                As in [`LunaModel.forward`]. Where a row holds several documents, each has its own logits and answer.
            start_positions, end_positions (`torch.LongTensor` of shape `(documents,)`, *optional*):
                First and last token of the answer, from 0 at the beginning of the document (of the row, where it
                holds one; padding on the left counts there). Positions without a token are ignored: at padding,
                outside the document or negative ones.
            num_items_in_batch (`torch.Tensor` or `int`, *optional*):
                Divides the summed losses of start and end instead of the numbers of those in this batch.
        """
        inputs = the_given_one(input_ids, inputs_embeds)
        layout = lay_out_batch(self.luna, inputs, attention_mask, position_ids, **kwargs)
        outputs = self.luna(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            layout=layout,
            return_dict=True,
            **kwargs,
        )
        logits, mask = layout.by_document(self.qa_outputs(outputs.last_hidden_state)), layout.document_mask
        if mask is not None:
            logits = logits.masked_fill(~mask.unsqueeze(-1), torch.finfo(logits.dtype).min)
        start_logits, end_logits = logits.unbind(dim=-1)

        loss = None
        if start_positions is not None and end_positions is not None:
            start_loss = position_loss(start_logits, start_positions, mask, num_items_in_batch)
            end_loss = position_loss(end_logits, end_positions, mask, num_items_in_batch)
            loss = (start_loss + end_loss) / 2
        return LunaQuestionAnsweringOutput(
            loss=loss, start_logits=start_logits, end_logits=end_logits, **recorded_outputs(outputs)
        )


# A saved folder carries this file and the configuration's, and names all classes in them.
AUTO_CLASSES = {
    "AutoModel": LunaModel,
    "AutoModelForMaskedLM": LunaForMaskedLM,
    "AutoModelForMultipleChoice": LunaForMultipleChoice,
    "AutoModelForQuestionAnswering": LunaForQuestionAnswering,
    "AutoModelForSequenceClassification": LunaForSequenceClassification,
    "AutoModelForTokenClassification": LunaForTokenClassification,
}
LunaConfig.register_for_auto_class()
for auto_class, model_class in AUTO_CLASSES.items():
    model_class.register_for_auto_class(auto_class)


__all__ = [
    "LunaClassifierOutput",
    "LunaForMaskedLM",
    "LunaForMultipleChoice",
    "LunaForQuestionAnswering",
    "LunaForSequenceClassification",
    "LunaForTokenClassification",
    "LunaMaskedLMOutput",
    "LunaModel",
    "LunaModelOutput",
    "LunaPreTrainedModel",
    "LunaQuestionAnsweringOutput",
]
