"""The tokenizer of a run: trained on its text in RoBERTa's form, or a given one."""

import heapq
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

import xxhash
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, RobertaTokenizer

from common.errors import UserError, reason_of
from common.files import check_model_files
from modeling_luna import LunaTokenizer
from pretrain.data.sources import DocumentReader, Source


SPECIAL_TOKENS = ["<s>", "<pad>", "</s>", "<unk>"]  # ids 0 to 3; <mask> is the last id
PIECE_LETTERS = 2**16  # of a text that a tokenizer is trained on: memory grows with the longest
WORD_END = re.compile(r"(?<=[^\W_])(?=[^\w\s]|\s\S)")  # words of byte-level BPE end there, among other places
# Of letters, digits, other signs or white space. Training takes time with the square of the length of a word.
LONG_WORD = re.compile(r"[^\W\d_]{1024}|\d{1024}|(?:[^\w\s]|_){1024}|\s{1024}")
SMALLEST_VOCABULARY = len(SPECIAL_TOKENS) + 256 + 1  # the specials, every byte, <mask>


class TokenizerError(UserError):
    """A tokenizer that cannot be loaded, or cannot serve masked language modelling."""


def sample_texts(sources: list[Source], megabytes: int, num_proc: int) -> list[bytes]:
    """Documents of about so many megabytes together, in their order: of each source its share by weight, or without
    weights of all together.

    Raises:
        SourceError: where a source cannot be read.
    """
    size = megabytes * 10**6
    total_weight = sum(source.weight or 0 for source in sources)
    together = _Sample(size)
    samples = [
        together if source.weight is None else _Sample(size * source.weight / total_weight) for source in sources
    ]
    number = 0
    for source, sample in zip(sources, samples, strict=True):
        read = 0
        for document in DocumentReader(source, num_proc):
            sample.add(number, document.text)
            number += 1
            read += len(document.text)
            if source.streaming and read >= size:
                break
    chosen = [text for sample in {id(sample): sample for sample in samples}.values() for text in sample.texts()]
    return [text for _, text in sorted(chosen)]


class _Sample:
    """The documents with the smallest hashes that are `size` bytes together, or all if these are fewer."""

    def __init__(self, size: float):
        self.size = size
        self.bytes = 0
        self._largest_first: list[tuple[int, int, bytes]] = []

    def add(self, number: int, text: bytes):
        digest = xxhash.xxh3_64_intdigest(text)
        if self.bytes >= self.size and -digest < self._largest_first[0][0]:
            return
        heapq.heappush(self._largest_first, (-digest, -number, text))
        self.bytes += len(text)
        while self.bytes - len(self._largest_first[0][2]) >= self.size:
            self.bytes -= len(heapq.heappop(self._largest_first)[2])

    def texts(self) -> list[tuple[int, bytes]]:
        return [(-number, text) for _, number, text in self._largest_first]


