"""The curve of best of N against every subset taken one by one."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from siren.evaluate.best_of import curve


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16), clips=st.integers(1, 6))
def test_the_curve_is_the_mean_over_all_subsets(seed: int, clips: int) -> None:
    generator = np.random.default_rng(seed)
    ranking, reported = generator.standard_normal((3, clips)), generator.standard_normal((3, clips))
    found = curve(ranking, reported)
    for row in range(3):
        for n in range(1, clips + 1):
            subsets = [list(s) for s in combinations(range(clips), n)]
            kept = [reported[row, s[int(np.argmax(ranking[row, s]))]] for s in subsets]
            assert found[row, n - 1] == pytest.approx(np.mean(kept))


def test_one_clip_is_the_mean_and_all_are_the_best() -> None:
    ranking = np.array([[0.3, 0.1, 0.2]])
    np.testing.assert_allclose(curve(ranking, ranking), [[0.2, (0.3 + 0.3 + 0.2) / 3, 0.3]])


def test_equal_ranks_share_what_they_report() -> None:
    np.testing.assert_allclose(curve(np.zeros((1, 3)), np.array([[0.0, 3.0, 6.0]])), [[3, 3, 3]])
    assert curve(np.array([[1.0, 1.0, 0.0]]), np.array([[4.0, 2.0, 9.0]]))[0, 2] == pytest.approx(3)


def test_a_ranking_that_knows_nothing_gains_nothing() -> None:
    generator = np.random.default_rng(0)
    found = curve(generator.standard_normal((4000, 4)), generator.standard_normal((4000, 4))).mean(0)
    assert np.abs(found).max() < 4 / np.sqrt(4000)


def test_scores_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"not \(2, 3\) and \(2, 4\)"):
        curve(np.zeros((2, 3)), np.zeros((2, 4)))
    with pytest.raises(ValueError, match="1 ranking scores are not finite"):
        curve(np.array([[0.0, np.nan]]), np.zeros((1, 2)))
