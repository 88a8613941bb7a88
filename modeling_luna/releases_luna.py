# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""Which releases of PyTorch and Transformers Luna runs on, and what the older ones of Transformers lack.

Every other file imports this one first, so that a release that is too old ends in the sentence below.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch
import transformers
from transformers.utils.versions import require_version


OLDEST_RELEASES = {"transformers": "5.0", "torch": "2.11", "huggingface-hub": "1.5"}

for package, release in OLDEST_RELEASES.items():
    require_version(f"{package}>={release}", f"Luna needs it: pip install --upgrade '{package}>={release}'")

PreTrainedConfig = transformers.PreTrainedConfig
RobertaTokenizer = transformers.RobertaTokenizer
ALL_ATTENTION_FUNCTIONS = transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS
create_bidirectional_mask = transformers.masking_utils.create_bidirectional_mask

try:
    from transformers.configuration_utils import strict
except ImportError:  # before 5.4, where a configuration is no dataclass
    from huggingface_hub.dataclasses import strict as strict_dataclass

    class PreTrainedConfig(transformers.PreTrainedConfig):
        validate_rope = None  # takes arguments, and so would be no validator of a strict dataclass

        def __init_subclass__(cls, **kwargs):
            super().__init_subclass__(**kwargs)
            strict_dataclass(accept_kwargs=True)(dataclass(cls, repr=False))

        def __post_init__(self, **kwargs):
            transformers.PreTrainedConfig.__init__(self, **kwargs)

    def strict(config_class: type) -> type:
        return config_class  # as every subclass is


try:
    from transformers.utils.generic import merge_with_config_defaults
    from transformers.utils.output_capturing import OutputRecorder, capture_outputs
except ImportError:  # before 5.2, where one decorator does both
    from transformers.utils.generic import OutputRecorder, check_model_inputs

    def merge_with_config_defaults(forward: Callable) -> Callable:
        return forward

    def capture_outputs(forward: Callable) -> Callable:
        captured = check_model_inputs(forward)

        @functools.wraps(forward)
        def forward_with_all_flags(self, *args, **kwargs):
            """A flag that is not given would be that of `output_attentions`."""
            flags = [f"output_{name}" for name in self._can_record_outputs]
            kwargs = {flag: getattr(self.config, flag, False) for flag in flags} | kwargs
            return captured(self, *args, **kwargs)

        return forward_with_all_flags


if not hasattr(ALL_ATTENTION_FUNCTIONS, "get_interface"):  # before 5.2

    class AttentionInterface(transformers.AttentionInterface):
        def get_interface(self, attn_implementation: str, default: Callable) -> Callable:
            return self.get(attn_implementation, default)

    ALL_ATTENTION_FUNCTIONS = AttentionInterface()


if "allow_is_bidirectional_skip" not in inspect.signature(create_bidirectional_mask).parameters:  # before 5.15

    def create_bidirectional_mask(
        config: transformers.PreTrainedConfig,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None,
        encoder_hidden_states: torch.Tensor,
        allow_is_bidirectional_skip: bool = True,
    ):
        """A mask that is true everywhere is always left out, so that a GPU is waited for to know it."""
        create_mask = transformers.masking_utils.create_bidirectional_mask
        return create_mask(config, inputs_embeds, attention_mask, encoder_hidden_states)


__all__ = [
    "ALL_ATTENTION_FUNCTIONS",
    "OLDEST_RELEASES",
    "OutputRecorder",
    "PreTrainedConfig",
    "RobertaTokenizer",
    "capture_outputs",
    "create_bidirectional_mask",
    "merge_with_config_defaults",
    "strict",
]
