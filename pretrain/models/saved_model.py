"""A saved model as the start of a run, for other texts, longer rows or another vocabulary."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedTokenizerBase

from common.architectures import describe_mismatch, why_not_loaded
from common.config.yaml_config import ConfigurationError, read_json, suggest
from common.files import check_model_files, is_folder
from common.finite import is_finite
from modeling_luna import LunaConfig, LunaForMaskedLM
from pretrain.configuration import PretrainConfig
from pretrain.data.tokenizer import TokenizerError, load_tokenizer
from pretrain.models.configuration import IGNORED_MODEL_KEYS


# Fields of the model that a run may give other values than the saved model has: they do not change its weights, or
# their part of them can be made (a convolution starts as the identity).
CHANGEABLE = (
    "hidden_dropout_prob", "attention_probs_dropout_prob", "activation_dropout", "classifier_dropout",
    "sparse_prediction", "conv_kernel_size", "max_position_embeddings", "vocab_size",
)  # fmt: skip
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
NEW = -1  # the source of a token that the saved model does not have


def saved_folder(init_from: str) -> Path:
    """The folder of a saved model; an `ID` or `ID@REVISION` of the Hub is downloaded, if it is not in the cache.

    Raises:
        ConfigurationError: where it is neither a folder nor on the Hub.
        UserError: where it may not be read.
    """
    if is_folder(init_from):
        check_model_files(init_from)
        return Path(init_from)
    model_id, _, revision = init_from.partition("@")
    try:
        folder = snapshot_download(
            model_id,
            revision=revision or None,
            allow_patterns=["*.json", "*.txt", "*.safetensors"],
            ignore_patterns=["*/*"],
        )
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"init_from: {init_from} is no folder, and cannot be loaded from the Hub: {error}"
        ) from error
    return Path(folder)


def read_saved_config(config: PretrainConfig) -> LunaConfig:
    """The configuration of the model that `init_from` names; quick, to be called before anything that takes time.

    Raises:
        ConfigurationError: where there is none, where it is of another kind of model, or where `model` changes what a
            saved model cannot change.
    """
    assert config.init_from is not None
    path = saved_folder(config.init_from) / "config.json"
    if not path.is_file():
        raise ConfigurationError(f"init_from: {config.init_from} holds no config.json: it is no saved model.")
    fields = read_json(path)
    if fields.get("model_type") != "luna":
        raise ConfigurationError(
            f"init_from: {config.init_from} is a {fields.get('model_type', 'nameless')} model, not Luna."
        )
    try:
        saved = LunaConfig(**_model_fields(fields))
    except StrictDataclassError as error:
        raise ConfigurationError(f"init_from: {config.init_from}: {error.__cause__ or error}") from error
    known = list(LunaConfig.__annotations__)
    for key, value in config.model.items():
        if key not in known:
            raise ConfigurationError(f"model: unknown key {key!r}.{suggest(key, known)}")
        if key not in CHANGEABLE and value != getattr(saved, key):
            raise ConfigurationError(
                f"model.{key} is {value!r}, but {config.init_from} was made with {getattr(saved, key)!r}: a run that "
                f"starts from a saved model may only change {', '.join(CHANGEABLE)}."
            )
    width = config.model.get("conv_kernel_size", saved.conv_kernel_size)
    if saved.conv_kernel_size not in (0, width):
        raise ConfigurationError(
            f"model.conv_kernel_size is {width}, but {config.init_from} has convolutions of the width "
            f"{saved.conv_kernel_size} already: leave it out."
        )
    return saved


def load_saved_model(
    config: PretrainConfig, tokenizer: PreTrainedTokenizerBase, special_ids: dict[str, int]
) -> tuple[LunaConfig, dict[str, torch.Tensor]]:
    """The configuration and the weights, in float32, of the model that `init_from` names, for this run.

    A token that the saved model's tokenizer has, too, keeps its row of the tables; so does one that plays the part of
    another, as `[MASK]` of `<mask>`. Others start as the mean of all. Positions are added as
    `LunaPreTrainedModel.resize_position_embeddings` does.

    Args:
        tokenizer: of the run.
        special_ids: `pad_token_id` and the like of it.

    Raises:
        ConfigurationError: where the saved model cannot be the start of this run.
    """
    saved_config = read_saved_config(config)
    saved = _load(config, saved_config)
    saved_ids, sources = _match_tokens(config, saved_config, tokenizer)
    same_tokens = saved_ids == tokenizer.get_vocab()
    positions = config.model.get(
        "max_position_embeddings", max(saved_config.max_position_embeddings, config.max_length)
    )
    fields = {
        **_model_fields(saved_config.to_diff_dict()),
        "sparse_prediction": True,  # what a run saves says nothing of it: see `model.config_for_others`
        "vocab_size": saved_config.vocab_size if same_tokens else len(tokenizer),
        **config.model,
        **special_ids,
        "max_position_embeddings": positions,
    }
    if fields["vocab_size"] < len(tokenizer):
        raise ConfigurationError(
            f"model.vocab_size is {fields['vocab_size']}, but the tokenizer has {len(tokenizer)} tokens: raise it, or "
            "leave it out to take the tokenizer's."
        )
    if positions < config.max_length and saved_config.position_embedding_type == "learned":
        raise ConfigurationError(
            f"max_length is {config.max_length}, but model.max_position_embeddings is {positions}: leave it out to "
            "take max_length."
        )
    try:
        luna_config = LunaConfig(**fields)
    except StrictDataclassError as error:
        raise ConfigurationError(f"model: {error.__cause__ or error}") from error

    saved.resize_position_embeddings(positions)
    weights = saved.state_dict()
    places, offset = "luna.embeddings.position_embeddings.weight", saved.luna.embeddings.position_offset
    new_offset = special_ids["pad_token_id"] + 1
    if places in weights and new_offset != offset:  # rows before the first position, which no token uses
        unused = weights[places].new_zeros(new_offset, luna_config.hidden_size)
        weights[places] = torch.cat((unused, weights[places][offset:]))
    rows = sources + [NEW] * (luna_config.vocab_size - len(sources))
    if same_tokens:  # rows that no token uses stay, too
        rows = [row if row < saved_config.vocab_size else NEW for row in range(luna_config.vocab_size)]
    for name in ("luna.embeddings.word_embeddings.weight", "lm_head.decoder.weight", "lm_head.decoder.bias"):
        weights[name] = _take_rows(weights[name], rows, num_tokens=max(saved_ids.values()) + 1)
    return luna_config, weights


def _model_fields(fields: dict) -> dict:
    return {key: value for key, value in fields.items() if key not in (*IGNORED_MODEL_KEYS, "_name_or_path")}


def _load(config: PretrainConfig, saved_config: LunaConfig) -> LunaForMaskedLM:
    """The saved model as it is, once its weights are known to be whole and finite."""
    source = config.init_from
    assert source is not None
    try:
        with _quiet():  # what Transformers would print about the weights is an error here
            loaded: Any = LunaForMaskedLM.from_pretrained(
                saved_folder(source),
                config=saved_config,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # so that they are reported
            )
    except Exception as error:
        raise ConfigurationError(
            f"init_from: the weights of {source} cannot be loaded: {why_not_loaded(error).removesuffix('.')}."
        ) from error
    model, report = loaded
    if report["mismatched_keys"]:
        raise ConfigurationError(f"init_from: {source}: {describe_mismatch(report['mismatched_keys'])}.")
    missing, unexpected = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    if missing and all(key.startswith("lm_head.") for key in missing):
        raise ConfigurationError(
            f"init_from: {source} has no masked-LM head ({', '.join(missing)} are missing): start from a folder that "
            "LunaForMaskedLM.save_pretrained has written."
        )
    if missing or unexpected:
        raise ConfigurationError(
            f"init_from: the weights of {source} are not those of its config.json: {len(missing)} are missing "
            f"({', '.join(missing[:3])}), {len(unexpected)} belong to nothing ({', '.join(unexpected[:3])})."
        )
    for parameter_name, parameter in model.named_parameters():
        if not is_finite(parameter):
            raise ConfigurationError(f"init_from: {source} holds numbers that are not finite, in {parameter_name}.")
    return model


def _match_tokens(
    config: PretrainConfig, saved_config: LunaConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[dict[str, int], list[int]]:
    """The ids of the saved model's tokens, and of each id of the run the one that it has there, or NEW."""
    source = config.init_from
    assert source is not None
    try:
        saved_tokenizer = load_tokenizer(str(saved_folder(source)))
    except TokenizerError as error:
        raise ConfigurationError(
            f"init_from: {source} holds no tokenizer, by which its rows of tokens are told ({error}): put the one "
            "that it was trained with there, with `save_pretrained`."
        ) from error
    saved_ids = saved_tokenizer.get_vocab()
    if max(saved_ids.values()) >= saved_config.vocab_size:
        raise ConfigurationError(
            f"init_from: the tokenizer of {source} has ids up to {max(saved_ids.values())}, but the model is for "
            f"{saved_config.vocab_size} tokens: they do not belong together."
        )
    ids = tokenizer.get_vocab()
    sources = [NEW] * len(tokenizer)
    for token, token_id in ids.items():
        sources[token_id] = saved_ids.get(token, NEW)
    for role in ROLES:
        token_id, saved_id = (getattr(t, f"{role}_id") for t in (tokenizer, saved_tokenizer))
        if token_id is not None and saved_id is not None:
            sources[token_id] = saved_id
    return saved_ids, sources


def _take_rows(table: torch.Tensor, rows: list[int], num_tokens: int) -> torch.Tensor:
    """These rows of a table, and the mean of its first `num_tokens` in place of new ones."""
    taken = table[torch.tensor(rows).clamp(min=0)]
    taken[torch.tensor(rows) == NEW] = table[:num_tokens].mean(dim=0)
    return taken


@contextmanager
def _quiet() -> Iterator[None]:
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    try:
        yield
    finally:
        transformers.logging.set_verbosity(before)
