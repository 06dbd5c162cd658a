"""Every metric against a value worked out by hand, a closed form or another implementation."""

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from siren.evaluate import metrics


def draw(seed: int, count: int, width: int, shift: float = 0.0, scale: float = 1.0) -> np.ndarray:
    return shift + scale * np.random.default_rng(seed).standard_normal((count, width))


def by_sqrtm(x: np.ndarray, y: np.ndarray) -> float:
    """The formula as audioldm_eval writes it: a matrix square root of the product of the covariances."""
    sx, sy = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(sx @ sy).real
    return float(np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(sx) + np.trace(sy) - 2 * np.trace(root))


def with_moments(mean: np.ndarray, std: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Vectors whose sample mean and sample covariance are exactly `mean` and diag(std²)."""
    x = draw(seed, count, len(mean))
    x -= x.mean(0)
    white = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    return mean + white * std


def test_frechet_distance_of_gaussians_with_known_moments_is_the_closed_form() -> None:
    # diagonal covariances: |difference of means|² + sum of (difference of standard deviations)²
    x = with_moments(np.array([0.0, 1.0, 2.0]), np.array([1.0, 2.0, 3.0]), 50, seed=1)
    y = with_moments(np.array([1.0, 1.0, 0.0]), np.array([2.0, 2.0, 0.5]), 40, seed=2)
    assert metrics.frechet_distance(x, y) == pytest.approx((1 + 0 + 4) + (1 + 0 + 6.25), abs=1e-9)


def test_frechet_distance_in_one_dimension_by_hand() -> None:
    # {0, 2}: mean 1, variance 2; {3, 3, 6}: mean 4, variance 3. 9 + 2 + 3 - 2 sqrt(6)
    x, y = np.array([[0.0], [2.0]]), np.array([[3.0], [3.0], [6.0]])
    assert metrics.frechet_distance(x, y) == pytest.approx(14 - 2 * np.sqrt(6))


@pytest.mark.parametrize(("count_x", "count_y"), [(300, 200), (300, 17), (40, 300)])
def test_frechet_distance_equals_scipys_matrix_root_where_that_is_well_defined(count_x: int, count_y: int) -> None:
    mixing = draw(9, 12, 12)
    x, y = draw(1, count_x, 12) @ mixing, draw(2, count_y, 12, shift=0.3, scale=1.4)
    assert metrics.frechet_distance(x, y) == pytest.approx(by_sqrtm(x, y), rel=1e-6)


def test_frechet_distance_of_fewer_clips_than_features_needs_no_regulariser() -> None:
    # In 20 dimensions 6 and 8 vectors have singular covariances; they lie in 14 or fewer directions, so turning all
    # of them into the coordinates of those directions changes nothing and makes the plain formula applicable.
    x, y = draw(1, 6, 20), draw(2, 8, 20, shift=0.5)
    basis = np.linalg.svd(np.concatenate([x, y]), full_matrices=False)[2]
    sx, sy = np.cov(x @ basis.T, rowvar=False), np.cov(y @ basis.T, rowvar=False)
    values, vectors = np.linalg.eigh(sx)
    half = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    trace = np.sqrt(np.maximum(np.linalg.eigvalsh(half @ sy @ half), 0)).sum()
    expected = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(sx) + np.trace(sy) - 2 * trace
    assert metrics.frechet_distance(x, y) == pytest.approx(expected, rel=1e-6)


def by_eigenvalues(x: np.ndarray, y: np.ndarray) -> float:
    """The formula as fadtk and torchmetrics write it: roots of the eigenvalues of the product of the covariances."""
    sx, sy = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    roots = np.sqrt(np.linalg.eigvals(sx @ sy).astype(complex)).real
    return float(np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(sx) + np.trace(sy) - 2 * roots.sum())


def by_symmetric_root(x: np.ndarray, y: np.ndarray) -> float:
    """tr (S_x S_y)^(1/2) as the trace of the root of the symmetric S_x^(1/2) S_y S_x^(1/2), in float64."""
    sx, sy = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    values, vectors = np.linalg.eigh(sx)
    half = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    trace = np.sqrt(np.maximum(np.linalg.eigvalsh(half @ sy @ half), 0)).sum()
    return float(np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(sx) + np.trace(sy) - 2 * trace)


def like_cnn14(clips: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Two sets as Cnn14's features are: rectified, correlated, many directions with little in them."""
    mixing = draw(9, width, width) * np.geomspace(1, 1e-3, width)[:, None] / np.sqrt(width)
    return np.maximum(draw(1, clips, width) @ mixing, 0), np.maximum(draw(2, clips, width) @ mixing + 0.02, 0)


@pytest.mark.filterwarnings("ignore:Matrix is singular")  # what scipy says of the very case
def test_frechet_distance_of_few_clips_in_many_dimensions_is_the_public_formulas() -> None:
    x, y = like_cnn14(clips=97, width=204)  # the test list over ten
    distance = metrics.frechet_distance(x, y)
    assert distance == pytest.approx(by_symmetric_root(x, y), rel=1e-6)
    assert distance == pytest.approx(by_eigenvalues(x, y), rel=1e-3)
    assert distance == pytest.approx(by_sqrtm(x, y), rel=1e-3)


@pytest.mark.slow
def test_frechet_distance_at_the_papers_size_is_exact() -> None:
    x, y = like_cnn14(clips=975, width=2048)
    distance = metrics.frechet_distance(x, y)
    assert distance == pytest.approx(by_symmetric_root(x, y), rel=1e-6)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16), count=st.integers(2, 40), width=st.integers(1, 24), scale=st.floats(0.01, 100))
