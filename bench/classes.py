"""Does a distance tell classes of real sounds apart? Within a class, between two halves, against between two classes.

    python bench/classes.py SOUNDS --networks weights          # SOUNDS has manifest.csv: file, label, tier, source_id

Each class is halved by recording, so that no recording is on both sides, and the distance of its halves is set against
that of its first half and another class's. A pair of classes holds where both distances within are below the one
between. All sets are about equally large: a Fréchet distance grows with the variance of a set and as the set shrinks,
so a varied class of sixteen clips is far from itself. Three estimators beside the plain one take that away:
`extrapolated` reads the line over 1 / N at zero from N and N / 2 (FAD-infinity on two points), `kad` is the unbiased
kernel distance, and `mean` the plain distance of means. Every network and every estimator that was tried is printed.
"""

import argparse
import csv
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from siren.evaluate import metrics
from siren.evaluate.distances import kad
from siren.evaluate.features import HEARING, JUDGES, OPENERS, Network, Preparation, find_networks
from siren.evaluate.folders import read
from siren.progress import track

Clips = list[np.ndarray]  # of each clip its vectors [E, F]
WINDOW, HOP = 2.0, 0.5  # seconds: clips as several vectors for networks that give one a clip
DRAWS = 4  # random halves of each half, for the extrapolation


def frechet(x: Clips, y: Clips) -> float:
    return metrics.frechet_distance(np.concatenate(x), np.concatenate(y))


def extrapolated(x: Clips, y: Clips) -> float:
    """2 D(N) - D(N / 2): where the line over 1 / N meets zero."""
    rng = np.random.default_rng(0)
    halves = [[frechet(_some(x, rng), _some(y, rng)) for _ in range(DRAWS)]]
    return 2 * frechet(x, y) - float(np.mean(halves))


def _some(clips: Clips, rng: np.random.Generator) -> Clips:
    return [clips[i] for i in rng.permutation(len(clips))[: len(clips) // 2]]


def kernel(x: Clips, y: Clips) -> float:
    return kad(np.concatenate(x), np.concatenate(y))


def means(x: Clips, y: Clips) -> float:
    return float(np.sum((np.concatenate(x).mean(0) - np.concatenate(y).mean(0)) ** 2))


ESTIMATORS: dict[str, Callable[[Clips, Clips], float]] = {
    "frechet": frechet,
    "extrapolated": extrapolated,
    "kad": kernel,
    "mean": means,
}


def halve(recordings: Sequence[str], rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """Rows of two halves: recordings in random order, each with all its clips to the half that has fewer."""
    rows = defaultdict(list)
    for row, recording in enumerate(recordings):
        rows[recording].append(row)
    sides: tuple[list[int], list[int]] = ([], [])
    groups = list(rows.values())
    for i in rng.permutation(len(groups)):
        min(sides, key=len).extend(groups[i])
    return sides


def share(
    classes: dict[str, Clips], recordings: dict[str, list[str]], distance: Callable[[Clips, Clips], float], splits: int
) -> tuple[list[float], list[float]]:
    """Of each split, the share of class pairs that hold, and of ordered comparisons (class, other)."""
    pairs, ordered = [], []
    for seed in range(splits):
        rng = np.random.default_rng(seed)
        halves = {}
        for name, clips in classes.items():
            first, second = halve(recordings[name], rng)
            halves[name] = [clips[i] for i in first], [clips[i] for i in second]
        within = {name: distance(*sides) for name, sides in halves.items()}
        names = sorted(classes)
        between = {(a, b): distance(halves[a][0], halves[b][0]) for i, a in enumerate(names) for b in names[i + 1 :]}
        below = [(within[a] < d, within[b] < d) for (a, b), d in between.items()]
        pairs.append(float(np.mean([a and b for a, b in below])))
        ordered.append(float(np.mean(below)))
    return pairs, ordered


@torch.inference_mode()
def vectors(network: Network, opened: Any, wav: np.ndarray, rate: int, windows: bool) -> dict[str, np.ndarray]:
    """What the network makes of one clip [S]: of each of its outputs the vectors [E, F]."""
    judged = network.kind in JUDGES
    heard = Preparation()(wav, rate, network.sample_rate, judged)
    if not windows:
        cut = heard[None]
    elif network.kind == "vggish":  # its examples follow each other without overlap: hear the clip at shifted starts
        step = round(HOP / 2 * network.sample_rate)
        cut = np.stack([np.roll(heard, -i * step)[: len(heard) - 4 * step] for i in range(4)])
        if cut.shape[1] < network.sample_rate:
            cut = heard[None]
    else:
        size, hop = round(WINDOW * network.sample_rate), round(HOP * network.sample_rate)
        heard = np.pad(heard, (0, max(0, size - len(heard))))
        cut = np.stack([heard[i : i + size] for i in range(0, len(heard) - size + 1, hop)])
    found = HEARING[network.kind](opened, torch.from_numpy(np.ascontiguousarray(cut)))
    return {name: v.reshape(-1, v.shape[-1]).double().numpy() for name, v in found.items()}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sounds", type=Path)
    parser.add_argument("--networks", type=Path, default=Path("weights"))
    parser.add_argument("--tier", default="core")
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="two splits, no windows")
    options = parser.parse_args(argv)
    splits = 2 if options.quick else options.splits
    with (options.sounds / "manifest.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["tier"] == options.tier]
    recordings = defaultdict(list)
    for row in rows:
        recordings[row["label"]].append(row["source_id"])
    print(f"{len(rows)} clips of {len(recordings)} classes, {splits} splits; share of class pairs (worst split)")
    for network in find_networks(options.networks):
        opened = OPENERS[network.kind](network.folder, "cpu")
        for windows in (False,) if options.quick else (False, True):
            classes: dict[str, dict[str, Clips]] = defaultdict(lambda: defaultdict(list))
            for row in track(rows, network.name, unit="clip"):
                made = vectors(network, opened, read(options.sounds / row["file"]), 16000, windows)
                for output, v in made.items():
                    classes[output][row["label"]].append(v)
            for output, clips in classes.items():
                for name, distance in ESTIMATORS.items():
                    pairs, ordered = share(clips, recordings, distance, splits)
                    print(
                        f"{network.kind}@{network.name} {output:10} {'windows' if windows else 'clips':8} {name:13} "
                        f"{np.mean(pairs):6.1%} ({min(pairs):6.1%})  of comparisons {np.mean(ordered):6.1%}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
