"""Masking: its shares, what it never touches, and that a row's mask depends on (seed, step, row) alone."""

import numpy as np
import pytest

from pretrain.masking import EVALUATION, IGNORED, TRAINING, Masking


VOCABULARY, SPECIAL, MASK = 100, [0, 1, 2, 3, 99], 99


def build_masking(seed: int = 5, probability: float = 0.15, word_starts: np.ndarray | None = None) -> Masking:
    special = np.isin(np.arange(VOCABULARY), SPECIAL)
    return Masking(seed, probability, MASK, np.flatnonzero(~special), special, word_starts)


def build_rows(count: int, length: int = 64) -> np.ndarray:
    """Rows of <s>, tokens with some </s> between them, </s>, and in every fourth row padding."""
    generator = np.random.default_rng(1)
    rows = generator.integers(4, MASK, size=(count, length))
    rows[generator.random(rows.shape) < 0.03] = 2
    rows[:, 0], rows[:, -1] = 0, 2
    rows[::4, length // 2] = 2
    rows[::4, length // 2 + 1 :] = 1
    return rows


def test_share_and_kinds_of_replacement():
    rows = build_rows(4000)
    input_ids, labels = build_masking()(rows, np.arange(4000), step=7, stream=TRAINING)

    chosen = labels != IGNORED
    tokens = ~np.isin(rows, SPECIAL)
    assert not chosen[~tokens].any()
    assert chosen.sum() / tokens.sum() == pytest.approx(0.15, abs=0.001)
    # Each row has its own share, up to the rounding of a fraction of a token.
    assert (np.abs(chosen.sum(axis=1) - 0.15 * tokens.sum(axis=1)) < 1).all()

    assert (labels[chosen] == rows[chosen]).all()
    assert (input_ids[~chosen] == rows[~chosen]).all()
    masked, kept = input_ids[chosen] == MASK, input_ids[chosen] == rows[chosen]
    assert masked.mean() == pytest.approx(0.8, abs=0.01)
    assert kept.mean() == pytest.approx(0.1 + 0.1 / 95, abs=0.01)
    replacements = input_ids[chosen][~masked & ~kept]
    assert not np.isin(replacements, SPECIAL).any()
    assert len(np.unique(replacements)) == 95
    # Every place of a row is chosen equally often; the long rows only, whose places hold tokens but for </s>.
    of_place = chosen[1::4, 1:-1].sum(axis=0) / tokens[1::4, 1:-1].sum(axis=0)
    assert np.abs(of_place - 0.15).max() < 0.06


def test_share_is_the_probability_asked_for():
    rows = build_rows(2000)
    _, labels = build_masking(probability=0.4)(rows, np.arange(2000), step=0, stream=TRAINING)
    assert (labels != IGNORED).sum() / (~np.isin(rows, SPECIAL)).sum() == pytest.approx(0.4, abs=0.002)


@pytest.mark.parametrize("whole_words", [False, True])
def test_a_row_is_masked_the_same_whatever_the_other_rows(whole_words: bool):
    starts = np.arange(VOCABULARY) % 3 == 0 if whole_words else None
    masking, rows, keys = build_masking(word_starts=starts), build_rows(12), np.arange(100, 112)
    together = np.stack(masking(rows, keys, step=4, stream=TRAINING))
    order = np.random.default_rng(0).permutation(12)
    np.testing.assert_array_equal(np.stack(masking(rows[order], keys[order], 4, TRAINING)), together[:, order])
    for row in range(12):
        alone = np.stack(masking(rows[[row]], keys[[row]], 4, TRAINING))
        np.testing.assert_array_equal(alone, together[:, [row]])


@pytest.mark.parametrize(
    "other",
    [{"seed": 6}, {"step": 5}, {"stream": EVALUATION}, {"keys": np.arange(50, 100)}],
    ids=lambda other: [*other],
)
def test_other_seed_step_stream_or_row_gives_other_masks(other: dict):
    rows = build_rows(50)
    call = {"rows": rows, "keys": np.arange(50), "step": 4, "stream": TRAINING}
    seed = other.get("seed", 5)
    changed = call | {key: value for key, value in other.items() if key != "seed"}
    first, second = build_masking()(**call)[1] != IGNORED, build_masking(seed)(**changed)[1] != IGNORED
    # Independent draws of 15 % meet in 15 % of the chosen.
    assert (first & second).sum() / first.sum() < 0.25


@pytest.mark.parametrize("probability", [0.15, 0.4])
def test_whole_words_are_chosen_entirely_or_not_at_all(probability: float):
    starts = np.arange(VOCABULARY) % 3 == 0  # words of one to many tokens, of three on average
    rows = build_rows(3000)
    _, labels = build_masking(probability=probability, word_starts=starts)(rows, np.arange(3000), 0, TRAINING)
    chosen, tokens = labels != IGNORED, ~np.isin(rows, SPECIAL)
    assert not chosen[~tokens].any()
    assert chosen.sum() / tokens.sum() == pytest.approx(probability, abs=0.01)

    # Neighbours belong to one word unless the second begins one, or one of them is special.
    joined = tokens[:, 1:] & tokens[:, :-1] & ~starts[rows[:, 1:]]
    assert joined.sum() > 10_000
    assert (chosen[:, 1:] == chosen[:, :-1])[joined].all()
    # And words are chosen apart from each other.
    apart = tokens[:, 1:] & tokens[:, :-1] & starts[rows[:, 1:]]
    assert (chosen[:, 1:] != chosen[:, :-1])[apart].mean() > probability
