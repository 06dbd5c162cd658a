"""Same seed, same sound: each item (prompt, sample index) has its own random stream, whatever the batch around it.

An item draws all its randomness before sampling starts, one uniform number per code, from a generator seeded with the
item's own seed alone. Codes are then drawn by inverting the cumulative distribution at that number.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from siren.shapes import Float, Int


def uniforms(seeds: Sequence[int], num_frames: int, num_codebooks: int) -> Float[Tensor, "B T K"]:
    """One number in [0, 1) per code, each item's from its own seed; a longer clip begins like a shorter one."""
    rows = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        rows.append(torch.rand(num_frames, num_codebooks, generator=generator))
    return torch.stack(rows)


def draw(probabilities: Float[Tensor, "B V"], numbers: Float[Tensor, " B"]) -> Int[Tensor, " B"]:
    """Invert the cumulative distribution of each row at its number, a float32 in [0, 1).

    The code is one of non-zero probability: the largest such number is 1 - 2^-24, so in float64 the target lies below
    the sum, and the first place where the sum exceeds it is one where the sum grew.
    """
    cumulative = probabilities.cumsum(-1, dtype=torch.float64)
    target = numbers.double()[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True)[:, 0]
