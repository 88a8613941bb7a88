# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""Luna for Hugging Face Transformers. Importing this package makes the Auto classes know Luna."""

import transformers
from transformers import AutoConfig, AutoTokenizer

from .configuration_luna import LunaConfig
from .modeling_luna import (
    AUTO_CLASSES,
    LunaClassifierOutput,
    LunaForMaskedLM,
    LunaForMultipleChoice,
    LunaForQuestionAnswering,
    LunaForSequenceClassification,
    LunaForTokenClassification,
    LunaMaskedLMOutput,
    LunaModel,
    LunaModelOutput,
    LunaPreTrainedModel,
    LunaQuestionAnsweringOutput,
)
from .releases_luna import PreTrainedConfig
from .token_attentions_luna import token_attentions
from .tokenization_luna import LunaTokenizer


__version__ = "0.1.0"

AutoConfig.register("luna", LunaConfig, exist_ok=True)
for auto_class, model_class in AUTO_CLASSES.items():
    getattr(transformers, auto_class).register(LunaConfig, model_class, exist_ok=True)


class NoModelConfig(PreTrainedConfig):
    """Stands where AutoTokenizer wants a configuration for `LunaTokenizer`.

    Registered for `LunaConfig` itself, it would give way to the code in a folder under `trust_remote_code=True`.
    """


AutoTokenizer.register(NoModelConfig, slow_tokenizer_class=LunaTokenizer, exist_ok=True)


__all__ = [
    "LunaClassifierOutput",
    "LunaConfig",
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
    "LunaTokenizer",
    "token_attentions",
]
