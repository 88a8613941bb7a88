"""Masked loss and accuracy on text, comparable between models with different tokenizers: hidden words.

- A word is a stretch of characters without white space; a Chinese character is one by itself, as in BERT. A stretch of
  more than 40 characters (an address, a table) is context and never hidden.
- Each word is hidden with the same probability. Which ones is a function of (seed, text of the document, number of the
  word) alone, so that all models predict the same words, whatever their tokenizers, the length of rows, the batch size
  or what else is read.
- All tokens of a hidden word are replaced by the mask token. They are predicted "at_once", each from what is not
  hidden, as in training; or "left_to_right": of all hidden words together first the first token, then, with these in
  place, the second, and so on. The loss of a word is the sum over its tokens of -log p.
- Documents are cut between words into rows, each as long as fits every model, which do not overlap: all models see the
  same text around a word, and each hidden word is in one row. What was cut is counted.
- A hidden word is scored where every tokenizer spells it, with tokens that it shares with no other word: an unknown
  token says little of the word and would be easy to predict.

Left to right the sum over all words is a log probability of the same hidden text for every model. At once it is not:
tokens that do not know each other are charged for it, so that of two equal models the one with the smaller vocabulary
looks worse. What neither levels: a tokenizer that lowers the case has less to predict, and the number of masks tells a
model of how many of its tokens a word is.
"""

import hashlib
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from evaluation.models import Encoded, MaskedRow, Scorer, TextEncoder


CHINESE = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
PREDICTIONS = ("at_once", "left_to_right")
WORD = re.compile(rf"[{CHINESE}]|[^\s{CHINESE}]+")
LONGEST_HIDDEN_WORD = 40  # characters
SECTION_CHARACTERS = 2**16  # that are encoded at once, so that the memory does not grow with the longest document
SECTIONS_AT_ONCE = 64


class Section(NamedTuple):
    """Words of a document.

    Args:
        document: the number of the document.
        start: the number of the first word in it.
        text: from the first word to the last.
        spans: (words, 2), the characters of each word.
        hidden: (words,), which words are to be predicted.
    """

    document: int
    start: int
    text: str
    spans: np.ndarray
    hidden: np.ndarray


class Spelling(NamedTuple):
    """How a tokenizer spells the words of a section.

    Args:
        ids: (tokens,).
        first_word, end_word: (tokens,), the range of words that each token is made of; empty for white space.
        first_token: (words + 1,), where the tokens of each word begin.
        spelled: (words,), whether it has tokens of its own alone, none of them unknown.
    """

    ids: np.ndarray
    first_word: np.ndarray
    end_word: np.ndarray
    first_token: np.ndarray
    spelled: np.ndarray


