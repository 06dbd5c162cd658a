"""Intervals: seeded, about right, paired where they say so, and centred on the figure itself."""

import numpy as np
import pytest

from siren.evaluate import bootstrap, metrics


def test_the_interval_of_a_mean_matches_the_normal_approximation() -> None:
    values = np.random.default_rng(1).normal(3, 2, size=400)
    found = bootstrap.mean(values, resamples=4000, seed=0)
    error = values.std(ddof=1) / np.sqrt(400)
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)


def test_a_95_percent_interval_holds_the_true_mean_about_95_times_in_100() -> None:
    generator = np.random.default_rng(2)
    found = [bootstrap.mean(generator.normal(1, 1, 60), resamples=400, seed=i) for i in range(300)]
    assert 0.90 <= np.mean([i.low <= 1 <= i.high for i in found]) <= 0.98


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(1).normal(size=50)
    assert bootstrap.mean(values, 100, seed=7) == bootstrap.mean(values, 100, seed=7)
    assert bootstrap.mean(values, 100, seed=7) != bootstrap.mean(values, 100, seed=8)


def test_a_paired_difference_sees_what_unpaired_intervals_cannot() -> None:
    prompts = np.random.default_rng(3).normal(0, 1, 100)  # some prompts are harder than others
    a = prompts + 0.1
    b = prompts + np.random.default_rng(4).normal(0, 0.05, 100)
    found = bootstrap.difference(a, b, 1000, seed=0)
    assert found.excludes_zero
    assert found.value == pytest.approx(0.1, abs=0.02)
    one, other = bootstrap.mean(a, 1000, 0), bootstrap.mean(b, 1000, 0)
    assert one.low < other.high, "the intervals of the two means overlap"
    with pytest.raises(ValueError, match="needs pairs"):
        bootstrap.difference(a, b[:50], 10, seed=0)


def test_excluding_zero_is_strict() -> None:
    assert not bootstrap.Interval(0.1, 0.0, 0.2).excludes_zero
    assert bootstrap.Interval(0.1, 0.01, 0.2).excludes_zero
    assert bootstrap.Interval(-0.1, -0.2, -0.01).excludes_zero


def test_the_interval_of_a_distance_holds_the_distance_although_resamples_exceed_it() -> None:
    generator = np.random.default_rng(5)
    x, y = generator.normal(size=(40, 20)), generator.normal(0.2, 1, size=(40, 20))
    found = bootstrap.of_counts(lambda counts: metrics.frechet_distance(x, y, counts, counts), 40, 100, seed=0)
    rows = generator.integers(40, size=(20, 40))
    assert min(metrics.frechet_distance(x[r], y[r]) for r in rows) > found.value, "the excess there is to correct"
    assert found.low < found.value < found.high
    identical = bootstrap.of_counts(lambda counts: metrics.frechet_distance(x, x, counts, counts), 40, 10, seed=0)
    assert identical == pytest.approx((0, 0, 0), abs=1e-9)


def test_clips_are_resampled_whole_and_within_their_groups() -> None:
    seen = []

    def statistic(counts: np.ndarray) -> float:
        seen.append(tuple(counts.reshape(3, 10).sum(1)))
        return float(counts @ np.arange(30))

    bootstrap.of_counts(statistic, 30, 20, seed=0, groups=np.arange(30) // 10)
    assert set(seen) == {(10, 10, 10)}
    bootstrap.of_counts(statistic, 30, 20, seed=0)
    assert len(set(seen)) > 5
    assert {sum(counts) for counts in seen} == {30}


def test_no_values_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one value"):
        bootstrap.mean(np.array([]), 10, seed=0)
