"""What can be read off a codebook's features: the paper's probe of two layers, and its t-SNE maps (Figures 2c and 9).

Features are averaged over time, as in the rest of `siren.evaluate.analyze`; the paper does not say how it gets from
frames to a clip. Everything is a function of its arguments: the same features give the same numbers.

Shapes: N clips · D latent width · C classes.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

HIDDEN, STEPS, LEARNING_RATE, DECAY = 64, 150, 1e-2, 1e-3
TSNE_SEED, PERPLEXITY, MAPPED = 0, 30.0, 300  # MAPPED: clips on a map at most; more would hide one another
SAME = 1e-6  # of features whose largest value is 1: rounding


def two_layers(train: np.ndarray, targets: np.ndarray, test: np.ndarray, num_classes: int, seed: int = 0) -> np.ndarray:
    """Logits of `test` after training two linear layers with a ReLU between them on all of `train`. [N, D] → [N, C]

    Features are brought to mean 0 and one common scale, so that a codebook of small features is learned as fast, and
    turned into the few directions in which a codebook's features vary, which loses nothing.
    """
    mean, scale = train.mean(axis=0), max(float(train.std()), 1e-12)
    _, lengths, directions = np.linalg.svd((train - mean).astype(np.float64), full_matrices=False)
    turned = directions[lengths > 1e-5 * lengths[0]].T / scale
    x, unseen = (torch.from_numpy((part - mean) @ turned) for part in (train, test))
    generator = torch.Generator().manual_seed(seed)
    shapes = [(HIDDEN, x.shape[1]), (HIDDEN,), (num_classes, HIDDEN), (num_classes,)]
    weights = [
        nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64) / shape[-1] ** 0.5 * (len(shape) > 1))
        for shape in shapes
    ]

    def logits(features: torch.Tensor) -> torch.Tensor:
        return F.linear(F.relu(F.linear(features, weights[0], weights[1])), weights[2], weights[3])

    optimiser, y = torch.optim.AdamW(weights, LEARNING_RATE, weight_decay=DECAY), torch.from_numpy(targets)
    for _ in range(STEPS):
        optimiser.zero_grad()
        F.cross_entropy(logits(x), y).backward()
        optimiser.step()
    with torch.no_grad():
        return logits(unseen).numpy()


def tsne(features: np.ndarray) -> list[list[float]]:
    """A map of clips on which near ones stay near, from PCA's with a pinned seed, in one thread. [N, D] → N × (x, y)

    Raises ValueError for fewer than four clips.
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    if len(features) < 4:
        raise ValueError(f"a t-SNE map needs at least 4 clips, not {len(features)}")
    if float(np.ptp(features, axis=0).max()) <= SAME * max(1.0, float(np.abs(features).max())):
        return [[0.0, 0.0]] * len(features)  # of a codebook with one code: scikit-learn would divide by no variance
    perplexity = min(PERPLEXITY, (len(features) - 1) / 3)
    with threadpool_limits(1):  # sums over threads would round differently on another machine
        places = TSNE(init="pca", perplexity=perplexity, random_state=TSNE_SEED).fit_transform(features)
    return [[round(float(x), 2), round(float(y), 2)] for x, y in places]