def test_frechet_distance_of_a_set_with_itself_is_zero_and_ignores_order(
    seed: int, count: int, width: int, scale: float
) -> None:
    x, y = draw(seed, count, width, scale=scale), draw(seed + 1, count + 3, width, shift=1.0, scale=scale)
    order = np.random.default_rng(seed).permutation(count)
    distance = metrics.frechet_distance(x, y)
    assert metrics.frechet_distance(x, x[order]) == pytest.approx(0, abs=1e-9 * width * scale**2)
    assert metrics.frechet_distance(x[order], y) == pytest.approx(distance, rel=1e-6)
    assert metrics.frechet_distance(y, x) == pytest.approx(distance, rel=1e-6)
    assert metrics.frechet_distance(x + 5, x) == pytest.approx(25 * width, rel=1e-6)


def test_fad_pools_the_examples_of_all_clips_instead_of_averaging_them() -> None:
    clips = draw(1, 10, 2)[:, None]
    steady, changing = np.repeat(clips, 2, axis=1), np.concatenate([clips - 3, clips + 3], axis=1)
    assert metrics.frechet_distance(steady.mean(1), changing.mean(1)) == pytest.approx(0, abs=1e-9)
    assert metrics.fad(steady, changing) > 1
    assert metrics.fad(changing, changing[::-1]) == pytest.approx(0, abs=1e-9)


def test_fad_equals_the_public_formula_on_clips_of_different_numbers_of_examples() -> None:
    x, y = draw(1, 60, 4).reshape(20, 3, 4), draw(2, 50, 4, scale=2).reshape(10, 5, 4)
    assert metrics.fad(x, y) == pytest.approx(by_sqrtm(x.reshape(-1, 4), y.reshape(-1, 4)), rel=1e-6)


def test_inception_score_of_uniform_logits_is_one() -> None:
    score = metrics.inception_score(np.zeros((100, 12)))
    assert (score.mean, score.std, score.splits) == (pytest.approx(1), pytest.approx(0), 10)


def test_inception_score_of_certain_and_balanced_classes_is_their_number() -> None:
    # one split of four classes, each certain and equally frequent: exp of the entropy of the mean, which is 4
    logits = np.where(np.eye(4)[np.arange(16) % 4] > 0, 50.0, 0.0)
    assert metrics.inception_score(logits, splits=1).mean == pytest.approx(4, rel=1e-6)


