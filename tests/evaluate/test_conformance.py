"""What a metric must do whoever wrote it, and torchmetrics' own answers for the same features."""

import numpy as np
import pytest
import scipy.special
import torch
from torch import nn

from siren.evaluate import metrics
from tests.evaluate.test_metrics import draw, like_cnn14


class Features(nn.Module):
    """Stands where torchmetrics has its image network: the "images" are features already. [B, F] → [B, F]"""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


@pytest.mark.parametrize(("clips", "width"), [(300, 12), (97, 204)])
@pytest.mark.slow  # importing torchmetrics takes seconds
def test_fd_is_torchmetrics(clips: int, width: int) -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance

    x, y = like_cnn14(clips, width)
    theirs = FrechetInceptionDistance(feature=Features(width), input_img_size=(width,)).set_dtype(torch.float64)
    for features, real in ((x, True), (y, False)):
        theirs.update(torch.from_numpy(features), real=real)
    assert metrics.frechet_distance(x, y) == pytest.approx(float(theirs.compute()), rel=1e-3)


@pytest.mark.filterwarnings("ignore:Metric `InceptionScore` will save", "ignore:std")
@pytest.mark.slow  # importing torchmetrics takes seconds
def test_is_is_torchmetrics_where_one_split_leaves_no_order() -> None:
    from torchmetrics.image.inception import InceptionScore

    logits = draw(3, 60, 12, scale=2)
    theirs = InceptionScore(feature=Features(12), splits=1)
    theirs.update(torch.from_numpy(logits))
    assert metrics.inception_score(logits, splits=1).mean == pytest.approx(float(theirs.compute()[0]), rel=1e-3)


@pytest.mark.slow  # importing torchmetrics takes seconds
def test_kl_is_torchmetrics_but_for_the_epsilon() -> None:
    from torchmetrics.functional import kl_divergence

    real, made = draw(4, 40, 12), draw(5, 40, 12)
    p, q = (torch.from_numpy(scipy.special.softmax(logits, axis=1)) for logits in (real, made))
    theirs = float(kl_divergence(p, q))  # KL(p ‖ q), the mean over pairs
    assert metrics.kl_softmax(real, made).mean() == pytest.approx(theirs, abs=12 * metrics.KL_EPSILON * 10)
    assert metrics.kl_softmax(made, real).mean() != pytest.approx(theirs, abs=1e-2)


@pytest.mark.slow  # importing torchmetrics takes seconds
def test_cosines_are_torchmetrics() -> None:
    from torchmetrics.functional import pairwise_cosine_similarity

    text, audio = draw(6, 9, 5), draw(7, 9, 5)
    theirs = pairwise_cosine_similarity(torch.from_numpy(text), torch.from_numpy(audio)).diagonal()
    assert metrics.clap_score(text, audio) == pytest.approx(theirs.numpy(), abs=1e-9)


def test_set_distances_do_not_know_the_order_of_clips_and_kl_knows_the_pairs() -> None:
    x, y = draw(1, 12 * 3, 4).reshape(12, 3, 4), draw(2, 12 * 3, 4, shift=0.4).reshape(12, 3, 4)
    order = np.random.default_rng(0).permutation(12)
    assert metrics.fad(x[order], y) == pytest.approx(metrics.fad(x, y), rel=1e-9)
    real, made = draw(3, 30, 6), draw(4, 30, 6)
    both, one = np.random.default_rng(1).permutation(30), np.roll(np.arange(30), 1)
    mean = metrics.kl_softmax(real, made).mean()
    assert metrics.kl_softmax(real[both], made[both]).mean() == pytest.approx(mean, rel=1e-9)
    assert metrics.kl_softmax(real, made[one]).mean() != pytest.approx(mean, rel=1e-3)


def test_is_of_certain_classes_counts_those_that_each_split_has() -> None:
    """120 clips of 12 classes, ten splits of 12 clips: a split's score is the number of classes among its clips, where
    they are equally frequent in it, and exp of their entropy in general."""
    events = np.arange(120) % 12
    logits = np.where(np.eye(12)[events] > 0, 60.0, 0.0)
    dealt = events[np.random.RandomState(metrics.IS_SEED).permutation(120)].reshape(10, 12)
    shares = [np.bincount(split, minlength=12) / 12 for split in dealt]
    expected = [float(np.exp(-scipy.special.xlogy(p, p).sum())) for p in shares]
    assert max(expected) < 11.9  # every split lacks a class: the score depends on how clips fall
    score = metrics.inception_score(logits, splits=10)
    assert (score.mean, score.splits) == (pytest.approx(np.mean(expected), rel=1e-6), 10)


def test_kl_of_a_clip_with_itself_may_be_a_little_below_zero() -> None:
    found = metrics.kl_softmax(draw(1, 50, 12), draw(1, 50, 12))
    assert (found <= 0).all()
    assert found.min() > -12 * metrics.KL_EPSILON
