# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""Tokenizer of a converted model whose dictionary lacks some of the tokens of its byte-pair encoding."""

import json
import os
from pathlib import Path
from typing import Any

from .code_luna import class_reference, copy_code, registered_class
from .releases_luna import TokenizersBackend


class LunaTokenizer(TokenizersBackend):
    """
    Byte-level BPE followed by a dictionary, as in fairseq: BPE tokens that the dictionary lacks become `<unk>`.

    The merges of the BPE pass through tokens that the dictionary lacks. Inside, these have the ids from
    `dictionary_size` on; none of them is ever given out. Where the dictionary has every token of the BPE,
    `RobertaTokenizer` does the same.

    Args:
        dictionary_size (`int`):
            The number of ids given out, which are the rows of the model's embedding.
    """

    model_input_names = ["input_ids", "attention_mask"]

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        cls._auto_class = None  # the code of a subclass is saved where it is registered itself

    @property
    def vocab_size(self) -> int:
        return self.init_kwargs["dictionary_size"]

    def __len__(self) -> int:
        return self.vocab_size

    def get_vocab(self) -> dict[str, int]:
        return {token: index for token, index in super().get_vocab().items() if index < self.vocab_size}

    def _convert_encoding(self, encoding: Any, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], list[Any]]:
        columns, encodings = super()._convert_encoding(encoding, *args, **kwargs)
        columns["input_ids"] = [[self._given_out(index) for index in ids] for ids in columns["input_ids"]]
        return columns, encodings

    def _convert_token_to_id_with_added_voc(self, token: str) -> int:
        return self._given_out(super()._convert_token_to_id_with_added_voc(token))

    def _given_out(self, index: int) -> int:
        return index if index < self.vocab_size else self.unk_token_id

    def _add_tokens(self, new_tokens: Any, special_tokens: bool = False) -> int:
        for token in map(str, new_tokens):
            index = self.backend_tokenizer.token_to_id(token)
            if index is None or index >= self.vocab_size:
                raise ValueError(f"Cannot add {token!r}: this tokenizer has the ids of the model's dictionary alone.")
        return super()._add_tokens(new_tokens, special_tokens=special_tokens)

    def _save_pretrained(
        self, save_directory: str | os.PathLike, file_names: tuple[str, ...], *args: Any, **kwargs: Any
    ) -> tuple[str, ...]:
        """Name a class whose code is in the folder; `file_names` begins with the configuration's file."""
        saved_class = registered_class(type(self), default=LunaTokenizer)
        copy_code(LunaTokenizer, save_directory)
        copy_code(saved_class, save_directory)
        path = Path(file_names[0])
        stored = json.loads(path.read_text(encoding="utf-8"))
        stored["tokenizer_class"] = saved_class.__name__
        stored["auto_map"] = {"AutoTokenizer": [class_reference(saved_class), None]}
        text = json.dumps(stored, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        path.write_text(text, encoding="utf-8")
        return super()._save_pretrained(save_directory, file_names, *args, **kwargs)


# A saved folder carries this file.
LunaTokenizer.register_for_auto_class()


__all__ = ["LunaTokenizer"]
