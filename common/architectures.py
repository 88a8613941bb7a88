"""What has to be known of an encoder of Transformers before rows are made for it."""

import pickle
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError, StrictDataclassError
from huggingface_hub.utils import validate_repo_id
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from common.errors import UserError, reason_of
from common.files import check_model_files, is_folder


NO_LIMIT = 10**6  # tokenizers without a limit have a larger model_max_length


def located(name: str, trust_remote_code: bool) -> tuple[str, dict[str, Any]]:
    """What `from_pretrained` takes for a model: a folder, or an id of the Hub with `@REVISION` after it.

    Raises:
        UserError: where it is neither, or may not be read.
    """
    arguments: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if is_folder(name):
        check_model_files(name)
        return name, arguments
    hub_id, _, revision = name.partition("@")
    try:
        validate_repo_id(hub_id)
    except HFValidationError as error:
        raise UserError("it is neither a folder nor an id of the Hub") from error
    return hub_id, arguments | {"revision": revision or None}


def why_not_loaded(error: Exception) -> str:
    """Say in a line why a model could not be loaded: damaged files end in errors of every type."""
    if isinstance(error, StrictDataclassError):
        return f"a field of its configuration cannot be used: {reason_of(error.__cause__ or error)}"
    if isinstance(error, pickle.UnpicklingError):
        return (
            "its pickled weights are damaged, or hold more than tensors, which would run code: save it with "
            "save_pretrained, which writes safetensors"
        )
    if isinstance(error, RecursionError):
        return "one of its JSON files is nested too deeply"
    if isinstance(error, LookupError | TypeError | AttributeError):  # of code that expects other content
        return f"one of its files is damaged, or is not what its name says ({type(error).__name__}: {error})"
    if "trust_remote_code" in str(error):
        return "it brings code of its own; set trust_remote_code if it may run here"
    return reason_of(error)


def describe_mismatch(mismatched_keys: list[tuple[str, Any, Any]]) -> str:
    """Say which weight does not fit its configuration.

    Args:
        mismatched_keys: name, shape in the file and shape in the model of each, as `from_pretrained` reports them with
            `ignore_mismatched_sizes` and `output_loading_info`; one at least.
    """
    name, found, wanted = min(mismatched_keys)
    return (
        f"the weight {name} has the shape {tuple(found)}, but by its configuration {tuple(wanted)}: they do not "
        "belong together"
    )


def describe_shape(config: PreTrainedConfig) -> str:
    """`12 layers, hidden size 768, 12 heads`, without what an architecture does not have."""
    words = {
        "num_hidden_layers": "{:,} layers",
        "hidden_size": "hidden size {:,}",
        "num_attention_heads": "{:,} heads",
    }
    return ", ".join(text.format(getattr(config, key)) for key, text in words.items() if hasattr(config, key))


def position_limits(model: PreTrainedModel) -> list[int]:
    """The numbers of tokens that the parts of a model which know of positions take."""
    limits = [getattr(model.config, "max_position_embeddings", None) or 0]
    limits += [table.num_embeddings - _first_row(table) for table in _position_tables(model)]
    return [limit for limit in limits if limit > 0]


def position_offset(model: PreTrainedModel) -> int:
    """The position, as `position_ids` have it, of the first token."""
    return max(map(_first_row, _position_tables(model)), default=0)


def _position_tables(model: PreTrainedModel) -> list[nn.Embedding]:
    return [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and name.split(".")[-1] == "position_embeddings"
    ]


def _first_row(table: nn.Embedding) -> int:
    """RoBERTa and its kin count positions from the row after that of padding."""
    return 0 if table.padding_idx is None else table.padding_idx + 1


def fixed_length(config: PreTrainedConfig) -> int | None:
    """The length of the rows that Nystromformer averages into its landmarks; it takes no other."""
    if config.model_type != "nystromformer" or config.num_landmarks == config.segment_means_seq_len:
        return None
    return config.segment_means_seq_len


def blocking_mask(attention_mask: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """What is added to Nystromformer's attention scores, (rows, 1, 1, length), for a mask (rows, length).

    Transformers 5.24 makes a mask of the usual form into one that does not fit the landmarks.
    """
    added = torch.zeros(attention_mask.shape, dtype=dtype, device=attention_mask.device)
    return added.masked_fill(attention_mask == 0, torch.finfo(dtype).min)[:, None, None]
