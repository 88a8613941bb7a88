"""Masked language models of any architecture of Transformers, and their tokenizers, as an evaluation needs them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoTokenizer,
    NystromformerForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.nystromformer.modeling_nystromformer import NystromformerSelfAttention

import modeling_luna  # noqa: F401  (makes the Auto classes know Luna)


NO_LIMIT = 10**6  # tokenizers without a limit have a larger model_max_length


class ModelError(ValueError):
    """A model that cannot be evaluated, or not on this input; the others still can."""


class Encoded(NamedTuple):
    """The tokens of a text, without those that the tokenizer puts before and after it.

    Args:
        ids: (tokens,), int64.
        offsets: (tokens, 2), the characters from which each token was made.
        word_ids: (tokens,), the word of each token as the tokenizer splits them.
    """

    ids: np.ndarray
    offsets: np.ndarray
    word_ids: np.ndarray


class TextEncoder:
    """A tokenizer that says which characters each token was made of.

    Args:
        tokenizer: must have a fast version, which alone knows of characters, and a mask token.

    Raises:
        ModelError: where it has not.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        if not tokenizer.is_fast:
            raise ModelError("its tokenizer has no fast version, which alone knows the characters of each token")
        if tokenizer.mask_token_id is None:
            raise ModelError("its tokenizer has no mask token")
        if len(tokenizer) <= len(tokenizer.all_special_ids):
            # What Transformers makes of a folder without the files of the vocabulary.
            raise ModelError("its tokenizer has special tokens only: its vocabulary is not there")
        self.tokenizer = tokenizer
        self.mask_token_id: int = tokenizer.mask_token_id
        self.unk_token_id: int | None = tokenizer.unk_token_id
        probe = tokenizer("a", return_special_tokens_mask=True)
        text = np.flatnonzero(np.array(probe["special_tokens_mask"]) == 0)
        if not len(text):
            raise ModelError("its tokenizer makes no token of the letter 'a'")
        ids = np.array(probe["input_ids"])
        self.before, self.after = ids[: text[0]], ids[text[-1] + 1 :]

    @cached_property
    def key(self) -> tuple:
        """The same for tokenizers that do the same."""
        tokenizer = self.tokenizer
        return tokenizer.backend_tokenizer.to_str(), len(tokenizer), self.mask_token_id, self.unk_token_id

    @property
    def num_special_tokens(self) -> int:
        return len(self.before) + len(self.after)

    def encode(self, texts: list[str]) -> list[Encoded]:
        """Encode texts; the names of special tokens in them are words like others."""
        batch = self.tokenizer(
            texts,
            add_special_tokens=False,
            split_special_tokens=True,
            truncation=False,
            padding=False,
            return_offsets_mapping=True,
            verbose=False,
        )
        return [
            Encoded(
                ids=np.array(ids, dtype=np.int64),
                offsets=np.array(offsets, dtype=np.int64).reshape(-1, 2),
                word_ids=np.array(batch.word_ids(text), dtype=np.int64),
            )
            for text, (ids, offsets) in enumerate(zip(batch["input_ids"], batch["offset_mapping"], strict=True))
        ]

    def row(self, ids: np.ndarray) -> np.ndarray:
        """Tokens of a text as a row for the model."""
        return np.concatenate([self.before, ids, self.after])


