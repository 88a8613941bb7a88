"""The model of a run, with fresh weights."""

import torch
from accelerate.utils import set_seed

from modeling_luna import LunaForMaskedLM
from pretrain.configuration import PretrainConfig


def build_model(config: PretrainConfig, vocab_size: int) -> LunaForMaskedLM:
    """Initialise the model from the run's seed, the same on each process and however the random state was before."""
    with torch.random.fork_rng():
        set_seed(config.seed)
        model = LunaForMaskedLM._from_config(
            config.luna_config(vocab_size), attn_implementation=config.attn_implementation
        )
    if config.gradient_checkpointing:
        model.activation_checkpointing_enable()
    return model
