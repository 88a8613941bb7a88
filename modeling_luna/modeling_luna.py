# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""Luna, the linear unified nested attention encoder (Ma et al., 2021, https://arxiv.org/abs/2106.01540).

Two states run through the layers: the hidden states X of the n tokens, and the packed state P of l slots. Each layer
packs X into P and unpacks the result into X, so that time and memory grow with n * l instead of n * n.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import ModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_luna import LunaConfig


@dataclass
class LunaModelOutput(ModelOutput):
    """
    Output of [`LunaModel`].

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(batch, n, hidden_size)`):
            The tokens after the last layer; at padding it is finite and holds no meaning.
        packed_last_hidden_state (`torch.FloatTensor` of shape `(batch, l, hidden_size)`):
            The packed state P after the last layer, l = min(projection_length, n) (projection_length where
            `dynamic_projection` is off). A row of m < l tokens uses the first m slots; the others hold no meaning.
        hidden_states (`tuple`, with `output_hidden_states=True`):
            The tokens after the embeddings and after each layer.
        packed_hidden_states (`tuple`, with `output_packed_hidden_states=True`):
            P after the embeddings and after each layer (with pre-norm: before the final norm).
        attentions (`tuple`, with `output_attentions=True` and the eager implementation):
            Unpack attention of each layer, `(batch, heads, n, l)`.
        pack_attentions (`tuple`, with `output_pack_attentions=True` and the eager implementation):
            Pack attention of each layer, `(batch, heads, l, n)`.
    """

    last_hidden_state: torch.FloatTensor | None = None
    packed_last_hidden_state: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    packed_hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    pack_attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class LunaMaskedLMOutput(ModelOutput):
    """
    Output of [`LunaForMaskedLM`].

    Args:
        loss (scalar `torch.FloatTensor`, where labels are given):
            Mean cross entropy over the labelled positions, in nats.
        logits (`torch.FloatTensor` of shape `(batch, n, vocab_size)`):
            Scores before the softmax; of shape `(labelled positions, vocab_size)` with labels and
            `sparse_prediction`.
        hidden_states, attentions, packed_last_hidden_state, packed_hidden_states, pack_attentions:
            As in [`LunaModelOutput`].
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    packed_last_hidden_state: torch.FloatTensor | None = None
    packed_hidden_states: tuple[torch.FloatTensor, ...] | None = None
    pack_attentions: tuple[torch.FloatTensor, ...] | None = None


def apply_dropout(states: torch.Tensor, p: float, training: bool) -> torch.Tensor:
    """Dropout as in `torch.nn.functional`, but several times faster on a CPU.

    torch draws one random number a value there, and one after the other. Four values share a draw of 64 bits here, so
    that `p` is rounded to a multiple of 2**-16.
    """
    threshold = round(p * 2**16)
    if not training or p == 0.0:
        return states
    if states.device.type != "cpu" or torch.compiler.is_compiling() or not 0 < threshold < 2**16:
        return nn.functional.dropout(states, p, training)
    count = states.numel()
    draws = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    kept = draws.view(torch.int16)[:count].view(states.shape) >= threshold - 2**15
    return states * kept.to(states.dtype).mul_(2**16 / (2**16 - threshold))


class LunaDropout(nn.Dropout):
    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return apply_dropout(states, self.p, self.training)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention with the weights written out; the mask is additive or boolean (True: attend)."""
    attention_weights = torch.matmul(query * scaling, key.transpose(-1, -2))  # (batch, heads, queries, keys)
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        attention_weights = attention_weights.masked_fill(~attention_mask, torch.finfo(query.dtype).min)
    elif attention_mask is not None:
        attention_weights = attention_weights + attention_mask
    attention_weights = nn.functional.softmax(attention_weights, dim=-1, dtype=torch.float32).to(query.dtype)
    attention_weights = apply_dropout(attention_weights, dropout, module.training)
    context = torch.matmul(attention_weights, value)
    return context.transpose(1, 2).contiguous(), attention_weights


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
        self.dropout = LunaDropout(config.hidden_dropout_prob)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return the tokens (batch, n, hidden), P (batch, l, hidden), and which slots a row uses (batch, l)."""
        if inputs_embeds is None:
            check_range(
                input_ids, self.word_embeddings.num_embeddings, "Do tokenizer and model belong together? input_ids"
            )
            inputs_embeds = self.word_embeddings(input_ids)
        batch_size, num_tokens, _ = inputs_embeds.shape

        hidden_states = inputs_embeds + self._embed_positions(inputs_embeds, position_ids, attention_mask)
        hidden_states = self.dropout(self.layer_norm(hidden_states))

        num_slots = self.config.projection_length
        if self.config.dynamic_projection:
            num_slots = min(num_slots, num_tokens)
        packed = self.packed_embeddings[:num_slots]
        if self.config.position_embedding_type == "sinusoidal":
            packed = packed + sinusoids(torch.arange(num_slots, device=packed.device), packed)
        packed = self.packed_layer_norm(packed).expand(batch_size, -1, -1)
        packed = self.dropout(packed)

        if attention_mask is None:
            return hidden_states, packed, None
        hidden_states = hidden_states.masked_fill(~attention_mask.unsqueeze(-1), 0.0)
        if not self.config.dynamic_projection:
            return hidden_states, packed, None
        lengths = attention_mask.sum(dim=-1, keepdim=True)
        slot_mask = torch.arange(num_slots, device=packed.device) < lengths
        packed = packed.masked_fill(~slot_mask.unsqueeze(-1), 0.0)
        return hidden_states, packed, slot_mask

    def _embed_positions(
        self, inputs_embeds: torch.Tensor, position_ids: torch.Tensor | None, attention_mask: torch.Tensor | None
    ) -> torch.Tensor:
        counted = position_ids is None
        if position_ids is None and attention_mask is None:
            position_ids = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device).unsqueeze(0)
        elif position_ids is None:
            # Counts the tokens of each row, so that padding on either side does not move them.
            position_ids = (attention_mask.cumsum(dim=-1) - 1).clamp(min=0)
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


def check_range(ids: torch.Tensor, limit: int, name: str):
    """Raise a `ValueError` for ids outside [0, limit), on a CPU alone: a GPU would have to wait for the answer."""
    if ids.device.type != "cpu" or torch.compiler.is_compiling() or ids.numel() == 0:
        return
    smallest, largest = (int(value) for value in torch.aminmax(ids))
    if smallest < 0 or largest >= limit:
        raise ValueError(f"{name} must lie between 0 and {limit - 1}; found {smallest} to {largest}.")


def sinusoids(positions: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Sinusoidal embeddings of integer positions: sines in the first half of the dimensions, cosines in the second.

    Args:
        positions: integers of any shape.
        like: gives the size of the last dimension, which is even, and the dtype of the result.
    """
    half = like.shape[-1] // 2
    frequencies = torch.exp(torch.arange(half, device=positions.device) * (-math.log(10000.0) / max(half - 1, 1)))
    angles = positions.unsqueeze(-1).float() * frequencies
    return torch.cat((angles.sin(), angles.cos()), dim=-1).to(like.dtype)