@dataclass
class MaskedModel:
    """A masked language model; its weights are loaded by `load`.

    Args:
        name: a folder, or an id of the Hub, with `@REVISION` for one that is not the newest.
        config: of the model.
        encoder: its tokenizer.
        max_length: the number of tokens that a row may hold; None where it has no limit.
        fixed_length: what every row must be padded to, for architectures that take rows of one length only.
        trust_remote_code: whether the model may run Python code that it brings along.
    """

    name: str
    config: Any
    encoder: TextEncoder
    max_length: int | None
    fixed_length: int | None
    trust_remote_code: bool

    @classmethod
    def open(cls, name: str, trust_remote_code: bool) -> "MaskedModel":
        """Read the configuration and the tokenizer of a model.

        Raises:
            ModelError: where it is not a masked language model with a fast tokenizer.
            OSError, ValueError: of Transformers where it cannot be loaded.
        """
        path, arguments = located(name, trust_remote_code)
        config = AutoConfig.from_pretrained(path, **arguments)
        if config.is_encoder_decoder:
            raise ModelError(f"{config.model_type} is an encoder-decoder model, not a masked language model")
        encoder = TextEncoder(AutoTokenizer.from_pretrained(path, **arguments))
        fixed_length = nystromformer_length(config)
        with torch.device("meta"):
            skeleton = AutoModelForMaskedLM.from_config(config, trust_remote_code=trust_remote_code)
        limits = [*position_limits(skeleton), encoder.tokenizer.model_max_length, fixed_length or NO_LIMIT]
        max_length = min(limits)
        return cls(
            name=name,
            config=config,
            encoder=encoder,
            max_length=max_length if max_length < NO_LIMIT else None,
            fixed_length=fixed_length,
            trust_remote_code=trust_remote_code,
        )

    def load(self, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
        """Load the weights.

        Raises:
            ModelError: where some of them are not there, so that they would be random.
            OSError, ValueError, RuntimeError: of Transformers where they cannot be loaded.
        """
        path, arguments = located(self.name, self.trust_remote_code)
        model, report = AutoModelForMaskedLM.from_pretrained(path, dtype=dtype, output_loading_info=True, **arguments)
        missing = sorted(report["missing_keys"])
        if missing:
            names = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
            raise ModelError(
                f"{len(missing)} of its weights are not there ({names}): it has no masked-LM head, or a part"
            )
        if len(self.encoder.tokenizer) > model.get_input_embeddings().weight.shape[0]:
            raise ModelError(
                f"its tokenizer has {len(self.encoder.tokenizer)} tokens, but the model embeds "
                f"{model.get_input_embeddings().weight.shape[0]}: they do not belong together"
            )
        if isinstance(model, NystromformerForMaskedLM):
            invert_row_by_row(model)
        return model.eval().to(device)


def located(name: str, trust_remote_code: bool) -> tuple[str, dict[str, Any]]:
    """What `from_pretrained` takes for a model: a folder, or an id of the Hub with `@REVISION` after it."""
    arguments: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if os.path.isdir(name) or "@" not in name:
        return name, arguments
    hub_id, revision = name.rsplit("@", 1)
    return hub_id, arguments | {"revision": revision}


def position_limits(model: PreTrainedModel) -> list[int]:
    """The numbers of tokens that the parts of a model which know of positions take."""
    limits = [getattr(model.config, "max_position_embeddings", None) or NO_LIMIT]
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.split(".")[-1] == "position_embeddings":
            # RoBERTa and its kin count positions from the row after that of padding.
            unused = 0 if module.padding_idx is None else module.padding_idx + 1
            limits.append(module.num_embeddings - unused)
    return [limit for limit in limits if limit > 0]


def nystromformer_length(config: Any) -> int | None:
    """The length of the rows that Nystromformer averages into its landmarks; it takes no other."""
    if config.model_type != "nystromformer" or config.num_landmarks == config.segment_means_seq_len:
        return None
    return config.segment_means_seq_len


def invert_row_by_row(model: NystromformerForMaskedLM):
    """Let no row of a batch change another: Nystromformer scales the matrices that it inverts by their common maximum.

    In float32, which the inversion needs whatever the dtype of the model is.
    """
    for module in model.modules():
        if isinstance(module, NystromformerSelfAttention):

            def invert(matrices: torch.Tensor, invert_together=module.iterative_inv) -> torch.Tensor:
                rows = [invert_together(row) for row in matrices.float().split(1)]
                return torch.cat(rows).to(matrices.dtype)

            module.iterative_inv = invert  # type: ignore[method-assign]


def common_max_length(models: Sequence[MaskedModel], at_most: int) -> int:
    """The longest rows that all models take."""
    return min([model.max_length for model in models if model.max_length is not None] + [at_most])
