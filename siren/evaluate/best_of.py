"""Best of N: what a system scores that makes n clips for a prompt and keeps the one a ranking network likes best.

Its cost is n samplings and n rankings for every clip that is kept. The curve for n = 1 ... K comes from K clips of each
prompt, without bias: every subset of n of the K is as likely as any other, and their mean has a closed form.
Where the ranking network is also the reporting one the curve shows selection, not quality.
Shapes: N prompts · K clips of a prompt.
"""

import numpy as np
from scipy.special import comb


def curve(ranking: np.ndarray, reported: np.ndarray) -> np.ndarray:
    """Expected `reported` score of the clip with the highest `ranking` score among n. [N, K], [N, K] → [N, K]

    Column n - 1 belongs to n. Clips with equal ranking scores share their ranks' chances.
    Raises ValueError where the shapes differ or a ranking score is not finite.
    """
    ranking, reported = np.asarray(ranking, np.float64), np.asarray(reported, np.float64)
    if ranking.shape != reported.shape or ranking.ndim != 2 or ranking.shape[1] == 0:
        raise ValueError(f"best of N needs scores [prompts, clips] twice, not {ranking.shape} and {reported.shape}")
    if not np.isfinite(ranking).all():
        raise ValueError(f"{int((~np.isfinite(ranking)).sum())} ranking scores are not finite")
    clips = ranking.shape[1]
    sizes, places = np.arange(1, clips + 1), np.arange(clips)
    chance = comb(places, sizes[:, None] - 1) / comb(clips, sizes)[:, None]  # [n, place]: the clip there is the best
    below = (ranking[:, None, :] < ranking[:, :, None]).sum(2)  # [N, K]: how many clips rank lower
    ties = (ranking[:, None, :] == ranking[:, :, None]).sum(2)
    upto = np.concatenate([np.zeros((clips, 1)), np.cumsum(chance, axis=1)], axis=1)  # [n, K + 1]
    share = (upto[:, below + ties] - upto[:, below]) / ties  # [n, N, K]
    return np.einsum("nik,ik->in", share, reported)
