"""Which row training sees as which sample: each once an epoch, in the shares of the weights, from any place on."""

import time

import numpy as np
import pytest

from pretrain.data.mixture import LONGEST_PERIOD, SHORTEST_PERIOD, Mixture, MixtureError, period_of, permuted


@pytest.mark.parametrize("size", [*range(1, 20), 63, 64, 65, 255, 257, 1000, 4097, 65536, 65537])
def test_permuted_visits_each_position_once(size: int):
    np.testing.assert_array_equal(np.sort(permuted(np.arange(size), size, seed=1, epoch=2)), np.arange(size))


def test_permutations_differ_by_seed_and_epoch_and_are_random():
    positions = np.arange(20_000)
    first = permuted(positions, 20_000, seed=1, epoch=0)
    np.testing.assert_array_equal(permuted(positions[[7, 3]], 20_000, 1, 0), first[[7, 3]])
    for other in (permuted(positions, 20_000, 1, 1), permuted(positions, 20_000, 2, 0), positions):
        assert (first == other).sum() < 20  # one in 20,000 by chance
        assert abs(np.corrcoef(first, other)[0, 1]) < 0.03
    # Neighbours are sent to places that have nothing to do with each other.
    assert abs(np.corrcoef(first[1:], first[:-1])[0, 1]) < 0.03


def test_permuted_of_a_trillion_rows():
    size = 10**12
    positions = np.concatenate([np.arange(5000), size - 1 - np.arange(5000)])
    result = permuted(positions, size, seed=2**63 - 1, epoch=3)
    assert len(np.unique(result)) == 10_000
    assert result.min() >= 0 and result.max() < size
    assert result.mean() / size == pytest.approx(0.5, abs=0.02)
    assert np.std(result / size) == pytest.approx(12**-0.5, abs=0.02)


@pytest.mark.parametrize(
    ("weights", "ratio"),
    [([1, 1], [1, 1]), ([0.7, 0.3], [7, 3]), ([2, 0.5, 1.5], [4, 1, 3]), ([0.1, 0.2], [1, 2]), ([5.0], [1])],
)
def test_period_is_in_the_ratio_of_the_weights(weights: list[float], ratio: list[int]):
    period = period_of(weights)
    assert SHORTEST_PERIOD <= sum(period) < 2 * SHORTEST_PERIOD
    assert [count * ratio[0] for count in period] == [period[0] * part for part in ratio]


def test_shares_that_need_too_long_a_period_are_rounded():
    period = period_of([0.123456789, 1e-9, 0.876543210])
    assert sum(period) == LONGEST_PERIOD
    assert period[0] / LONGEST_PERIOD == pytest.approx(0.123456789, abs=1 / LONGEST_PERIOD)
    assert period[1] == 1


def test_each_period_holds_the_shares_of_the_weights_exactly():
    mixture = Mixture.of([50, 7000, 300], [0.5, 0.3, 0.2])
    period = sum(mixture.period)
    rows = mixture(np.arange(20 * period), seed=3).reshape(20, period)
    assert (np.sum(rows < 50, axis=1) == period / 2).all()
    assert (np.sum(rows >= 7050, axis=1) == period / 5).all()
    # The sources are mixed within a period, in another order each time.
    sources = np.searchsorted([50, 7050], rows, side="right")
    assert all(len(set(part)) == 3 for part in np.array_split(sources.ravel(), 300))
    assert len(np.unique(sources, axis=0)) == 20


def test_rows_of_a_source_come_once_in_each_of_its_own_epochs():
    sizes = [50, 7000, 300]
    rows = Mixture.of(sizes, [0.5, 0.3, 0.2])(np.arange(30_000), seed=3)
    for first, size in zip(np.cumsum([0, *sizes]), sizes, strict=False):
        of_source = rows[(rows >= first) & (rows < first + size)] - first
        epochs = of_source[: len(of_source) // size * size].reshape(-1, size)
        assert len(epochs) >= 1
        # Samples of a period may come before others of it in another order than the rows of the epoch.
        counts = np.bincount(of_source, minlength=size)
        assert counts.max() - counts.min() <= 1 + sum(Mixture.of(sizes, [0.5, 0.3, 0.2]).period) // size


def test_samples_do_not_depend_on_how_many_are_asked_for():
    mixture = Mixture.of([50, 7000], [1, 3])
    whole = mixture(np.arange(5000), seed=1)
    np.testing.assert_array_equal(np.concatenate([mixture(part, 1) for part in np.split(np.arange(5000), 50)]), whole)
    shuffled = np.random.default_rng(0).permutation(5000)
    np.testing.assert_array_equal(mixture(shuffled, 1), whole[shuffled])
    assert (mixture(np.arange(5000), seed=2) != whole).mean() > 0.9


def test_without_weights_all_rows_are_one_set():
    rows = Mixture.of([50, 70], [None, None])(np.arange(240), seed=1).reshape(2, 120)
    np.testing.assert_array_equal(np.sort(rows, axis=1), [np.arange(120)] * 2)


@pytest.mark.parametrize("weights", [[0.7, 0.3], [None, None]])
def test_starting_late_costs_nothing(weights: list):
    mixture = Mixture.of([10**8, 10**6], weights)
    seconds = []
    for first in (0, 10**9, 10**15):
        started = time.perf_counter()
        for batch in range(20):
            mixture(first + 256 * batch + np.arange(256), seed=1)
        seconds.append(time.perf_counter() - started)
    assert max(seconds[1:]) < 5 * seconds[0] + 0.05


def test_source_with_a_weight_needs_rows():
    with pytest.raises(MixtureError, match="source 2 has a weight, but no rows for training"):
        Mixture.of([5, 0], [1, 2])
