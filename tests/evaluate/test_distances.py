"""FAD-infinity and KAD against closed forms, plain sums and what they promise: no bias by the number of clips."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from siren.evaluate import bootstrap, distances, metrics


def draw(seed: int, count: int, width: int, shift: float = 0.0, scale: float = 1.0) -> np.ndarray:
    return shift + scale * np.random.default_rng(seed).standard_normal((count, width))


def by_sums(x: np.ndarray, y: np.ndarray) -> float:
    """KAD term by term, as its paper defines the unbiased estimate."""
    pairs = [float(np.linalg.norm(a - b)) for i, a in enumerate(x) for b in x[:i]]
    width = sorted(pairs)[(len(pairs) - 1) // 2]

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.exp(-np.sum((a - b) ** 2) / (2 * width**2 + 1e-8)))

    own = [np.mean([kernel(a, b) for i, a in enumerate(s) for j, b in enumerate(s) if i != j]) for s in (x, y)]
    return 100 * float(own[0] + own[1] - 2 * np.mean([kernel(a, b) for a in x for b in y]))


def test_kad_equals_its_definition() -> None:
    x, y = draw(1, 12, 3), draw(2, 9, 3, shift=0.7)
    assert distances.kad(x, y) == pytest.approx(by_sums(x, y), rel=1e-9)


def test_kad_is_not_biased_by_the_number_of_clips_as_fd_is() -> None:
    small = [distances.kad(draw(2 * i, 20, 8), draw(2 * i + 1, 20, 8)) for i in range(200)]
    biased = [metrics.frechet_distance(draw(2 * i, 20, 8), draw(2 * i + 1, 20, 8)) for i in range(20)]
    assert abs(np.mean(small)) < 3 * np.std(small) / np.sqrt(200), "same distribution: zero on average"
    assert min(small) < 0, "an unbiased estimate of zero falls on both sides"
    assert min(biased) > 1
    assert distances.kad(draw(1, 40, 8), draw(2, 40, 8, shift=1)) > max(small)


def test_fad_infinity_takes_away_what_few_examples_add() -> None:
    reference, generated = draw(1, 40000, 16), draw(2, 1200, 16, shift=0.05)
    truth = 16 * 0.05**2
    plain, endless = metrics.frechet_distance(reference, generated), distances.fad_infinity(reference, generated, 0)
    assert endless is not None
    assert plain - truth > 0.05
    assert abs(endless.value - truth) < (plain - truth) / 2
    assert endless.low < endless.value < endless.high
    assert endless == distances.fad_infinity(reference, generated, 0), "the seed decides what is drawn"
    assert distances.fad_infinity(reference, generated[:999], 0) is None


def test_the_line_is_read_at_zero() -> None:
    exact = distances.line_at_zero(np.array([1.0, 2.0, 4.0]), np.array([5.0, 7.0, 11.0]))
    assert exact == pytest.approx((3, 3, 3))
    noisy = distances.line_at_zero(np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 2.5, 2.5, 4.0]))
    # by hand: slope 0.9, intercept 0.25, residuals ±0.15 and ±0.45, s² = 0.45 / 2, error s sqrt(1/4 + 2.5² / 5)
    assert (noisy.value, noisy.high) == pytest.approx((0.25, 0.25 + 1.96 * np.sqrt(0.225 * 1.5)))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16), count=st.integers(3, 30), width=st.integers(1, 12))
def test_a_distance_of_counts_is_that_of_repeated_rows(seed: int, count: int, width: int) -> None:
    x, y = draw(seed, count, width), draw(seed + 1, count, width, shift=0.5)
    counts = np.bincount(np.random.default_rng(seed).integers(count, size=count), minlength=count)
    rows = np.repeat(np.arange(count), counts)
    expected = metrics.frechet_distance(x[rows], y[rows])
    assert metrics.frechet_distance(x, y, counts, counts) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_an_interval_of_counts_is_that_of_the_mean_for_a_mean() -> None:
    values = draw(3, 200, 1)[:, 0]
    found = bootstrap.of_counts(lambda c: float(c @ values / c.sum()), 200, 2000, seed=0, least=-np.inf)
    assert found.value == pytest.approx(values.mean())
    assert (found.high - found.low) == pytest.approx(2 * 1.96 * values.std() / np.sqrt(200), rel=0.1)


def test_bad_sets_are_refused() -> None:
    with pytest.raises(ValueError, match="two finite vectors"):
        distances.kad(draw(1, 5, 3), draw(1, 1, 3))
    with pytest.raises(ValueError, match="two finite vectors"):
        distances.kad(draw(1, 5, 3), np.full((5, 3), np.nan))
