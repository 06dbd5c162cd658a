"""The paper's properties of residual codes, measured on this codec and this corpus (paper section 3, appendix D).

Property 1: quantised features f̂_k of two codebooks are nearly orthogonal (Fig. 2a per frame, Fig. 8 pooled over time).
Property 2: deeper codebooks carry less meaning, so a probe reads the event off them less well (Fig. 2c, 9).
Influence 2: heads of deeper codebooks converge to higher losses (Fig. 2d), here from the curves of stage 1.

Unusual: a frame's cosine depends on its two codes only, so the V x V cosines of two codebooks are computed once and
looked up for every frame; no feature is ever expanded over time. A codec may put any constant into one codebook's
out-projection and take it from another's, which turns raw cosines without changing the sound; so they are also taken
of features without each codebook's mean. Beside the paper's probe of two layers there is a multinomial logistic
regression: enough for a ranking, convex, exact to repeat. Influence 1 and the task vectors of appendix D.3 need trained
arms: `siren.evaluate.inside`. Code usage is measured as well, because a codebook that uses few of
its codes would explain a bad probe.

Shapes: N clips · K codebooks · T frames · V codebook size · D latent width · C classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from siren.encode.tokens import Tokens
from siren.evaluate import figures, probes
from siren.progress import notice

NEAR = 0.2  # |cosine| below it counts as nearly orthogonal (within 12 degrees of a right angle)
LIMIT = 5000  # clips of a split that are looked at: far more than the figures need
EDGES = np.linspace(-1, 1, 51)
TITLES = {  # of the figures, in the order in which they are shown
    "cosine_per_frame": "Property 1: features of two codebooks, same frame",
    "cosine_centred": "Property 1: without each codebook's mean",
    "cosine_pooled": "Property 1: averaged over time",
    "cosine_pairs": "Mean cosine of each pair",
    "probe": "Property 2: what each codebook says of the event",
    "tsne": "Property 2: the clips of each event, codebook by codebook",
    "convergence": "Influence 2: how well each codebook is learned",
    "perplexity": "How many codes are in use",
}


@dataclass(frozen=True)
class Clips:
    """Tokenised clips. `labels` holds a clip's event where it has exactly one, otherwise None."""

    codes: np.ndarray  # int [N, K, T]
    num_frames: np.ndarray  # int [N], at most T; later frames are padding and are left out
    labels: Sequence[str | None]

    def __post_init__(self) -> None:
        if not len(self.codes) == len(self.num_frames) == len(self.labels):
            counts = (len(self.codes), len(self.num_frames), len(self.labels))
            raise ValueError(f"codes, num_frames and labels are of {counts} clips; they must be of the same ones")

    @classmethod
    def of(cls, tokens: Tokens, limit: int = LIMIT) -> "Clips":
        """At most `limit` clips of a split, spread evenly over it."""
        rows = np.unique(np.linspace(0, max(len(tokens) - 1, 0), min(limit, len(tokens))).round().astype(int))
        labels = [tokens.labels[i][0] if len(tokens.labels[i]) == 1 else None for i in rows]
        return cls(tokens.codes[rows], np.asarray(tokens.num_frames)[rows], labels)

    @property
    def mask(self) -> np.ndarray:
        """True for frames that are not padding. [N, T]"""
        return np.arange(self.codes.shape[-1]) < self.num_frames[:, None]


def analyze(
    latents: np.ndarray, train: Clips, test: Clips, losses: Mapping[int, tuple[Sequence[int], Sequence[float]]]
) -> dict[str, Any]:
    """All of it, as plain data for JSON. `losses`: codebook → (steps, validation loss in nats), {} where unknown.

    latents [K, V, D] are the quantised features of every code. Cosines and usage are of `train`; the probe is trained
    on the one-event clips of `train` and tested on those of `test`, and is None where there are not enough of them.
    Raises ValueError for codes the codec lacks.
    """
    for name, clips in (("train", train), ("test", test)):
        _check(latents, clips, name)
    pooled, unseen = pool(latents, train), pool(latents, test)
    return {
        "clips": len(train.codes),
        "frames": int(train.mask.sum()),
        "cosine": {
            "per_frame": frame_cosines(latents, train),
            "centred": frame_cosines(latents - pooled.mean(axis=0)[:, None], train),
            "pooled": pooled_cosines(pooled),
        },
        "usage": usage(train, latents.shape[1]),
        "probe": probe(pooled, train.labels, unseen, test.labels),  # other parts need no labels
        "tsne": maps(unseen, test.labels),
        "loss": convergence(losses),
    }


