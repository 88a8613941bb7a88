# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""Read the test vectors of the official Luna in `tests/fixtures` and give their weights our names."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from modeling_luna import LunaConfig


FIXTURES = Path(__file__).parent / "fixtures"
CASES = ("bert_tied", "bert_untied", "bert_fixed_projection", "bert_untied_lmhead")
PADDING_ID = 1

NAMES = {
    r"^encoder\.sentence_encoder\.": "luna.",
    r"^encoder\.lm_head\.(weight|bias)$": r"lm_head.decoder.\1",
    r"^encoder\.lm_head\.": "lm_head.",
    r"\.projected_embeddings$": ".embeddings.packed_embeddings",
    r"\.embed_tokens\.": ".embeddings.word_embeddings.",
    r"\.embed_positions\.": ".embeddings.position_embeddings.",
    r"\.emb_layer_norm\.": ".embeddings.layer_norm.",
    r"\.proj_emb_layer_norm\.": ".embeddings.packed_layer_norm.",
    r"\.self_attn\.pq_proj\.": ".pack_attention.q_proj.",
    r"\.self_attn\.pc_proj\.": ".pack_attention.kv_proj.",
    r"\.self_attn\.p([kv])_proj\.": r".pack_attention.\1_proj.",
    r"\.self_attn\.c_proj\.": ".unpack_attention.kv_proj.",
    r"\.self_attn\.": ".unpack_attention.",
    r"\.self_attn_layer_norm\.": ".attention_layer_norm.",
    r"\.self_atten_proj_layer_norm\.": ".packed_layer_norm.",
    r"\.(fc[12])\.": r".mlp.\1.",
}


@dataclass
class OfficialCase:
    config: LunaConfig
    state_dict: dict[str, torch.Tensor]
    tensors: dict[str, torch.Tensor]
    num_parameters: int

    @property
    def batches(self) -> list[str]:
        return [name.removesuffix(".lm_logits") for name in self.tensors if name.endswith(".lm_logits")]

    @property
    def gradients(self) -> dict[str, torch.Tensor]:
        """Gradients of `train.loss_mean` under our names."""
        return to_our_names(
            {name.removeprefix("grad."): value for name, value in self.tensors.items() if name.startswith("grad.")}
        )


def to_our_name(name: str) -> str:
    for pattern, replacement in NAMES.items():
        name = re.sub(pattern, replacement, name)
    return name


def to_our_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {to_our_name(name): value for name, value in tensors.items()}


def load_case(name: str) -> OfficialCase:
    folder = FIXTURES / name
    meta = json.loads((folder / "meta.json").read_text())
    args = meta["args"]
    config = LunaConfig(
        vocab_size=meta["vocab_size"],
        hidden_size=args["encoder_embed_dim"],
        num_hidden_layers=args["encoder_layers"],
        num_attention_heads=args["encoder_attention_heads"],
        intermediate_size=args["encoder_ffn_embed_dim"],
        projection_length=args["projection_length"],
        dynamic_projection=not args["fix_projection_length"],
        tie_key_value=not args["untie_luna_kv"],
        tie_word_embeddings=not args["untie_weights_luna"],
        max_position_embeddings=args["max_positions"],
        hidden_act=args["activation_fn"],
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return OfficialCase(
        config=config,
        state_dict=to_our_names(load_file(folder / "state_dict.safetensors")),
        tensors=load_file(folder / "inputs_outputs.safetensors"),
        num_parameters=meta["n_params_unique"],
    )