def test_inception_score_of_two_clips_by_hand() -> None:
    # p = (3/4, 1/4) and (1/4, 3/4), mean (1/2, 1/2): KL of each is ln 2 - H(3/4)
    logits = np.log(np.array([[3.0, 1.0], [1.0, 3.0]]))
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert metrics.inception_score(logits, splits=1).mean == pytest.approx(2 * np.exp(-entropy))


def test_inception_score_takes_ten_splits_of_the_pinned_permutation() -> None:
    logits = draw(1, 205, 12, scale=3)
    order = np.random.RandomState(2020).permutation(205)
    p = scipy.special.softmax(logits, axis=1)[order]
    parts = [p[i * 205 // 10 : (i + 1) * 205 // 10] for i in range(10)]
    scores = [np.exp(np.mean([scipy.stats.entropy(row, part.mean(0)) for row in part])) for part in parts]
    score = metrics.inception_score(logits)
    assert score.mean == pytest.approx(np.mean(scores))
    assert score.std == pytest.approx(np.std(scores))
    assert metrics.inception_score(logits[::-1]).mean != score.mean, "IS depends on the order of the files"


def test_inception_score_takes_fewer_splits_of_a_small_set_and_says_so() -> None:
    score = metrics.inception_score(draw(1, 34, 12))
    assert score.splits == 3
    assert "34 clips are too few for 10 splits" in score.note
    assert metrics.inception_score(draw(1, 100, 12)).note is None
    assert metrics.inception_score(draw(1, 4, 12)).splits == 1


def test_kl_goes_from_the_ground_truth_to_the_generated_clip() -> None:
    # p = (1/2, 1/2), q = (1/4, 3/4): KL(p ‖ q) = ½ ln 2 + ½ ln ⅔
    reference, generated = np.log([[1.0, 1.0]]), np.log([[1.0, 3.0]])
    expected = 0.5 * np.log(2) + 0.5 * np.log(2 / 3)
    assert metrics.kl_softmax(reference, generated) == pytest.approx([expected], abs=1e-5)
    assert metrics.kl_softmax(generated, reference) != pytest.approx([expected], abs=1e-3)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16), scale=st.floats(0, 30))
def test_kl_of_a_clip_with_itself_is_zero_but_for_the_epsilon(seed: int, scale: float) -> None:
    x, y = draw(seed, 20, 12, scale=scale), draw(seed + 1, 20, 12, scale=scale)
    assert metrics.kl_softmax(x, x) == pytest.approx(0, abs=12 * metrics.KL_EPSILON)
    order = np.random.default_rng(seed).permutation(20)
    np.testing.assert_allclose(metrics.kl_softmax(x[order], y[order]), metrics.kl_softmax(x, y)[order])
    np.testing.assert_allclose(metrics.kl_softmax(x + 7, y), metrics.kl_softmax(x, y), atol=1e-9)


def test_clap_score_is_the_cosine_of_each_pair_whatever_the_lengths() -> None:
    text, audio = np.array([[1.0, 0.0], [1.0, 1.0], [2.0, 0.0]]), np.array([[1.0, 0.0], [3.0, 0.0], [-1.0, 0.0]])
    assert metrics.clap_score(text, audio) == pytest.approx([1, np.sqrt(0.5), -1])


def test_silent_clips_are_flagged() -> None:
    wavs = np.zeros((4, 1600), np.float32)
    wavs[1] = 0.0005  # -66 dBFS
    wavs[2, 7] = -0.01
    wavs[3] = 0.2
    assert metrics.silent(wavs).tolist() == [True, True, False, False]


def test_bad_features_are_refused() -> None:
    x = draw(1, 5, 3)
    with pytest.raises(ValueError, match="widths differ: 3 and 4"):
        metrics.frechet_distance(x, draw(1, 5, 4))
    with pytest.raises(ValueError, match=r"clips >= 2"):
        metrics.frechet_distance(x, x[:1])
    with pytest.raises(ValueError, match="1 of 5 feature vectors are not finite"):
        metrics.frechet_distance(np.where(np.arange(15).reshape(5, 3) == 4, np.nan, x), x)
    with pytest.raises(ValueError, match="pairs"):
        metrics.kl_softmax(x, x[:4])
