"""Dynamic masking: which tokens of a row are to be predicted, as a function of (seed, step, row) alone."""

from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from pretrain.data.tokenizer import word_starts


IGNORED = -100  # label of positions that are not predicted
TRAINING, EVALUATION = 0, 1


@dataclass(frozen=True)
class Masking:
    """BERT's corruption as RoBERTa applies it: anew each time a row is seen.

    Of the tokens that are not special, the share `probability` is chosen (its fraction of a token is rounded at
    random, and a row has at least one); of the chosen, 80 % become the mask token, 10 % another random token, and
    10 % stay.

    Args:
        seed: of the run.
        probability: the share of tokens to predict.
        mask_token_id: what stands in the place of a masked token.
        replacements: ids a random replacement is drawn from.
        special: for each id, whether it is a special token, which is never chosen.
        word_starts: for each id, whether it begins a word; where given, whole words are chosen.
    """

    seed: int
    probability: float
    mask_token_id: int
    replacements: np.ndarray
    special: np.ndarray
    word_starts: np.ndarray | None = None

    @classmethod
    def from_tokenizer(
        cls, tokenizer: PreTrainedTokenizerBase, seed: int, probability: float, whole_words: bool
    ) -> "Masking":
        special = np.zeros(len(tokenizer), dtype=bool)
        special[tokenizer.all_special_ids] = True
        return cls(
            seed=seed,
            probability=probability,
            mask_token_id=tokenizer.mask_token_id,
            replacements=np.flatnonzero(~special),
            special=special,
            word_starts=np.array(word_starts(tokenizer)) if whole_words else None,
        )

    def __call__(self, rows: np.ndarray, keys: np.ndarray, step: int, stream: int) -> tuple[np.ndarray, np.ndarray]:
        """Corrupt rows.

        Args:
            rows: ids, (rows, length).
            keys: (rows,), what tells the rows of a step apart: their place in the global batch.
            step: the optimiser step, 0 for evaluation.
            stream: `TRAINING` or `EVALUATION`.

        Returns:
            `input_ids` and `labels`, both (rows, length) of int64.
        """
        draws = np.stack([self._draws(rows.shape[1], key, step, stream) for key in keys])  # (rows, 3, length + 1)
        order, kind, replacement = draws[:, 0], draws[:, 1, :-1], draws[:, 2, :-1]
        chosen = self._choose(rows, order[:, :-1], rounding=order[:, -1:])

        input_ids = rows.astype(np.int64)
        labels = np.where(chosen, input_ids, IGNORED)
        random_ids = self.replacements[(replacement * len(self.replacements)).astype(np.int64)]
        input_ids[chosen & (kind < 0.8)] = self.mask_token_id
        replaced = chosen & (kind >= 0.8) & (kind < 0.9)
        input_ids[replaced] = random_ids[replaced]
        return input_ids, labels

    def _draws(self, length: int, key: int, step: int, stream: int) -> np.ndarray:
        """Uniform numbers of one row from a counter-based generator: no state to carry from step to step."""
        bits = np.random.Philox(key=[self.seed, stream], counter=[0, 0, key, step])
        return np.random.Generator(bits).random((3, length + 1), dtype=np.float32)

    def _choose(self, rows: np.ndarray, order: np.ndarray, rounding: np.ndarray) -> np.ndarray:
        """The tokens of each row that come first in a random order, or the words."""
        candidates = ~self.special[rows]
        wanted = np.floor(candidates.sum(axis=1, keepdims=True) * self.probability + rounding)
        wanted = np.maximum(wanted, 1)
        if self.word_starts is None:
            return candidates & (_ranks(np.where(candidates, order, np.inf)) < wanted)
        first, length = self._words(rows, candidates)
        # All tokens of a word take the random number of its first one: they are neighbours in the order. The word
        # at the limit counts where more than half of it lies within, which keeps the share on average.
        order = np.where(candidates, np.take_along_axis(order, first, axis=1), np.inf)
        rank_of_word = np.take_along_axis(_ranks(order), first, axis=1)
        return candidates & ((rank_of_word + length / 2 < wanted + 0.5) | (rank_of_word == 0))

    def _words(self, rows: np.ndarray, candidates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each token, where its word begins in the row and how many tokens the word has."""
        places = np.arange(rows.shape[1])
        assert self.word_starts is not None
        starts = self.word_starts[rows] | ~candidates
        starts[:, 1:] |= ~candidates[:, :-1]
        starts[:, 0] = True
        first = np.maximum.accumulate(np.where(starts, places, 0), axis=1)
        following = np.full(rows.shape, rows.shape[1])
        following[:, :-1] = np.where(starts, places, rows.shape[1])[:, 1:]
        following = np.minimum.accumulate(following[:, ::-1], axis=1)[:, ::-1]
        return first, following - first


def _ranks(values: np.ndarray) -> np.ndarray:
    """The rank of each value in its row, from 0; equal values in their order."""
    ranks = np.empty(values.shape, dtype=np.int64)
    places = np.broadcast_to(np.arange(values.shape[1]), values.shape)
    np.put_along_axis(ranks, np.argsort(values, axis=1, kind="stable"), places, axis=1)
    return ranks
