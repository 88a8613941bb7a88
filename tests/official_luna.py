# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""Convert the checkpoints of the official Luna in `tests/fixtures`, and read what the official code made of them."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from modeling_luna.convert_luna_fairseq_to_hf import Conversion, convert_checkpoint, official_name
from modeling_luna.modeling_luna import LunaPreTrainedModel


FIXTURES = Path(__file__).parent / "fixtures"
CASES = (
    "bert_tied",
    "bert_untied",
    "bert_fixed_projection",
    "bert_untied_lmhead",
    "bert_heads",
    "bert_tied_HEAD_layernorm_plus1",
)
HEADS = ("cls_classification_head", "pooling_classification_head", "attention_classification_head")
PADDING_ID = 1


@dataclass
class OfficialCase:
    """A converted checkpoint and the official results."""

    name: str
    conversion: Conversion
    tensors: dict[str, torch.Tensor]
    num_parameters: int

    @property
    def batches(self) -> list[str]:
        return [name.removesuffix(".lm_logits") for name in self.tensors if name.endswith(".lm_logits")]

    def model(self, attn_implementation: str = "eager") -> LunaPreTrainedModel:
        """The model from the folder that the converter wrote, in eval mode and without dropout for training."""
        return self.conversion.model_class.from_pretrained(
            self.conversion.output_dir,
            attn_implementation=attn_implementation,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )

    def gradients(self, names: list[str], prefix: str = "") -> dict[str, torch.Tensor]:
        """The official gradients `grad.<prefix><official name>` by our `names`, as far as there are any."""
        head = self.conversion.head
        keys = {name: f"grad.{prefix}{official_name(name, head)}" for name in names}
        return {name: self.tensors[key] for name, key in keys.items() if key in self.tensors}


def convert_case(name: str, output_dir: Path, head: str = "none") -> OfficialCase:
    """Convert the checkpoint of a case, without its classification heads or with one of them."""
    folder = FIXTURES / name
    meta = json.loads((folder / "meta.json").read_text())
    conversion = convert_checkpoint(
        checkpoint_path=folder / "checkpoint.pt",
        dict_path=folder / "dict.txt",
        output_dir=output_dir,
        layernorm="plus_one" if "layernorm" in meta else "standard",
        head=head,
    )
    return OfficialCase(
        name=name,
        conversion=conversion,
        tensors=load_file(folder / "inputs_outputs.safetensors"),
        num_parameters=meta["n_params_unique"],
    )
