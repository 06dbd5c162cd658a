"""Distances of sets that do not shrink or grow with their size: FAD-infinity and the kernel audio distance (KAD).

A Fréchet distance of N clips is too large by about a constant over N, so sets of different sizes cannot be compared.
FAD-infinity (Gui et al., arXiv 2311.01616; after Chong and Forsyth, arXiv 1911.07023) takes the distance at many sizes
and reads the line over 1 / N at zero. fadtk draws its subsets with replacement, whose line ends at the plain distance
of the set and takes no bias away; here they are drawn without. KAD (Chung et al., arXiv 2502.15602, as kadtk computes
it) is an unbiased estimate at any size, and so may come out negative. Everything is float64 numpy.
Shapes: N clips · M examples · F features.
"""

from collections.abc import Callable

import numpy as np

from siren.evaluate import metrics
from siren.evaluate.bootstrap import Interval

KAD_SCALE = 100.0  # kadtk prints the squared discrepancy times this
INFINITY_SIZES, INFINITY_LEAST = 25, 500  # how many sizes, the smallest: as fadtk
NORMAL_95 = 1.96


def fad_infinity(reference: np.ndarray, generated: np.ndarray, seed: int) -> Interval | None:
    """The distance of endless generated examples, with the standard error of the line. [Mr, F], [Mg, F] → interval

    The 25 sizes go evenly from 500 to Mg, each a subset of its own. None for fewer than 1000 generated ones:
    the line would be read too far from its points.
    """
    if len(generated) < 2 * INFINITY_LEAST:
        return None
    generator = np.random.default_rng(seed)
    sizes = np.linspace(INFINITY_LEAST, len(generated), INFINITY_SIZES).astype(int)
    whole = np.ones(len(reference), int)
    distances = []
    for size in sizes:
        counts = np.zeros(len(generated), int)
        counts[generator.permutation(len(generated))[:size]] = 1
        distances.append(metrics.frechet_distance(reference, generated, whole, counts))
    return line_at_zero(1 / sizes, np.array(distances))


def line_at_zero(x: np.ndarray, y: np.ndarray) -> Interval:
    """Where the least-squares line through the points crosses x = 0, with 1.96 standard errors. [P], [P]"""
    design = np.stack([np.ones_like(x), x], axis=1)
    found, *_ = np.linalg.lstsq(design, y, rcond=None)
    variance = np.sum((y - design @ found) ** 2) / max(1, len(x) - 2)
    error = NORMAL_95 * float(np.sqrt(variance * np.linalg.inv(design.T @ design)[0, 0]))
    return Interval(float(found[0]), float(found[0]) - error, float(found[0]) + error)


def kad(reference: np.ndarray, generated: np.ndarray) -> float:
    """100 times the unbiased squared maximum mean discrepancy under a Gaussian kernel. [Nr, F], [Ng, F] → number

    The kernel's width is the median distance between two reference vectors.
    """
    return kad_of(reference, generated)(np.ones(len(reference), int), np.ones(len(generated), int))


def kad_of(reference: np.ndarray, generated: np.ndarray) -> Callable[[np.ndarray, np.ndarray], float]:
    """KAD as a function of how often each vector is taken, the kernel computed once. (int [Nr], int [Ng]) → number"""
    x, y = (np.asarray(s, np.float64) for s in (reference, generated))
    for s in (x, y):
        if s.ndim != 2 or len(s) < 2 or not np.isfinite(s).all():
            raise ValueError(f"KAD needs two finite vectors at least in each set; the shape is {s.shape}")
    within = _squared(x, x)
    pairs = np.sqrt(within[np.triu_indices(len(x), 1)])
    width = np.partition(pairs, (len(pairs) - 1) // 2)[(len(pairs) - 1) // 2]  # the lower of two medians, as torch's
    gamma = 1 / (2 * width**2 + 1e-8)
    xx, yy, xy = (np.exp(-gamma * d) for d in (within, _squared(y, y), _squared(x, y)))

    def value(counts_x: np.ndarray, counts_y: np.ndarray) -> float:
        m, n = counts_x.sum(), counts_y.sum()
        own_x = (counts_x @ xx @ counts_x - m) / (m * (m - 1))  # without each vector's 1 with itself
        own_y = (counts_y @ yy @ counts_y - n) / (n * (n - 1))
        return float(KAD_SCALE * (own_x + own_y - 2 * (counts_x @ xy @ counts_y) / (m * n)))

    return value


def _squared(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Squared distances of all pairs. [N, F], [M, F] → [N, M]"""
    squares = (x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T
    return np.maximum(squares, 0)
