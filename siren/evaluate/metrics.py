"""The field's metrics as pure functions of features: Fréchet distances (FD, FAD), IS, KL and the CLAP score.

The conventions are those of audioldm_eval at 16 kHz, which text-to-audio papers report: FD over one Cnn14 vector per
clip, FAD over all VGGish examples of all clips, KL over a softmax of Cnn14's logits in the direction ground truth ‖
generated, IS over ten splits of a pinned permutation. Everything is float64 numpy. Figures of different networks are
not comparable; a network's name belongs to every figure.
Shapes: N clips · E examples of a clip · F features · C classes.
"""

from typing import NamedTuple

import numpy as np

IS_SEED = 2020  # of the permutation in audioldm_eval and av-benchmark: IS depends on it
IS_MIN_SPLIT = 10  # clips: the score of a split is at most its size, so smaller ones say nothing
KL_EPSILON = 1e-6  # added to the generated clip's probabilities, as audioldm_eval does
SILENT_DBFS = -60.0  # a clip whose peak is below this is silent


class InceptionScore(NamedTuple):
    mean: float
    std: float  # over splits, population
    splits: int
    note: str | None


def frechet_distance(
    x: np.ndarray, y: np.ndarray, counts_x: np.ndarray | None = None, counts_y: np.ndarray | None = None
) -> float:
    """|mu_x - mu_y|² + tr S_x + tr S_y - 2 tr (S_x S_y)^(1/2), unbiased covariances. [Nx, F], [Ny, F] → number

    The trace of the root is the nuclear norm of Xc Ycᵀ / sqrt((Nx - 1)(Ny - 1)), Xc and Yc centred: it needs no root
    of a singular matrix and no regulariser, where there are fewer clips than features. Where there are more, the
    triangular factors of Xc and Yc stand in for them and keep the product small. With `counts`, row i stands for that
    many equal rows: a resample costs no more than the rows it drew.
    Raises ValueError for sets of fewer than two vectors, of different widths, or with values that are not finite.
    """
    x, y = _features(x), _features(y)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"feature widths differ: {x.shape[1]} and {y.shape[1]}; both sets need the same network")
    (mean_x, root_x), (mean_y, root_y) = _moments(x, counts_x), _moments(y, counts_y)
    traces = np.sum(root_x**2) + np.sum(root_y**2)
    cross = np.linalg.svd(root_x @ root_y.T, compute_uv=False).sum()
    return max(0.0, float(np.sum((mean_x - mean_y) ** 2) + traces - 2 * cross))  # rounding may leave -1e-13


def _moments(x: np.ndarray, counts: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Mean [F] and a matrix R [min(N, F), F] with RᵀR the covariance."""
    if counts is None or (counts == 1).all():
        mean = x.mean(0)
        root = (x - mean) / np.sqrt(len(x) - 1)
        if len(x) > x.shape[1]:
            root = np.asarray(np.linalg.qr(root, mode="r"))
        return mean, root
    x, counts = x[counts > 0], counts[counts > 0]
    mean = counts @ x / counts.sum()
    root = (x - mean) * np.sqrt(counts / (counts.sum() - 1))[:, None]
    if len(x) > x.shape[1]:  # a resample need not be exact to the last digit: the covariance is faster than QR
        values, vectors = np.linalg.eigh(root.T @ root)
        root = np.sqrt(np.maximum(values, 0))[:, None] * vectors.T
    return mean, root


def fad(x: np.ndarray, y: np.ndarray) -> float:
    """Fréchet audio distance: all example vectors of all clips are pooled, not averaged per clip. [N, E, F] each"""
    return frechet_distance(x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1]))


def inception_score(logits: np.ndarray, splits: int = 10) -> InceptionScore:
    """exp of the mean KL(p ‖ mean p) of each split; mean and standard deviation over splits. [N, C]

    Where N / splits is below ten clips, fewer splits are taken and the note says so.
    """
    logits = _features(logits, least=1)
    count = max(1, min(splits, len(logits) // IS_MIN_SPLIT))
    note = None if count == splits else f"{len(logits)} clips are too few for {splits} splits; {count} taken"
    order = np.random.RandomState(IS_SEED).permutation(len(logits))
    p, log_p = _softmax(logits[order])
    scores = []
    for i in range(count):
        rows = slice(i * len(p) // count, (i + 1) * len(p) // count)
        log_mean = np.log(p[rows].mean(0))
        scores.append(float(np.exp(np.mean(np.sum(p[rows] * (log_p[rows] - log_mean), axis=1)))))
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)), count, note)


def kl_softmax(reference: np.ndarray, generated: np.ndarray) -> np.ndarray:
    """KL(reference ‖ generated) of each pair; the metric is their mean. Logits [N, C], row i of both a pair → [N]"""
    reference, generated = _features(reference, least=1), _features(generated, least=1)
    if reference.shape != generated.shape:
        raise ValueError(f"KL needs pairs; the shapes are {reference.shape} and {generated.shape}")
    p, log_p = _softmax(reference)
    q, _ = _softmax(generated)
    return np.sum(p * (log_p - np.log(q + KL_EPSILON)), axis=1)


def clap_score(text: np.ndarray, audio: np.ndarray) -> np.ndarray:
    """Cosine of each pair, in [-1, 1]; the metric is their mean, which papers print as it is or times 100. [N, E] → [N]

    Also the ImageBind score and reward, with that network's embeddings; lengths do not matter.
    """
    text, audio = _features(text, least=1), _features(audio, least=1)
    if text.shape != audio.shape:
        raise ValueError(f"a score needs pairs; the shapes are {text.shape} and {audio.shape}")
    norms = np.linalg.norm(text, axis=1) * np.linalg.norm(audio, axis=1)
    return np.sum(text * audio, axis=1) / np.maximum(norms, 1e-12)


def silent(wavs: np.ndarray, dbfs: float = SILENT_DBFS) -> np.ndarray:
    """Which clips [N, S] have no sample above `dbfs`. FD and KL can look very good on such a set. → bool [N]"""
    return np.abs(wavs).max(axis=1, initial=0.0) < 10 ** (dbfs / 20)


def _features(x: np.ndarray, least: int = 2) -> np.ndarray:
    x = np.asarray(x, np.float64)
    if x.ndim != 2 or len(x) < least:
        raise ValueError(f"features must be [clips >= {least}, width], not of shape {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError(f"{int((~np.isfinite(x)).any(1).sum())} of {len(x)} feature vectors are not finite")
    return x


def _softmax(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and their logarithms. [N, C]"""
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return np.exp(log_p), log_p
