# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""Luna for Hugging Face Transformers. Importing this package makes the Auto classes know Luna."""

from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoTokenizer, RobertaTokenizer

from .configuration_luna import LunaConfig
from .modeling_luna import (
    LunaForMaskedLM,
    LunaMaskedLMOutput,
    LunaModel,
    LunaModelOutput,
    LunaPreTrainedModel,
)


__version__ = "0.1.0"

AutoConfig.register("luna", LunaConfig, exist_ok=True)
AutoModel.register(LunaConfig, LunaModel, exist_ok=True)
AutoModelForMaskedLM.register(LunaConfig, LunaForMaskedLM, exist_ok=True)
AutoTokenizer.register(LunaConfig, RobertaTokenizer, exist_ok=True)

__all__ = [
    "LunaConfig",
    "LunaForMaskedLM",
    "LunaMaskedLMOutput",
    "LunaModel",
    "LunaModelOutput",
    "LunaPreTrainedModel",
]
