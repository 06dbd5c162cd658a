"""Intervals by the bootstrap: how far a figure would move with other test clips. Everything is seeded.

Clips are drawn with replacement, always whole: whatever belongs to one prompt stays together. The intervals speak of
the choice of prompts and of nothing else (one model, one sampling seed). For a share of 0 or 1 the interval is a
point, since every resample is the same: read the count beside it.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from siren.progress import track

LEVEL = 0.95


class Interval(NamedTuple):
    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0

    def record(self, count: int) -> dict[str, float | int]:
        """As it stands in JSON, with the number of clips behind it."""
        return {"value": self.value, "low": self.low, "high": self.high, "count": count}


def mean(values: np.ndarray, resamples: int, seed: int, level: float = LEVEL) -> Interval:
    """Percentile interval of a mean. [N] → interval. Raises ValueError for no values."""
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"an interval needs at least one value; the shape is {values.shape}")
    rows = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    return Interval(float(values.mean()), *_percentiles(values[rows].mean(1), level))


def difference(a: np.ndarray, b: np.ndarray, resamples: int, seed: int, level: float = LEVEL) -> Interval:
    """Percentile interval of mean(a - b), where row i of both belongs to prompt i. [N], [N] → interval"""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"a paired difference needs pairs; the shapes are {a.shape} and {b.shape}")
    return mean(a - b, resamples, seed, level)


def of_counts(
    statistic: Callable[[np.ndarray], float],
    count: int,
    resamples: int,
    seed: int,
    groups: np.ndarray | None = None,
    *,
    least: float = 0.0,
    label: str | None = None,
) -> Interval:
    """Interval of a statistic of how often each of `count` clips was drawn, int [N] → number; all ones is the set.

    With `groups` [N], clips are drawn within each group, so that the groups keep their sizes. A Fréchet distance is
    larger on a resample than on the set itself, because repeated clips hold less variety. The percentiles are
    therefore shifted by that excess, the mean of the resamples minus the value, and never below `least`. A `label`
    is that of a progress bar.
    """
    value = statistic(np.ones(count, int))
    generator = np.random.default_rng(seed)
    members = [np.flatnonzero(groups == g) for g in np.unique(groups)] if groups is not None else [np.arange(count)]
    drawn = [
        np.bincount(np.concatenate([generator.choice(m, size=len(m)) for m in members]), minlength=count)
        for _ in range(resamples)
    ]
    draws = np.array([statistic(counts) for counts in (track(drawn, label, unit="draw") if label else drawn)])
    low, high = _percentiles(draws, LEVEL)
    excess = float(draws.mean()) - value
    return Interval(value, max(least, low - excess), max(least, high - excess))


def _percentiles(draws: np.ndarray, level: float) -> tuple[float, float]:
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(draws, [tail, 100 - tail])
    return float(low), float(high)