def train_tokenizer(texts: Iterable[str], vocab_size: int, max_length: int) -> PreTrainedTokenizerBase:
    """Train a byte-level BPE tokenizer in RoBERTa's form: `<s>` 0, `<pad>` 1, `</s>` 2, `<unk>` 3, `<mask>` last.

    It is a `LunaTokenizer`, which gives words the tokens that they have in the sentence.

    Args:
        texts: whose words are counted; words of more than 1,024 letters are cut.
        vocab_size: the number of tokens, `<mask>` included; a text of few words gives fewer.
        max_length: the number of tokens that a row may hold.

    Raises:
        TokenizerError: where `vocab_size` does not hold the bytes and the special tokens.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise TokenizerError(
            f"vocab_size is {vocab_size}: a byte-level tokenizer needs at least {SMALLEST_VOCABULARY}."
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((piece for text in texts for piece in _pieces(text)), trainer)
    bpe = json.loads(tokenizer.to_str())["model"]
    # <mask> takes the space before it, so that "the <mask> of" and "the word of" have the same number of tokens.
    mask_token = AddedToken("<mask>", lstrip=True, special=True, normalized=False)
    return LunaTokenizer(
        vocab=bpe["vocab"],
        merges=[tuple(merge) for merge in bpe["merges"]],
        mask_token=mask_token,
        model_max_length=max_length,
    )


def _pieces(text: str) -> Iterator[str]:
    """A text in pieces that have the words of the text, but for very long ones, which are cut."""
    first = 0
    for last in [*(match.end() for match in LONG_WORD.finditer(text)), len(text)]:
        while last - first > PIECE_LETTERS and (end := WORD_END.search(text, first + PIECE_LETTERS, last)):
            yield text[first : end.start()]
            first = end.start()
        yield text[first:last]
        first = last


def load_tokenizer(name_or_path: str) -> PreTrainedTokenizerBase:
    """Load a given tokenizer from a folder or the Hub; it must have the special tokens that masking needs.

    Code that it brings along is never run.
    """
    check_model_files(name_or_path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)
    except Exception as error:  # files that are damaged, or not what they should be, end in errors of any type
        problem = f"cannot be loaded as a folder or from the Hub: {reason_of(error)}"
        if "trust_remote_code" in str(error):
            problem = "brings code of its own, which is not run here: give a tokenizer that Transformers knows."
        raise TokenizerError(f"tokenizer: {name_or_path} {problem}") from error
    if not tokenizer.is_fast:
        raise TokenizerError(f"tokenizer: {name_or_path} has no fast version, which preparation needs.")
    missing = [name for name in ("mask_token", "pad_token") if getattr(tokenizer, name) is None]
    if None in _ends(tokenizer):
        missing.append("cls_token and sep_token (or bos_token and eos_token)")
    if missing:
        raise TokenizerError(f"tokenizer: {name_or_path} has no {', no '.join(missing)}; masked LM needs them.")
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        # What Transformers makes of a tokenizer_config.json without the files of the vocabulary.
        raise TokenizerError(f"tokenizer: {name_or_path} has special tokens only: its vocabulary is not there.")
    return tokenizer


def without_code(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer for a folder that shall hold no code of Luna's, if it can be: `RobertaTokenizer`, the same but for
    lists of words."""
    if not isinstance(tokenizer, LunaTokenizer) or ids_given_out(tokenizer) is not None:
        return tokenizer
    fields = {
        name: value for name, value in tokenizer.init_kwargs.items() if name not in ("auto_map", "dictionary_size")
    }
    fields["model_max_length"] = tokenizer.model_max_length
    return RobertaTokenizer(tokenizer_object=tokenizer.backend_tokenizer, **fields)


def row_ends(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """The ids that open and close a row: `<s>` and `</s>` in RoBERTa's form, `[CLS]` and `[SEP]` in BERT's."""
    first, last = _ends(tokenizer)
    assert first is not None and last is not None, "load_tokenizer lets no other pass"
    return first, last


def _ends(tokenizer: PreTrainedTokenizerBase) -> tuple[int | None, int | None]:
    first = tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id
    last = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
    return first, last


def word_starts(tokenizer: PreTrainedTokenizerBase) -> list[bool]:
    """For each id, whether it begins a word: what whole-word masking needs to know.

    Byte-level BPE and SentencePiece mark the space before a word; WordPiece marks the pieces that go on with one.
    """
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    if any(token.startswith("##") for token in tokens):
        return [not token.startswith("##") for token in tokens]
    return [token[:1] in ("Ġ", "Ċ", "ĉ", "▁") for token in tokens]


def ids_given_out(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...] | None:
    """For each id inside a tokenizer the one that it gives out; None where it gives out all as they are.

    They differ where a dictionary lacks tokens of the BPE (see `LunaTokenizer`).
    """
    inside = tokenizer.backend_tokenizer.get_vocab()
    if len(inside) == len(tokenizer):
        return None
    ids: Any = tokenizer.convert_tokens_to_ids(sorted(inside, key=inside.__getitem__))
    return tuple(ids)


def token_type_of(vocab_size: int) -> str:
    """The NumPy type that ids are stored in."""
    return "uint16" if vocab_size <= 2**16 else "uint32"
