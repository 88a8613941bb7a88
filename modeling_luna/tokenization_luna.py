# Copyright 2026 The Luna for Transformers authors.
# SPDX-License-Identifier: Apache-2.0
"""Luna's tokenizer: RoBERTa's, for words as for sentences, and for dictionaries that lack tokens of the BPE."""

import copy
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Encoding, pre_tokenizers
from transformers import BatchEncoding

from .code_luna import class_reference, copy_code, registered_class
from .releases_luna import RobertaTokenizer


class LunaTokenizer(RobertaTokenizer):
    """
    RoBERTa's byte-level BPE, with two differences.

    Words (`is_split_into_words=True`) get the tokens that they have in the sentence: all but the first with the space
    before them. A word that begins with a space keeps its own. `RobertaTokenizer` glues the words together, or with
    `add_prefix_space=True` gives the first one, and each text, a space that pretraining did not see.

    A dictionary may follow the BPE, as in fairseq: tokens of the BPE that the dictionary lacks become `<unk>`. The
    merges of the BPE pass through such tokens; inside, they have the ids from `dictionary_size` on, which are never
    given out.

    Args:
        dictionary_size (`int`, *optional*):
            The number of ids given out, without added tokens, where that is not the number of tokens of the BPE.
        kwargs:
            As of `RobertaTokenizer`.
    """

    def __init__(self, *args: Any, dictionary_size: int | None = None, **kwargs: Any):
        self.dictionary_size = dictionary_size
        if dictionary_size is not None:
            kwargs["dictionary_size"] = dictionary_size  # to be saved
        super().__init__(*args, **kwargs)
        # RobertaTokenizer leaves it as it is where it gets a whole tokenizer.
        self.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=self.add_prefix_space)

    def train_new_from_iterator(self, *args: Any, **kwargs: Any) -> "LunaTokenizer":
        """As of every tokenizer; the new one has all tokens of its BPE, and `<mask>` last."""
        whole = copy.copy(self)
        whole.init_kwargs = {name: value for name, value in self.init_kwargs.items() if name != "dictionary_size"}
        trained = super(LunaTokenizer, whole).train_new_from_iterator(*args, **kwargs)
        bpe = json.loads(trained.backend_tokenizer.to_str())["model"]
        tokens = sorted(bpe["vocab"], key=lambda token: (token == trained.mask_token, bpe["vocab"][token]))
        vocab = {token: index for index, token in enumerate(tokens)}
        # Without those that were added to the old one, which are no part of the new one.
        added = {vocab[str(token)]: token for token in trained.added_tokens_decoder.values() if str(token) in vocab}
        merges = [tuple(merge) for merge in bpe["merges"]]
        return type(self)(vocab=vocab, merges=merges, **(trained.init_kwargs | {"added_tokens_decoder": added}))

    # Words.

    def _encode_plus(self, text: Any, text_pair: Any = None, *args: Any, **kwargs: Any) -> BatchEncoding:
        encode = super()._encode_plus
        are_words = kwargs.get("is_split_into_words", False) and isinstance(text, (list, tuple))
        if not are_words or self.add_prefix_space:
            return encode(text, text_pair, *args, **kwargs)
        return_tensors = kwargs.pop("return_tensors", None)
        spaced, spaced_pair = with_spaces(text), None if text_pair is None else with_spaces(text_pair)
        output = encode(spaced, spaced_pair, *args, **kwargs)

        words, words_given = words_of_samples(spaced, spaced_pair), words_of_samples(text, text_pair)
        samples = output.get("overflow_to_sample_mapping", range(len(words)))
        encodings = output.encodings or []
        for encoding, sample in zip(encodings, samples, strict=True):
            take_spaces_out(encoding, words[sample], words_given[sample])
        is_one = (not text or isinstance(text[0], str)) and "overflow_to_sample_mapping" not in output
        if "offset_mapping" in output:
            output["offset_mapping"] = encodings[0].offsets if is_one else [e.offsets for e in encodings]
        return output.convert_to_tensors(return_tensors, prepend_batch_axis=is_one)

    # Tokens that the dictionary lacks.

    @property
    def _num_missing(self) -> int:
        return 0 if self.dictionary_size is None else super().vocab_size - self.dictionary_size

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        cls._auto_class = None  # the code of a subclass is saved where it is registered itself

    @property
    def vocab_size(self) -> int:
        return super().vocab_size - self._num_missing

    def __len__(self) -> int:
        return super().__len__() - self._num_missing

    def _given_out(self, ids: Iterable[int]) -> list[int]:
        """The ids for those inside, `<unk>` for a token that is missing."""
        known, missing = self.vocab_size, self._num_missing
        unknown: Any = self.backend_tokenizer.token_to_id(str(self.unk_token))
        return [i if i < known else unknown if i < known + missing else i - missing for i in ids]

    def _inside(self, ids: Iterable[int]) -> list[int]:
        """The reverse."""
        known, missing = self.vocab_size, self._num_missing
        return [i if i < known else i + missing for i in map(int, ids)]

    def _is_missing(self, index: int) -> bool:
        return self.vocab_size <= index < self.vocab_size + self._num_missing

    def get_vocab(self) -> dict[str, int]:
        known = {token: index for token, index in super().get_vocab().items() if not self._is_missing(index)}
        return dict(zip(known, self._given_out(known.values()), strict=True))

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        added = super().added_tokens_decoder
        return dict(zip(self._given_out(added), added.values(), strict=True))

    def _convert_encoding(self, encoding: Any, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], list[Encoding]]:
        columns, encodings = super()._convert_encoding(encoding, *args, **kwargs)
        if self._num_missing:
            columns["input_ids"] = [self._given_out(ids) for ids in columns["input_ids"]]
        return columns, encodings

    def _convert_token_to_id_with_added_voc(self, token: str) -> int:
        index = super()._convert_token_to_id_with_added_voc(token)
        return self._given_out([index])[0] if self._num_missing else index

    def _convert_id_to_token(self, index: int) -> str | None:
        return super()._convert_id_to_token(self._inside([index])[0])

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        if isinstance(ids, int):
            return self._convert_id_to_token(ids)
        skipped = set(self.all_special_ids) if skip_special_tokens else set()
        return super().convert_ids_to_tokens(self._inside(index for index in ids if int(index) not in skipped))

    def _decode(self, token_ids: Any, *args: Any, **kwargs: Any) -> str:
        if isinstance(token_ids, dict):
            token_ids = token_ids["input_ids"]
        ids = [token_ids] if isinstance(token_ids, int) else token_ids
        return super()._decode(self._inside(ids), *args, **kwargs)

    def _add_tokens(self, new_tokens: Any, special_tokens: bool = False) -> int:
        for token in map(str, new_tokens):
            index = self.backend_tokenizer.token_to_id(token)
            if index is not None and self._is_missing(index):
                raise ValueError(
                    f"Cannot add {token!r}: the BPE uses it on its way to longer tokens, but the model's dictionary "
                    "does not have it. Choose another form, such as <word>."
                )
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


