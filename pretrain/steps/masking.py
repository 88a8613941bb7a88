"""Dynamic masking: which tokens of a row are to be predicted, as a function of (seed, step, row) alone."""

from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from common.labels import IGNORED
from pretrain.configuration import PretrainConfig
from pretrain.data.tokenizer import word_starts


TRAINING, EVALUATION = 0, 1
LONGEST_SPAN = 10  # words
LONGEST_WORD = 10  # tokens; what runs on, such as text without spaces, is cut
# Distances between the hashes of the places of a row, and of the draws of a place (odd numbers, as SplitMix64's).
STEP_OF_PLACE, STEP_OF_DRAW = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD1B54A32D192ED03)
PLACES = np.uint64(2**20 - 1)  # the bits that hold a place of a row
LAST = np.uint64(2**64 - 1)  # in the order of the places: those that are never chosen


@dataclass(frozen=True)
class Masking:
    """BERT's corruption as RoBERTa applies it: anew each time a row is seen.

    Of the tokens that are not special, the share `probability` is chosen, in units: tokens, whole words, or spans of
    whole words, whose lengths are geometric and at most ten (Joshi et al., 2020, https://arxiv.org/abs/1907.10529).
    Units end at special tokens, and so at the borders of documents. The last unit is taken or left at random, so that
    the share holds on average; but each row has at least one. Of the chosen tokens 80 % become the mask token, 10 %
    another random token, and 10 % stay; the tokens of a span share this fate.

    Args:
        seed: of the run.
        probability: the share of tokens to predict.
        mask_token_id: what stands in the place of a masked token.
        replacements: ids a random replacement is drawn from.
        special: for each id, whether it is a special token, which is never chosen.
        word_starts: for each id, whether it begins a word; where given, whole words are chosen.
        span_lengths: the shares of spans of one word, of two, and so on; where given, spans are chosen.
        probability_end: the share of tokens at the last of `total_steps` and after it, approached in a straight line;
            validation keeps `probability`.
        total_steps: over which the share changes.
    """

    seed: int
    probability: float
    mask_token_id: int
    replacements: np.ndarray
    special: np.ndarray
    word_starts: np.ndarray | None = None
    span_lengths: np.ndarray | None = None
    probability_end: float | None = None
    total_steps: int | None = None

    @classmethod
    def from_config(
        cls, config: PretrainConfig, tokenizer: PreTrainedTokenizerBase, total_steps: int | None
    ) -> "Masking":
        """The masking of a run of so many steps, None where their number is not known."""
        special = np.zeros(len(tokenizer), dtype=bool)
        special[tokenizer.all_special_ids] = True
        return cls(
            seed=config.seed,
            probability=config.mask_probability,
            mask_token_id=tokenizer.mask_token_id,
            replacements=np.flatnonzero(~special),
            special=special,
            word_starts=None if config.masking == "token" else np.array(word_starts(tokenizer)),
            span_lengths=span_length_shares(config.mean_span_length) if config.masking == "span" else None,
            probability_end=config.mask_probability_end,
            total_steps=config.mask_probability_steps or total_steps,
        )

    def share(self, step: int, stream: int) -> float:
        """The share of tokens to predict at a step."""
        if self.probability_end is None or stream == EVALUATION:
            return self.probability
        assert self.total_steps is not None, "a share that changes needs the length of the run in steps"
        done = min(1.0, step / max(1, self.total_steps - 1))
        return self.probability + (self.probability_end - self.probability) * done

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
        of_rows = self._hash_rows(keys, step, stream)
        of_places = mix(of_rows[:, None] + np.arange(1, rows.shape[1] + 1, dtype=np.uint64) * STEP_OF_PLACE)
        candidates = ~self.special[rows]
        words, units = self._units(rows, candidates, of_places)
        wanted = candidates.sum(axis=1) * self.share(step, stream)
        chosen = choose(candidates, of_places, words, units, wanted, uniform(of_rows))

        input_ids = rows.astype(np.int64)
        labels = np.full(input_ids.shape, IGNORED)
        where = np.nonzero(chosen)
        ids = input_ids[where]
        labels[where] = ids
        draws = of_places[where]
        kind_draws = draws if self.span_lengths is None else of_places[where[0], units[where]]
        kind, replacement = uniform(mix(kind_draws + STEP_OF_DRAW)), uniform(mix(draws + STEP_OF_DRAW + STEP_OF_DRAW))
        random_ids = self.replacements[(replacement * len(self.replacements)).astype(np.int64)]
        input_ids[where] = np.where(kind < 0.8, self.mask_token_id, np.where(kind < 0.9, random_ids, ids))
        return input_ids, labels

    def _hash_rows(self, keys: np.ndarray, step: int, stream: int) -> np.ndarray:
        """A number for each row that depends on all bits of seed, stream, step and key."""
        hashed = np.zeros(len(keys), dtype=np.uint64)
        for part in (self.seed, stream, step, keys):
            hashed = mix(hashed + np.asarray(part).astype(np.uint64) + STEP_OF_PLACE)
        return hashed

    def _units(self, rows: np.ndarray, candidates: np.ndarray, of_places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each token, the places where its word and its unit begin; meaningless for special tokens."""
        places = np.arange(rows.shape[1])
        if self.word_starts is None:
            every = np.broadcast_to(places, rows.shape)
            return every, every
        starts = self.word_starts[rows]
        starts[:, 1:] |= ~candidates[:, :-1]
        starts |= (places - latest(starts, places)) % LONGEST_WORD == 0
        words = latest(starts, places)
        if self.span_lengths is None:
            return words, words

        # A row draws the lengths of more spans than it can hold and lays them one after the other over its words,
        # the first one from some words before it on; a special token cuts the span that it falls into.
        draws = uniform(mix(of_places + STEP_OF_DRAW))
        lengths = 1 + np.searchsorted(np.cumsum(self.span_lengths)[:-1], draws, side="right")
        skipped = (draws[:, :1] * 2**20 % LONGEST_SPAN).astype(np.int64)
        number = skipped + np.cumsum(starts & candidates, axis=1)
        begins = np.zeros((len(rows), rows.shape[1] + LONGEST_SPAN + 1), dtype=bool)
        np.put_along_axis(begins, np.minimum(np.cumsum(lengths, axis=1), begins.shape[1] - 1), True, axis=1)
        starts &= np.take_along_axis(begins, number, axis=1)
        starts[:, 1:] |= ~candidates[:, :-1]
        return words, latest(starts, places)


def choose(
    candidates: np.ndarray,
    of_places: np.ndarray,
    words: np.ndarray,
    units: np.ndarray,
    wanted: np.ndarray,
    rounding: np.ndarray,
) -> np.ndarray:
    """Take units of each row in a random order until it has as many tokens as wanted.

    The unit that passes the limit is taken with a probability that makes the mean number the wanted one. Where the
    first one does, it ends after a word instead.

    Args:
        candidates: (rows, length), which tokens may be chosen.
        of_places: (rows, length), random numbers that give the order.
        words, units: (rows, length), the places where the word and the unit of each token begin.
        wanted: (rows,), the mean number of tokens to choose, with its fraction.
        rounding: (rows,), random numbers of [0, 1).

    Returns:
        (rows, length), which tokens are chosen.
    """
    num_rows, length = candidates.shape
    assert length <= PLACES, "a place must fit into its bits of the order"
    # The place in the lowest bits makes all numbers of a row differ, and keeps the tokens of a unit together.
    order = (np.take_along_axis(of_places, units, axis=1) & ~PLACES) | np.arange(length, dtype=np.uint64)
    order = np.where(candidates, order, LAST)
    ranked = np.sort(order, axis=1)
    num_candidates = candidates.sum(axis=1)
    rank = np.clip(wanted.astype(np.int64), 0, np.maximum(num_candidates - 1, 0))  # of the token at the limit
    row = np.arange(num_rows)
    place = np.minimum(ranked[row, rank] & PLACES, np.uint64(length - 1)).astype(np.int64)

    def at_limit(begins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How many tokens come before the word or unit at the limit, and how many it has."""
        begin = begins[row, place]
        return rank - (place - begin), ((begins == begin[:, None]) & candidates).sum(axis=1)

    before, size = at_limit(units)
    cut = (before == 0) & (size > wanted)
    if cut.any():
        before, size = np.where(cut, at_limit(words), (before, size))
    count = before + np.where((before == 0) | (rounding * size < wanted - before), size, 0)
    limit = ranked[row, np.clip(count, 1, None) - 1]
    return candidates & (order <= limit[:, None])


def span_length_shares(mean: float) -> np.ndarray:
    """The shares of the lengths 1 to ten of a geometric distribution without its longer ones, with this mean."""
    lengths = np.arange(1, LONGEST_SPAN + 1)
    low, high = 1e-9, 1.0  # of the share of spans that go on after each word
    for _ in range(100):
        ratio = (low + high) / 2
        shares = ratio**lengths / (ratio**lengths).sum()
        low, high = (ratio, high) if shares @ lengths < mean else (low, ratio)
    return shares


def mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele et al., 2014): each bit of the result depends on all bits."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def uniform(values: np.ndarray) -> np.ndarray:
    """Numbers of [0, 1) from the upper bits of random ones."""
    return (values >> np.uint64(11)) * 2.0**-53


def latest(marked: np.ndarray, places: np.ndarray) -> np.ndarray:
    """For each place of a row, the last marked one up to it."""
    return np.maximum.accumulate(np.where(marked, places, 0), axis=1)
