"""Masking: its shares, what it never touches, and that a row's mask depends on (seed, step, row) alone."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from common.labels import IGNORED
from pretrain.data.tokenizer import train_tokenizer
from pretrain.steps.masking import EVALUATION, TRAINING, Masking, span_length_shares


VOCABULARY, SPECIAL, MASK = 100, [0, 1, 2, 3, 99], 99
THIRD = np.arange(VOCABULARY) % 3 == 0  # words of one to many tokens, of three on average
EVERY = np.ones(VOCABULARY, dtype=bool)  # each token is a word
KINDS = {
    "token": {},
    "whole_word": {"word_starts": THIRD},
    "span": {"word_starts": THIRD, "span_lengths": span_length_shares(3.0)},
}


def build_masking(seed: int = 5, probability: float = 0.15, **fields) -> Masking:
    special = np.isin(np.arange(VOCABULARY), SPECIAL)
    return Masking(seed, probability, MASK, np.flatnonzero(~special), special, **fields)


def build_rows(count: int, length: int = 64) -> np.ndarray:
    """Rows of <s>, tokens with some </s> between them, </s>, and in every fourth row padding."""
    generator = np.random.default_rng(1)
    rows = generator.integers(4, MASK, size=(count, length))
    rows[generator.random(rows.shape) < 0.03] = 2
    rows[:, 0], rows[:, -1] = 0, 2
    rows[::4, length // 2] = 2
    rows[::4, length // 2 + 1 :] = 1
    return rows


def words_of(row: np.ndarray, starts: np.ndarray) -> list[list[int]]:
    """The places of each word, cut after ten tokens."""
    words: list[list[int]] = []
    for place, token in enumerate(row):
        if token in SPECIAL:
            continue
        if starts[token] or row[place - 1] in SPECIAL or len(words[-1]) == 10:
            words.append([])
        words[-1].append(place)
    return words


def runs_of(marked: np.ndarray) -> list[int]:
    """The lengths of the runs of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], marked, [False]])))
    return (edges[1::2] - edges[::2]).tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_share_and_kinds_of_replacement(kind: str):
    rows = build_rows(6000)
    input_ids, labels = build_masking(**KINDS[kind])(rows, np.arange(6000), step=7, stream=TRAINING)

    chosen = labels != IGNORED
    tokens = ~np.isin(rows, SPECIAL)
    assert not chosen[~tokens].any()
    assert chosen.any(axis=1).all()
    if kind == "token":  # each row has its own share, up to the rounding of a fraction of a token
        assert (np.abs(chosen.sum(axis=1) - 0.15 * tokens.sum(axis=1)) < 1).all()

    assert (labels[chosen] == rows[chosen]).all()
    assert (input_ids[~chosen] == rows[~chosen]).all()
    masked, kept = input_ids[chosen] == MASK, input_ids[chosen] == rows[chosen]
    assert masked.mean() == pytest.approx(0.8, abs=0.01)
    assert kept.mean() == pytest.approx(0.1 + 0.1 / 95, abs=0.01)
    replacements = input_ids[chosen][~masked & ~kept]
    assert not np.isin(replacements, SPECIAL).any()
    assert len(np.unique(replacements)) == 95
    # Every place of a row is chosen equally often; the long rows only, whose places hold tokens but for </s>. A span
    # is here as long as all that is chosen of a row, and the shorter ones, at the ends, fit in more often.
    of_place = chosen[1::4, 1:-1].sum(axis=0) / tokens[1::4, 1:-1].sum(axis=0)
    assert np.abs(of_place - 0.15).max() < (0.06 if kind == "span" else 0.035)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("probability", [0.15, 0.4])