def with_spaces(words: Any) -> Any:
    """Words, or lists of words, with a space before each but the first, unless there is one."""
    if words and isinstance(words[0], (list, tuple)):
        return type(words)(with_spaces(part) for part in words)
    return [
        f" {word}" if place > 0 and isinstance(word, str) and not word.startswith(" ") else word
        for place, word in enumerate(words)
    ]


def words_of_samples(text: Any, text_pair: Any = None) -> list[tuple[list[str], ...]]:
    """For each sample the words of its one or two texts, in all forms that tokenizers take."""
    if not text or isinstance(text[0], str):
        return [(text, text_pair or [])]
    if text_pair is not None:
        return list(zip(text, text_pair, strict=True))
    return [tuple(sample) if sample and isinstance(sample[0], (list, tuple)) else (sample,) for sample in text]


def take_spaces_out(encoding: Encoding, spaced: tuple[list[str], ...], given: tuple[list[str], ...]):
    """Let the offsets of an encoding of words with spaces be those in the words as they were given."""
    state = json.loads(encoding.__getstate__())
    for token, (text, word) in enumerate(zip(encoding.sequence_ids, encoding.word_ids, strict=True)):
        if text is not None and word is not None:
            num_spaces = len(spaced[text][word]) - len(given[text][word])
            state["offsets"][token] = [max(place - num_spaces, 0) for place in state["offsets"][token]]
    encoding.__setstate__(json.dumps(state).encode())


# A saved folder carries this file.
LunaTokenizer.register_for_auto_class()


__all__ = ["LunaTokenizer"]