class LunaAttention(nn.Module):
    """What pack and unpack attention share: projections, heads and the choice of the attention implementation."""

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
        attention_mask: torch.Tensor | None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attention of (batch, queries, hidden) over (batch, keys, hidden), heads merged, and its weights."""
        query = self._split_heads(self.q_proj(query_states))
        if self.config.tie_key_value:
            key = value = self._split_heads(self.kv_proj(key_value_states))
        else:
            key = self._split_heads(self.k_proj(key_value_states))
            value = self._split_heads(self.v_proj(key_value_states))

        dropout = self.config.attention_probs_dropout_prob if self.training else 0.0
        context, attention_weights = self._attention_interface(dropout, query.device)(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )
        return context.flatten(start_dim=-2), attention_weights

    def _split_heads(self, states: torch.Tensor) -> torch.Tensor:
        num_heads = states.shape[-1] // self.head_dim  # fewer on each device under tensor parallelism
        return states.unflatten(-1, (num_heads, self.head_dim)).transpose(1, 2)  # (batch, heads, time, head_dim)

    def _attention_interface(self, dropout: float, device: torch.device) -> Callable:
        implementation = self.config._attn_implementation
        if implementation == "sdpa" and dropout > 0.0 and device.type == "cpu":
            # torch has no fused kernel for this; Luna's small maps are cheaper written out with the faster dropout.
            return eager_attention_forward
        return ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)


class LunaPackAttention(LunaAttention):
    """P attends to the tokens. There is no output projection (official `LunarMultiheadAttention`)."""

    def __init__(self, config: LunaConfig):
        super().__init__(config, config.num_pack_attention_heads or config.num_attention_heads)

    def forward(
        self,
        packed: torch.Tensor,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self.attend(packed, hidden_states, attention_mask, **kwargs)


class LunaUnpackAttention(LunaAttention):
    """The tokens attend to what the pack attention gave."""

    def __init__(self, config: LunaConfig):
        super().__init__(config, config.num_attention_heads)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        packed_context: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        context, attention_weights = self.attend(hidden_states, packed_context, attention_mask, **kwargs)
        return self.out_proj(context), attention_weights


class LunaMLP(nn.Module):
    def __init__(self, config: LunaConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.activation_dropout = LunaDropout(config.activation_dropout)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.activation_dropout(self.activation(self.fc1(hidden_states)))
        return self.fc2(hidden_states)


class LunaConvolution(nn.Conv1d):
    """Depthwise convolution over the tokens that starts as the identity and reads zeros in place of padding.

    The parameters are those of `Conv1d`, whose own forward pass is not used.
    """

    def __init__(self, config: LunaConfig):
        super().__init__(config.hidden_size, config.hidden_size, config.conv_kernel_size, groups=config.hidden_size)

    def forward(self, hidden_states: torch.Tensor, token_mask: torch.Tensor | None = None) -> torch.Tensor:
        if token_mask is not None:
            hidden_states = hidden_states.masked_fill(~token_mask.unsqueeze(-1), 0.0)
        # (batch, n, hidden) read as an image (batch, hidden, 1, n) with the channels last: no transposition is
        # copied, and the kernels for images are several times faster on a CPU than those of Conv1d.
        image = hidden_states.unsqueeze(1).permute(0, 3, 1, 2)
        image = nn.functional.conv2d(
            image,
            self.weight.view(self.groups, 1, 1, -1),
            self.bias,
            padding=(0, self.kernel_size[0] // 2),
            groups=self.groups,
        )
        return image.permute(0, 2, 3, 1).squeeze(1)


class LunaLayer(GradientCheckpointingLayer):
    def __init__(self, config: LunaConfig):
        super().__init__()
        self.normalize_before = config.normalize_before
        self.convolution = LunaConvolution(config) if config.conv_kernel_size else None
        self.pack_attention = LunaPackAttention(config)
        self.unpack_attention = LunaUnpackAttention(config)
        self.attention_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.packed_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = LunaMLP(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = LunaDropout(config.hidden_dropout_prob)

    def forward(
        self,
        hidden_states: torch.Tensor,
        packed: torch.Tensor,
        pack_attention_mask: torch.Tensor | None = None,
        unpack_attention_mask: torch.Tensor | None = None,
        token_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.convolution is not None:  # before the residual branches off, which therefore holds its output
            hidden_states = self.convolution(hidden_states, token_mask)

        residual, packed_residual = hidden_states, packed
        if self.normalize_before:
            hidden_states = self.attention_layer_norm(hidden_states)
            packed = self.packed_layer_norm(packed)
        packed_context, _ = self.pack_attention(packed, hidden_states, pack_attention_mask, **kwargs)
        hidden_states, _ = self.unpack_attention(hidden_states, packed_context, unpack_attention_mask, **kwargs)
        hidden_states = residual + self.dropout(hidden_states)
        packed = packed_residual + self.dropout(packed_context)
        if not self.normalize_before:
            hidden_states = self.attention_layer_norm(hidden_states)
            packed = self.packed_layer_norm(packed)

        residual = hidden_states
        if self.normalize_before:
            hidden_states = self.final_layer_norm(hidden_states)
        hidden_states = residual + self.dropout(self.mlp(hidden_states))
        if not self.normalize_before:
            hidden_states = self.final_layer_norm(hidden_states)
        return hidden_states, packed


class JoinGradients(torch.autograd.Function):
    """Pass both states on; the one that no loss reads gets a gradient of zeros instead of none.

    The norm of P in the last layer would otherwise have no gradient under a masked-LM loss, and
    `DistributedDataParallel` would wait for it.
    """

    @staticmethod
    def forward(hidden_states: torch.Tensor, packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return hidden_states.view_as(hidden_states), packed.view_as(packed)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, hidden_gradient: torch.Tensor, packed_gradient: torch.Tensor):
        return hidden_gradient, packed_gradient


class LunaPreTrainedModel(PreTrainedModel):
    config: LunaConfig
    base_model_prefix = "luna"
    supports_gradient_checkpointing = True
    _no_split_modules = ["LunaEmbeddings", "LunaLayer"]
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {
        "hidden_states": LunaLayer,
        "packed_hidden_states": [OutputRecorder(LunaEmbeddings, index=1), OutputRecorder(LunaLayer, index=1)],
        "attentions": LunaUnpackAttention,
        "pack_attentions": LunaPackAttention,
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, LunaEmbeddings):
            init.normal_(module.packed_embeddings, mean=0.0, std=self.config.initializer_range)
        elif isinstance(module, LunaConvolution):
            init.dirac_(module.weight, groups=module.groups)


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
                Positions from 0. Without them the tokens of a row are counted.
            inputs_embeds (`torch.FloatTensor` of shape `(batch, n, hidden_size)`, *optional*):
                Token embeddings in place of `input_ids`.

        Raises:
            ValueError: for a mask of another shape, a row of more than `max_position_embeddings` tokens, or (on a
                CPU) ids out of range.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of input_ids and inputs_embeds.")
        input_shape = (input_ids if input_ids is not None else inputs_embeds).shape[:2]
        if attention_mask is not None and attention_mask.shape != input_shape:
            raise ValueError(
                f"attention_mask must have the shape (batch, n) = {tuple(input_shape)}, not "
                f"{tuple(attention_mask.shape)}: 1 for tokens, 0 for padding."
            )
        if attention_mask is not None:
            attention_mask = attention_mask.bool()
        elif input_ids is not None:
            self.warn_if_padding_and_no_attention_mask(input_ids, attention_mask)

        hidden_states, packed, slot_mask = self.embeddings(input_ids, inputs_embeds, position_ids, attention_mask)
        pack_attention_mask = create_bidirectional_mask(
            config=self.config,
            inputs_embeds=packed,
            attention_mask=attention_mask,
            encoder_hidden_states=hidden_states,
        )
        unpack_attention_mask = create_bidirectional_mask(
            config=self.config,
            inputs_embeds=hidden_states,
            attention_mask=slot_mask,
            encoder_hidden_states=packed,
        )
        for layer in self.layers:
            hidden_states, packed = layer(
                hidden_states, packed, pack_attention_mask, unpack_attention_mask, attention_mask, **kwargs
            )
        if self.config.normalize_before:
            hidden_states = self.final_layer_norm(hidden_states)
            packed = self.packed_final_layer_norm(packed)
        hidden_states, packed = JoinGradients.apply(hidden_states, packed)
        return LunaModelOutput(last_hidden_state=hidden_states, packed_last_hidden_state=packed)


class LunaLMHead(nn.Module):
    """RoBERTa's masked-LM head; the decoder alone holds the bias."""

    def __init__(self, config: LunaConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.layer_norm(self.activation(self.dense(hidden_states)))
        return self.decoder(hidden_states)


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
        **kwargs: Unpack[TransformersKwargs],
    ) -> LunaMaskedLMOutput:
        r"""
        Args:
            input_ids, attention_mask, position_ids, inputs_embeds:
                As in [`LunaModel.forward`].
            labels (`torch.LongTensor` of shape `(batch, n)`, *optional*):
                The ids to predict; -100 where there is nothing to predict.
            num_items_in_batch (`torch.Tensor` or `int`, *optional*):
                Divides the summed loss instead of the number of labels in this batch: the number of labels in the
                whole batch where it is spread over accumulation steps or processes.
        """
        outputs = self.luna(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        if labels is not None and labels.shape != hidden_states.shape[:2]:
            raise ValueError(
                f"labels must have the shape (batch, n) = {tuple(hidden_states.shape[:2])}, not {tuple(labels.shape)}."
            )
        if labels is not None and self.config.sparse_prediction:
            labelled = labels != -100
            hidden_states, labels = hidden_states[labelled], labels[labelled]
        logits = self.lm_head(hidden_states)

        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs)
        return LunaMaskedLMOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            packed_last_hidden_state=outputs.packed_last_hidden_state,
            packed_hidden_states=outputs.packed_hidden_states,
            pack_attentions=outputs.pack_attentions,
        )


__all__ = [
    "LunaForMaskedLM",
    "LunaMaskedLMOutput",
    "LunaModel",
    "LunaModelOutput",
    "LunaPreTrainedModel",
]
