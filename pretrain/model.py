"""The model of a run, with fresh weights."""

import torch
from accelerate.utils import set_seed
from transformers import PreTrainedTokenizerBase

from modeling_luna import LunaForMaskedLM
from pretrain.configuration import ConfigurationError, PretrainConfig
from pretrain.data.tokenizer import row_ends


def build_model(config: PretrainConfig, tokenizer: PreTrainedTokenizerBase) -> LunaForMaskedLM:
    """Initialise the model from the run's seed, the same on each process and however the random state was before."""
    first, last = row_ends(tokenizer)
    special_ids = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": first, "eos_token_id": last}
    luna_config = config.luna_config(len(tokenizer), special_ids)
    with torch.random.fork_rng():
        set_seed(config.seed)
        try:
            model = LunaForMaskedLM._from_config(luna_config, attn_implementation=config.attn_implementation)
        except (ValueError, ImportError) as error:
            raise ConfigurationError(f"attn_implementation: {error}") from error
    if config.gradient_checkpointing:
        model.activation_checkpointing_enable()
    return model
