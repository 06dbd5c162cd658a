"""Best of N: what a system scores that makes n clips for a prompt and keeps the one a ranking network likes best.

Its cost is n samplings and n rankings for every clip that is kept. The curve for n = 1 ... K comes from K clips of each
prompt, without bias: every subset of n of the K is as likely as any other, and their mean has a closed form.
Where the ranking network is also the reporting one the curve shows selection, not quality.
The curve's own intervals are over prompts. Shapes: N prompts · K clips of a prompt.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import comb

from siren.evaluate import bootstrap, figures

RANKER = "clap"
MEASURES = ("clap", "imagebind", "event_accuracy", "both_heard")  # of each clip; None where one does not apply
NAMES = {
    "clap": "CLAP (which chooses)",
    "imagebind": "ImageBind",
    "event_accuracy": "event named",
    "both_heard": "both events heard",
}


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


def report(takes: Sequence[Mapping[str, Any]], resamples: int, seed: int) -> dict[str, Any]:
    """Curves of `MEASURES` with intervals over prompts, and what a kept clip costs, as plain data.

    takes: for each of K clips of every prompt the scores of `MEASURES` [N], None where a question does not apply, and
    `seconds` of sampling and of ranking one clip.
    """
    scores = {name: np.array([take[name] for take in takes], np.float64).T for name in MEASURES}
    found: dict[str, Any] = {}
    for name, told in scores.items():
        rows = ~np.isnan(told).any(axis=1)
        if rows.any():
            columns = curve(scores[RANKER][rows], told[rows]).T
            intervals = [bootstrap.mean(column, resamples, seed)._asdict() for column in columns]
            found[name] = [{"n": n, **one, "count": int(rows.sum())} for n, one in enumerate(intervals, 1)]
    seconds = {part: float(np.mean([take["seconds"][part] for take in takes])) for part in ("sample", "rank")}
    return {"curves": found, "seconds": seconds}


def draw(found: Mapping[str, Any]) -> dict[str, figures.Figure]:
    """The curves with their intervals, and the seconds that each clip kept costs."""
    counts = [point["n"] for point in found["curves"][RANKER]]
    series = {NAMES[name]: (counts, [p["value"] for p in points]) for name, points in found["curves"].items()}
    bands = {
        NAMES[name]: ([p["low"] for p in points], [p["high"] for p in points])
        for name, points in found["curves"].items()
    }
    parts = {"all": 1.0, "ranking alone": found["seconds"]["rank"] / sum(found["seconds"].values())}
    each = sum(found["seconds"].values())
    cost = {name: (counts, [n * each * share for n in counts]) for name, share in parts.items()}
    return {
        "best_of": figures.curves(series, "clips made for each one kept", "score or share", bands=bands),
        "cost": figures.curves(cost, "clips made for each one kept", "seconds"),
    }