@dataclass
class HiddenWords:
    """The rows of a text for each of several tokenizers, with the same words hidden in the same text.

    Args:
        rows: for each tokenizer.
        num_rows: into which the documents were cut; left to right each of them has several in `rows`.
        words: for each tokenizer and row the number of the word of each prediction.
        documents, words_read: what was read.
        hidden: the words that are hidden.
        spelled: for each tokenizer, how many of them it spells.
        scored: those of them that are scored.
        scored_bytes: their length in UTF-8, without the white space around them.
        too_long: words that are longer than a row; they are left out of the text.
        cut_documents: the numbers of the documents that did not fit into one row.
    """

    rows: list[list[MaskedRow]]
    words: list[list[np.ndarray]]
    documents: int = 0
    words_read: int = 0
    hidden: int = 0
    spelled: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    scored: int = 0
    scored_bytes: int = 0
    num_rows: int = 0
    too_long: int = 0
    cut_documents: set[int] = field(default_factory=set)

    @classmethod
    def cut(
        cls,
        documents: Iterable[str],
        encoders: Sequence[TextEncoder],
        max_length: int,
        seed: int = 0,
        probability: float = 0.15,
        prediction: str = "at_once",
    ) -> "HiddenWords":
        """Hide words of documents and cut these into rows that hold at most `max_length` tokens of each tokenizer.

        Where there is no word to score, the result has none.
        """
        result = cls(rows=[[] for _ in encoders], words=[[] for _ in encoders])
        result.spelled = np.zeros(len(encoders), dtype=np.int64)
        for sections in _batched(result._sections(documents, seed, probability), SECTIONS_AT_ONCE):
            encoded = [encoder.encode([section.text for section in sections]) for encoder in encoders]
            for section, encodings in zip(sections, zip(*encoded, strict=True), strict=True):
                spellings = [
                    spell(section, encoding, encoder.unk_token_id)
                    for encoding, encoder in zip(encodings, encoders, strict=True)
                ]
                result._add(section, spellings, encoders, max_length, prediction)
        return result

    def _sections(self, documents: Iterable[str], seed: int, probability: float) -> Iterator[Section]:
        for text in documents:
            spans = np.array([match.span() for match in WORD.finditer(text)], dtype=np.int64).reshape(-1, 2)
            hidden = hidden_words(text, len(spans), seed, probability)
            hidden &= spans[:, 1] - spans[:, 0] <= LONGEST_HIDDEN_WORD
            self.documents += 1
            self.words_read += len(spans)
            start = 0
            while start < len(spans):
                limit = spans[start, 0] + SECTION_CHARACTERS
                stop = max(start + 1, int(np.searchsorted(spans[:, 1], limit, side="right")))
                begin, end = spans[start, 0], spans[stop - 1, 1]
                yield Section(self.documents, start, text[begin:end], spans[start:stop] - begin, hidden[start:stop])
                start = stop

    def _add(
        self,
        section: Section,
        spellings: list[Spelling],
        encoders: Sequence[TextEncoder],
        max_length: int,
        prediction: str,
    ):
        room = [max_length - encoder.num_special_tokens for encoder in encoders]
        ranges = list(_row_ranges(spellings, room))
        inside = np.zeros(len(section.spans), dtype=bool)
        for start, stop in ranges:
            inside[start:stop] = True
        hidden = section.hidden & inside
        spelled = hidden & np.array([spelling.spelled for spelling in spellings])
        scored = spelled.all(axis=0)
        numbers = np.where(scored, self.scored + np.cumsum(scored) - 1, -1)

        if len(ranges) > 1 or section.start > 0:
            self.cut_documents.add(section.document)
        self.num_rows += sum(bool(scored[start:stop].any()) for start, stop in ranges)
        self.too_long += int((~inside).sum())
        self.hidden += int(hidden.sum())
        self.spelled += spelled.sum(axis=1)
        self.scored += int(scored.sum())
        self.scored_bytes += sum(len(section.text[start:end].encode()) for start, end in section.spans[scored])
        for rows, words, spelling, encoder in zip(self.rows, self.words, spellings, encoders, strict=True):
            masked, number = lay_over_tokens(spelling, section.hidden, numbers)
            for start, stop in ranges:
                if scored[start:stop].any():
                    tokens = slice(*spelling.first_token[[start, stop]])
                    new = masked_rows(encoder, spelling.ids[tokens], masked[tokens], number[tokens], prediction)
                    for row, predicted in new:
                        rows.append(row)
                        words.append(predicted)


