"""The model of a run: with fresh weights, or with those of a saved one."""

import torch
from transformers import PreTrainedTokenizerBase

from common.yaml_config import ConfigurationError
from modeling_luna import LunaForMaskedLM
from pretrain.configuration import PretrainConfig
from pretrain.data.tokenizer import row_ends
from pretrain.saved_model import load_saved_model


def build_model(config: PretrainConfig, tokenizer: PreTrainedTokenizerBase) -> LunaForMaskedLM:
    """Make the model in float32, the same on each process and however the random state was before.

    Fresh weights come from the run's seed; with `init_from` they are those of a saved model, for the tokenizer and
    the length of the rows.

    Raises:
        ConfigurationError: where the configuration, the tokenizer and a saved model do not go together.
    """
    first, last = row_ends(tokenizer)
    special_ids = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": first, "eos_token_id": last}
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        if config.init_from is None:
            luna_config, weights = config.luna_config(len(tokenizer), special_ids), None
        else:
            luna_config, weights = load_saved_model(config, tokenizer, special_ids)
        try:
            model = LunaForMaskedLM._from_config(luna_config, attn_implementation=config.attn_implementation)
        except (ValueError, ImportError) as error:
            raise ConfigurationError(f"attn_implementation: {error}") from error
    if weights is not None:
        model.load_state_dict(weights, strict=False)  # a new convolution keeps what it was made with
    if config.gradient_checkpointing:
        model.activation_checkpointing_enable()
    return model