def _check(latents: np.ndarray, clips: Clips, name: str) -> None:
    num_codebooks, codebook_size, _ = latents.shape
    if clips.codes.shape[1] != num_codebooks:
        raise ValueError(f"{name} clips have {clips.codes.shape[1]} codebooks, the codec has {num_codebooks}")
    if len(clips.codes) and clips.codes.max() >= codebook_size:
        raise ValueError(f"{name} clips hold code {clips.codes.max()}, the codec has codes up to {codebook_size - 1}")


def frame_cosines(latents: np.ndarray, clips: Clips) -> dict[str, Any]:
    """cos(f̂_i, f̂_j) of the same frame, for any two codebooks (Fig. 2a)."""
    unit = _unit(latents)
    mask = clips.mask
    pairs = {}
    for i, j in _pairs(len(latents)):
        table = unit[i] @ unit[j].T  # [V, V]
        pairs[i, j] = table[clips.codes[:, i][mask], clips.codes[:, j][mask]]
    return distribution(pairs, len(latents))


def pooled_cosines(pooled: np.ndarray) -> dict[str, Any]:
    """The same between features averaged over time (Fig. 8). pooled [N, K, D]"""
    unit = _unit(pooled)
    return distribution({(i, j): (unit[:, i] * unit[:, j]).sum(-1) for i, j in _pairs(unit.shape[1])}, unit.shape[1])


def pool(latents: np.ndarray, clips: Clips) -> np.ndarray:
    """Mean of each codebook's features over the frames that are not padding. [N, K, D]"""
    weights = torch.from_numpy((clips.mask / np.maximum(clips.num_frames, 1)[:, None]).astype(np.float32))
    bags = [
        F.embedding_bag(
            torch.from_numpy(clips.codes[:, k].astype(np.int64)),
            torch.from_numpy(np.ascontiguousarray(table, np.float32)),
            mode="sum",
            per_sample_weights=weights,
        )
        for k, table in enumerate(latents)
    ]
    return torch.stack(bags, dim=1).numpy()


def usage(clips: Clips, codebook_size: int) -> dict[str, list[float]]:
    """Of each codebook: the share of codes that occur, and the perplexity exp(H) of their frequencies."""
    used, perplexity = [], []
    for k in range(clips.codes.shape[1]):
        counts = np.bincount(clips.codes[:, k][clips.mask].astype(np.int64), minlength=codebook_size)
        share = counts[counts > 0] / counts.sum()
        used.append(float(len(share) / codebook_size))
        perplexity.append(float(np.exp(-(share * np.log(share)).sum())))
    return {"used": used, "perplexity": perplexity}


def probe(
    train: np.ndarray, train_labels: Sequence[str | None], test: np.ndarray, test_labels: Sequence[str | None]
) -> dict[str, Any] | None:
    """How well a linear classifier reads the event off each codebook's pooled features (Fig. 2c). [N, K, D]

    None where fewer than two events have clips to train on, or none has one to test. Test clips of unseen events are
    left out and counted.
    """
    classes = sorted({label for label in train_labels if label is not None})
    index = {label: i for i, label in enumerate(classes)}
    train_rows, train_targets = _targets(train_labels, index)
    test_rows, test_targets = _targets(test_labels, index)
    if len(classes) < 2 or len(test_rows) == 0:
        notice(f"no probe: {len(classes)} events have clips with one event to train on, {len(test_rows)} clips to test")
        return None
    accuracy: list[float] = []
    two_layers: list[float] = []
    for k in range(train.shape[1]):
        sides = train[train_rows, k], train_targets, test[test_rows, k], len(classes)
        for found, read in ((accuracy, logistic), (two_layers, probes.two_layers)):
            found.append(float((read(*sides).argmax(axis=1) == test_targets).mean()))
    return {
        "classes": classes,
        "train": len(train_rows),
        "test": len(test_rows),
        "left_out": sum(label is not None for label in test_labels) - len(test_rows),
        "chance": float(np.bincount(test_targets).max() / len(test_targets)),
        "accuracy": accuracy,
        "interval": [list(wilson(a, len(test_rows))) for a in accuracy],
        "trend": rank_correlation(np.arange(len(accuracy)), accuracy),
        "two_layers": {
            "accuracy": two_layers,
            "interval": [list(wilson(a, len(test_rows))) for a in two_layers],
            "trend": rank_correlation(np.arange(len(two_layers)), two_layers),
        },
    }


def maps(pooled: np.ndarray, labels: Sequence[str | None]) -> dict[str, Any] | None:
    """A t-SNE map of the one-event clips for each codebook (Fig. 2c, 9); None for fewer than four. pooled [N, K, D]"""
    rows = [i for i, label in enumerate(labels) if label is not None]
    rows = [rows[i] for i in np.unique(np.linspace(0, len(rows) - 1, probes.MAPPED).astype(int))] if rows else []
    if len(rows) < 4:
        return None
    return {
        "labels": [labels[i] for i in rows],
        "points": [probes.tsne(pooled[rows, k]) for k in range(pooled.shape[1])],
    }