def _row_ranges(spellings: Sequence[Spelling], room: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Ranges of words, as many as fit in each; a word that is longer than a row is in none."""
    start, num_words = 0, len(spellings[0].spelled)
    while start < num_words:
        stop = min(
            int(np.searchsorted(spelling.first_token, spelling.first_token[start] + tokens, side="right")) - 1
            for spelling, tokens in zip(spellings, room, strict=True)
        )
        stop = min(stop, num_words)
        if stop > start:
            yield start, stop
        start = max(stop, start + 1)


def hidden_words(text: str, num_words: int, seed: int, probability: float) -> np.ndarray:
    """Which words of a document are hidden: (words,), bool."""
    digest = hashlib.blake2b(text.encode(), digest_size=16, salt=seed.to_bytes(8, "little")).digest()
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
    return generator.random(num_words) < probability


def spell(section: Section, encoded: Encoded, unk_token_id: int | None) -> Spelling:
    """Lay the tokens of a section over its words."""
    starts, ends = section.spans.T
    first_word = np.searchsorted(ends, encoded.offsets[:, 0], side="right")
    end_word = np.maximum(np.searchsorted(starts, encoded.offsets[:, 1], side="left"), first_word)
    first_token = np.searchsorted(np.maximum.accumulate(encoded.offsets[:, 1]), [*starts, np.inf], side="right")
    first_token[0] = 0

    num_words = len(section.spans)
    shared = (end_word - first_word > 1) | (encoded.ids == (-1 if unk_token_id is None else unk_token_id))
    spoilt = np.zeros(num_words + 1, dtype=np.int64)
    np.add.at(spoilt, first_word[shared], 1)
    np.add.at(spoilt, end_word[shared], -1)
    own = np.zeros(num_words, dtype=bool)
    own[first_word[end_word - first_word == 1]] = True
    return Spelling(encoded.ids, first_word, end_word, first_token, own & (np.cumsum(spoilt)[:-1] == 0))


def lay_over_tokens(spelling: Spelling, hidden: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which tokens are masked, and the number of the word that each is to be predicted for, -1 for none: (tokens,).

    Args:
        spelling: of a section.
        hidden: (words,), whose tokens are masked.
        numbers: (words,), the number of each word that is scored, -1 for others.
    """
    hidden_before = np.concatenate([[0], np.cumsum(hidden)])
    masked = hidden_before[spelling.end_word] > hidden_before[spelling.first_word]
    word = np.minimum(spelling.first_word, len(numbers) - 1)
    return masked, np.where(spelling.end_word > spelling.first_word, numbers[word], -1)


def masked_rows(
    encoder: TextEncoder, ids: np.ndarray, masked: np.ndarray, number: np.ndarray, prediction: str
) -> Iterator[tuple[MaskedRow, np.ndarray]]:
    """The rows of some tokens, and for each the number of the word of each prediction."""
    places = np.flatnonzero(number >= 0)
    step = np.zeros(len(places), dtype=np.int64)  # in which each is predicted
    if prediction == "left_to_right":
        first = np.flatnonzero(np.diff(number[places], prepend=-1))
        step = np.arange(len(places)) - np.repeat(first, np.diff(first, append=len(places)))
    for now in range(step.max() + 1):
        input_ids = np.where(masked, np.int32(encoder.mask_token_id), ids)
        known, predicted = places[step < now], places[step == now]
        input_ids[known] = ids[known]
        yield MaskedRow(encoder.row(input_ids), predicted + len(encoder.before), ids[predicted]), number[predicted]


def evaluate_hidden_words(scorer: Scorer, text: HiddenWords, tokenizer: int, name: str) -> dict[str, Any]:
    """Score the hidden words of a text by a model.

    Returns:
        nats_per_word: sum of -log p over all tokens of all scored words, divided by the number of these words.
        bits_per_byte: the same sum in bits, divided by the length of these words in UTF-8.
        word_accuracy: the share of words of which every token is the likeliest at its place.
        loss, perplexity, accuracy: mean of -log p in nats, its exponential (None where that overflows), and the share
            of right predictions, of tokens.
        tokens_predicted: number of these tokens.
        tokens_per_second: that went through the model.
    """
    scores = scorer.score(text.rows[tokenizer], name)
    nats = -scores.log_probabilities.sum()
    loss = float(nats / len(scores.log_probabilities))
    wrong = np.bincount(np.concatenate(text.words[tokenizer]), weights=~scores.correct, minlength=text.scored)
    return {
        "nats_per_word": float(nats / text.scored),
        "bits_per_byte": float(nats / np.log(2) / text.scored_bytes),
        "word_accuracy": float((wrong == 0).mean()),
        "loss": loss,
        "perplexity": math.exp(loss) if loss < 700 else None,
        "accuracy": float(scores.correct.mean()),
        "tokens_predicted": len(scores.log_probabilities),
        "tokens_per_second": round(scores.tokens / scores.seconds, 1),
    }


def _batched(items: Iterator[Section], size: int) -> Iterator[list[Section]]:
    while batch := list(itertools.islice(items, size)):
        yield batch