def test_share_is_the_probability_asked_for(kind: str, probability: float):
    rows = build_rows(1000, length=512)
    _, labels = build_masking(probability=probability, **KINDS[kind])(rows, np.arange(1000), 0, TRAINING)
    share = (labels != IGNORED).sum() / (~np.isin(rows, SPECIAL)).sum()
    assert share == pytest.approx(probability, abs={"token": 2e-4, "whole_word": 5e-4, "span": 2e-3}[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_masked_the_same_whatever_the_other_rows(kind: str):
    masking, rows, keys = build_masking(**KINDS[kind]), build_rows(12), np.arange(100, 112)
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
@pytest.mark.parametrize("kind", KINDS)
def test_other_seed_step_stream_or_row_gives_other_masks(kind: str, other: dict):
    rows = build_rows(50)
    call = {"rows": rows, "keys": np.arange(50), "step": 4, "stream": TRAINING}
    seed = other.get("seed", 5)
    changed = call | {key: value for key, value in other.items() if key != "seed"}
    fields = KINDS[kind]
    first, second = (build_masking(s, **fields)(**c)[1] != IGNORED for s, c in ((5, call), (seed, changed)))
    # Independent draws of 15 % meet in 15 % of the chosen.
    assert (first & second).sum() / first.sum() < 0.25


def test_masks_stay_the_same_from_release_to_release():
    """A run that goes on must see the masks that it would have seen."""
    rows = build_rows(2, length=24)
    chosen = {
        "token": [[10, 11], [1, 21, 22]],
        "whole_word": [[1, 8], [1, 2, 22]],
        "span": [[1], [1, 2, 18]],
    }
    for kind, expected in chosen.items():
        _, labels = build_masking(seed=2**63 - 1, **KINDS[kind])(rows, np.array([7, 2**40]), 10**7, TRAINING)
        assert [np.flatnonzero(row != IGNORED).tolist() for row in labels] == expected


@pytest.mark.parametrize("probability", [0.15, 0.4])
def test_whole_words_are_chosen_entirely_or_not_at_all(probability: float):
    rows = build_rows(400)
    _, labels = build_masking(probability=probability, word_starts=THIRD)(rows, np.arange(400), 0, TRAINING)
    chosen = labels != IGNORED
    words = [chosen[row, word] for row in range(400) for word in words_of(rows[row], THIRD)]
    assert sum(len(word) > 1 for word in words) > 2000
    assert all(word.all() or not word.any() for word in words)
    # And words are chosen apart from each other.
    apart = (~np.isin(rows[:, 1:], SPECIAL)) & (~np.isin(rows[:, :-1], SPECIAL)) & THIRD[rows[:, 1:]]
    assert (chosen[:, 1:] != chosen[:, :-1])[apart].mean() > probability


@pytest.mark.parametrize("mean", [1.0, 2.0, 3.8])
def test_lengths_of_spans(mean: float):
    rows = np.random.default_rng(1).integers(4, MASK, size=(400, 2048))
    masking = build_masking(probability=0.02, word_starts=EVERY, span_lengths=span_length_shares(mean))
    input_ids, labels = masking(rows, np.arange(400), 0, TRAINING)
    lengths = np.array([length for row in labels != IGNORED for length in runs_of(row)])
    # Spans that happen to touch look like one: a few per cent at this share of the tokens.
    assert lengths.mean() == pytest.approx(mean, rel=0.05)
    shares = np.bincount(lengths, minlength=11)[1:11] / len(lengths)
    assert np.abs(shares - span_length_shares(mean)).max() < 0.025
    assert (lengths > 10).mean() < 0.02


def test_spans_are_whole_words_within_one_document():
    rows = build_rows(300, length=256)
    fields = {"word_starts": THIRD, "span_lengths": span_length_shares(3.0)}
    _, labels = build_masking(**fields)(rows, np.arange(300), 0, TRAINING)
    chosen = labels != IGNORED
    words = [chosen[row, word] for row in range(300) for word in words_of(rows[row], THIRD)]
    assert all(word.all() or not word.any() for word in words)
    # A neighbour of a chosen word is chosen far more often within its document than in the one beside it.
    within, across = [], []
    for row in range(300):
        places = words_of(rows[row], THIRD)
        for word, following in zip(places, places[1:], strict=False):
            if chosen[row, word[0]]:
                (within if following[0] == word[-1] + 1 else across).append(chosen[row, following[0]])
    assert len(across) > 200
    assert np.mean(within) > 0.6
    assert np.mean(across) == pytest.approx(0.15, abs=0.06)


def test_the_tokens_of_a_span_share_their_fate():
    rows = np.random.default_rng(1).integers(4, MASK, size=(500, 512))
    masking = build_masking(probability=0.02, word_starts=EVERY, span_lengths=span_length_shares(4.0))
    input_ids, labels = masking(rows, np.arange(500), 0, TRAINING)
    chosen, masked = labels != IGNORED, input_ids == MASK
    neighbours = chosen[:, 1:] & chosen[:, :-1]
    assert neighbours.sum() > 2000
    # Spans that touch differ now and then; independent tokens would in 32 %.
    assert (masked[:, 1:] != masked[:, :-1])[neighbours].mean() < 0.02
    assert masked[chosen].mean() == pytest.approx(0.8, abs=0.03)
    changed = (input_ids != rows) & chosen & ~masked
    assert len(np.unique(input_ids[changed])) > 80  # each token of a replaced span is another random one
    pairs = changed[:, 1:] & changed[:, :-1]
    assert (input_ids[:, 1:] == input_ids[:, :-1])[pairs].mean() < 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_text_without_spaces_keeps_its_share(kind: str):
    rows = build_rows(200, length=256)
    fields = KINDS[kind] | ({} if kind == "token" else {"word_starts": np.zeros(VOCABULARY, dtype=bool)})
    _, labels = build_masking(**fields)(rows, np.arange(200), 0, TRAINING)
    share = (labels != IGNORED).sum(axis=1) / (~np.isin(rows, SPECIAL)).sum(axis=1)
    assert share.mean() == pytest.approx(0.15, abs=0.02)
    assert share.max() < 0.9


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("probability", [0.001, 0.999])
def test_rows_of_few_tokens(kind: str, probability: float):
    """None, one and a few of them, at both ends of the share."""
    rows = np.full((3, 16), 1)
    rows[:, 0] = 0
    rows[0, 1] = rows[1, 2] = rows[2, 6] = 2
    rows[1, 1] = 50
    rows[2, 1:6] = [51, 52, 53, 55, 56]
    input_ids, labels = build_masking(probability=probability, **KINDS[kind])(rows, np.arange(3), 0, TRAINING)
    chosen = labels != IGNORED
    assert chosen.sum(axis=1)[0] == 0
    assert (input_ids[0] == rows[0]).all()
    assert np.flatnonzero(chosen[1]).tolist() == [1]
    assert set(np.flatnonzero(chosen[2])) <= {1, 2, 3, 4, 5}
    assert chosen[2].sum() >= (4 if probability > 0.5 else 1)


@pytest.mark.parametrize("end", [0.05, 0.6])
def test_scheduled_share(end: float):
    rows = build_rows(300, length=512)
    masking = build_masking(probability=0.3, probability_end=end, total_steps=101)
    for step, expected in ((0, 0.3), (50, (0.3 + end) / 2), (100, end), (200, end)):
        _, labels = masking(rows, np.arange(300), step, TRAINING)
        assert (labels != IGNORED).sum() / (~np.isin(rows, SPECIAL)).sum() == pytest.approx(expected, abs=1e-3)
    _, labels = masking(rows, np.arange(300), 0, EVALUATION)
    assert (labels != IGNORED).sum() / (~np.isin(rows, SPECIAL)).sum() == pytest.approx(0.3, abs=1e-3)


def test_masking_of_a_run(build_config: Callable, corpus: Path, tmp_path: Path):
    text = corpus.read_text(encoding="utf-8")
    tokenizer = train_tokenizer([text], vocab_size=300, max_length=64)
    rows = np.array([tokenizer(text, truncation=True, max_length=64)["input_ids"]])
    starts = [token[0] in "ĠĊ" for token in tokenizer.convert_ids_to_tokens(rows[0])]
    for kind in KINDS:
        changes = {"mask_probability": 0.3, "mask_probability_end": 0.5, "mean_span_length": 2.0}
        config = build_config(tmp_path, masking=kind, mask_probability_steps=5, **changes)
        assert Masking.from_config(config, tokenizer, 9).share(4, TRAINING) == 0.5
        config = build_config(tmp_path, masking=kind, **changes)
        masking = Masking.from_config(config, tokenizer, 9)
        assert masking.share(8, TRAINING) == 0.5 > masking.share(4, TRAINING)
        input_ids, labels = masking(rows, np.array([3]), 0, TRAINING)
        chosen = labels[0] != IGNORED
        assert not chosen[[0, 63]].any()
        assert (input_ids == tokenizer.mask_token_id).sum() > 5
        borders = [place for place in range(2, 63) if chosen[place] != chosen[place - 1]]
        assert kind == "token" or all(starts[place] for place in borders)
        assert (masking.span_lengths is None) == (kind != "span")
    assert masking.span_lengths @ np.arange(1, 11) == pytest.approx(2.0)