def logistic(
    train: np.ndarray, targets: np.ndarray, test: np.ndarray, num_classes: int, decay: float = 1e-3
) -> np.ndarray:
    """Multinomial logistic regression on whitened features, solved to convergence → logits of `test`. [N, C]

    Whitening drops the directions in which the training features do not vary: pooled codec features of width D lie
    in the few dimensions of the codebook's rows.
    """
    mean = train.mean(axis=0)
    _, scale, directions = np.linalg.svd((train - mean).astype(np.float64), full_matrices=False)
    kept = scale > 1e-5 * scale[0]
    whiten = directions[kept].T / scale[kept] * np.sqrt(len(train))
    x = torch.from_numpy((train - mean) @ whiten)
    y = torch.from_numpy(targets)
    weight = torch.zeros(x.shape[1] + 1, num_classes, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        value = F.cross_entropy(x @ weight[:-1] + weight[-1], y) + decay * weight[:-1].square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    with torch.no_grad():
        return (torch.from_numpy((test - mean) @ whiten) @ weight[:-1] + weight[-1]).numpy()


def convergence(losses: Mapping[int, tuple[Sequence[int], Sequence[float]]]) -> dict[str, Any] | None:
    """Validation loss of each codebook in the end; Loss Mean and Loss Ratio as the paper defines them. None for {}.

    `mean` is the smallest average over codebooks of all evaluations, `ratio` the last codebook's loss over the first's
    at that evaluation (section 5.3, Table 5). Transformers are trained apart, so evaluations are matched by their step.
    """
    if not losses:
        return None
    curves = {k: dict(zip(*losses[k], strict=True)) for k in sorted(losses)}
    steps = sorted(set.intersection(*(set(curve) for curve in curves.values())))
    if not steps:
        raise ValueError("the codebooks' losses have no step in common; train all transformers by the same settings")
    means = {step: float(np.mean([curve[step] for curve in curves.values()])) for step in steps}
    best = min(steps, key=lambda step: means[step])
    at_best = [curve[best] for curve in curves.values()]
    return {
        "codebooks": list(curves),
        "final": [float(losses[k][1][-1]) for k in curves],
        "mean": means[best],
        "ratio": float(at_best[-1] / at_best[0]),
        "curves": {str(k): [list(map(int, losses[k][0])), list(map(float, losses[k][1]))] for k in curves},
    }


def wilson(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share of `count` trials (Wilson), which stays within [0, 1] near its ends."""
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * np.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return min(share, float(centre - half)), max(share, float(centre + half))  # at 0 and 1, rounding crosses the share


def rank_correlation(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> float:
    """Spearman's, ties sharing their mean rank; 0 where either does not vary."""
    rx, ry = _ranks(np.asarray(x, float)), _ranks(np.asarray(y, float))
    if rx.std() == 0 or ry.std() == 0:
        return 0.0
    return float(np.corrcoef(rx, ry)[0, 1])


def draw(analysis: Mapping[str, Any]) -> dict[str, figures.Figure]:
    """Name → figure for everything in `analysis`; no figure for a part that is missing."""
    names = [str(k) for k in range(len(analysis["usage"]["used"]))]
    probed = analysis["probe"]
    drawn = {
        "cosine_per_frame": _draw_cosines(analysis["cosine"]["per_frame"], "same frame"),
        "cosine_centred": _draw_cosines(analysis["cosine"]["centred"], "same frame, centred"),
        "cosine_pooled": _draw_cosines(analysis["cosine"]["pooled"], "averaged over time"),
        "cosine_pairs": figures.heat_map(
            np.array(analysis["cosine"]["per_frame"]["pairs"]), names, names, (-1, 1), "codebook", "codebook"
        ),
        "perplexity": figures.bars(names, analysis["usage"]["perplexity"], "codebook", "perplexity of codes"),
    }
    if probed:
        chance = ("chance", probed["chance"])
        drawn["probe"] = figures.bars(
            names, probed["accuracy"], "codebook", "probe accuracy", probed["interval"], chance, share=True
        )
    if analysis.get("tsne") and probed:
        accuracy = probed["two_layers"]["accuracy"]
        panels = {f"codebook {k}: {100 * accuracy[k]:.0f} %": p for k, p in enumerate(analysis["tsne"]["points"])}
        drawn["tsne"] = figures.maps(panels, analysis["tsne"]["labels"])
    if analysis["loss"] is not None:
        series = {f"codebook {k}": (xs, ys) for k, (xs, ys) in analysis["loss"]["curves"].items()}
        drawn["convergence"] = figures.curves(series, "step", "validation loss (nats)", ordered=True)
    return drawn


def findings(analysis: Mapping[str, Any]) -> dict[str, str]:
    """Name of a figure → what it says, in one or two sentences with the numbers."""
    probed, used, loss = analysis["probe"], analysis["usage"]["used"], analysis["loss"]
    texts = {
        "cosine_per_frame": _cosine_finding(analysis["cosine"]["per_frame"]),
        "cosine_centred": _cosine_finding(analysis["cosine"]["centred"]),
        "cosine_pooled": _cosine_finding(analysis["cosine"]["pooled"]),
        "cosine_pairs": "Same frame, mean over all frames.",
        "perplexity": f"Between {100 * min(used):.0f} and {100 * max(used):.0f} % of a codebook's codes occur.",
    }
    if probed:
        texts["probe"] = (
            f"A logistic probe on features averaged over time, trained on {probed['train']} clips and tested on "
            f"{probed['test']}. Rank correlation of depth and accuracy: {probed['trend']:+.2f}."
        )
    if analysis.get("tsne") and probed:
        found = probed["two_layers"]
        texts["tsne"] = (
            f"t-SNE of {len(analysis['tsne']['labels'])} held-out clips, and how many of {probed['test']} a probe of "
            f"two layers names. Rank correlation of depth and accuracy: {found['trend']:+.2f}."
        )
    if loss is not None:
        texts["convergence"] = f"Mean {loss['mean']:.2f} nats; last codebook over first {loss['ratio']:.2f}."
    return texts


def summary(analysis: Mapping[str, Any]) -> dict[str, float]:
    """The few numbers that sum the analysis up, flat, for a tracker."""
    found = {f"cosine/{kind}": row["all"]["mean"] for kind, row in analysis["cosine"].items()}
    probed = analysis["probe"] or {"accuracy": []}
    for name, values in (("probe", probed["accuracy"]), ("perplexity", analysis["usage"]["perplexity"])):
        found |= {f"{name}/codebook_{k}": value for k, value in enumerate(values)}
    if analysis["loss"] is not None:
        found |= {"loss/mean": analysis["loss"]["mean"], "loss/ratio": analysis["loss"]["ratio"]}
    return found


def _cosine_finding(cosines: Mapping[str, Any]) -> str:
    row = cosines["all"]
    low, high = row["middle_90"]
    return (
        f"Mean {row['mean']:+.2f}, the middle 90 % between {low:+.2f} and {high:+.2f}; "
        f"{100 * row['near_orthogonal']:.0f} % lie within ±{NEAR}. Lines: distance between the two codebooks."
    )


def _draw_cosines(cosines: Mapping[str, Any], what: str) -> figures.Figure:
    densities = {interval: row["histogram"] for interval, row in cosines["intervals"].items()}
    return figures.distributions(cosines["edges"], densities, f"cosine of two codebooks' features, {what}")


def distribution(
    pairs: Mapping[tuple[int, int], np.ndarray],
    num_codebooks: int,
    edges: np.ndarray = EDGES,
    around: float = 0.0,
    near: float = NEAR,
    itself: float = 1.0,
) -> dict[str, Any]:
    """Summaries of what was measured on pairs of codebooks by layer interval |i - j|, and each pair's mean as a matrix.

    Cosines by default. `near` of `around` counts as nearly orthogonal; `itself` is the value of a codebook and itself.
    Pairs that were not measured are None in the matrix.
    """
    means: list[list[float | None]] = [
        [itself if i == j else None for j in range(num_codebooks)] for i in range(num_codebooks)
    ]
    by_interval: dict[int, list[np.ndarray]] = {}
    for (i, j), values in pairs.items():
        means[i][j] = means[j][i] = float(values.mean())
        by_interval.setdefault(j - i, []).append(values)

    def summary(parts: Sequence[np.ndarray]) -> dict[str, Any]:
        values = np.concatenate(parts).astype(np.float64)
        low, high = np.quantile(values, (0.05, 0.95))
        return {
            "mean": float(values.mean()),
            "std": float(values.std()),
            "middle_90": [float(low), float(high)],
            "near_orthogonal": float((np.abs(values - around) < near).mean()),
            "histogram": (np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0] / len(values)).tolist(),
        }

    intervals = {str(interval): summary(by_interval[interval]) for interval in sorted(by_interval)}
    everything = summary(list(pairs.values()))
    everything.pop("histogram")
    return {"all": everything, "intervals": intervals, "pairs": means, "edges": edges.tolist()}


def _pairs(count: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(count) for j in range(i + 1, count)]


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def _targets(labels: Sequence[str | None], index: Mapping[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """Rows whose label is known, and the class of each."""
    rows = [i for i, label in enumerate(labels) if label is not None and label in index]
    return np.array(rows, int), np.array([index[labels[i]] for i in rows], np.int64)  # type: ignore[index]


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return ((ends - counts + ends - 1) / 2)[inverse]
