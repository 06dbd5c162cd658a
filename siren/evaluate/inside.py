"""What training does inside transformers: Influence 1, Influence 2 and appendix D.3 of the paper, on trained arms.

Influence 1 (Fig. 2b): the heads of one shared transformer pull its last layer in different directions. Each head's
loss alone is differentiated with respect to the weight matrices of the last block of the temporal path; as in
appendix D.1 a matrix's gradient is averaged over its outputs, which leaves one vector over input neurons, and the angle
between those of two heads is taken, matrix by matrix. Averages of many entries of either sign may come out near a right
angle whatever the entries are, so the angle between the whole gradients is given as well.
Influence 2 (Fig. 2d and 6): training loss of each codebook of the arm with independent heads, which is AudioGen's.
Task vectors (Fig. 7): the transformers of Siren are trained once more, now all from one initialisation, because without
it differences of weights have no common origin. The task vector of a layer is its weights less that start, and what
is compared is the same layer of two transformers. For reference: the same transformer after a tenth of the steps (the
paper: the 10th epoch) and in the end. Layers are weight matrices; vectors (biases, norms) are left out.

Shapes: B batch · K codebooks · N owned codebooks · T frames.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from siren.config import Model
from siren.evaluate import analyze, claims, figures
from siren.evaluate.claims import World
from siren.evaluate.records import read_curve
from siren.generate.bundle import load_transformer, save_transformer
from siren.hashing import digest, item_seed
from siren.model.siren import Siren
from siren.model.transformer import ResidualTransformer, cross_entropy
from siren.progress import track
from siren.train.stage1 import Batch, read_batch

HEADS = {"independent": "one transformer, independent heads", "single": "one transformer", "siren": "isolated"}
SEED, BATCHES, EARLY = 0, 16, 0.1  # EARLY: share of the steps after which a transformer is kept for reference
EDGES = np.linspace(0, 180, 37)  # degrees
NEAR = float(np.degrees(np.arcsin(analyze.NEAR)))  # as far from a right angle as the cosines' bound
GROUPS = {  # the paper's four structures, by the beginning of a parameter's name
    "RVQ decoder": ("decoder.", "residual_start", "prompt_summary"),
    "Backbone": ("temporal.", "start"),
    "Classifier": ("heads",),
    "Embedding": ("codebooks.",),
}
TITLES = {
    "gradients": "Influence 1: angle between the gradients of two heads",
    "gradients_whole": "Influence 1: the same for whole gradients",
    "losses": "Influence 2: training loss of each codebook, independent heads",
    "task_vectors": "Task vectors of two transformers, layer by layer",
}
Pairs = dict[tuple[int, int], np.ndarray]


@dataclass(frozen=True)
class Angles:
    """Degrees between the gradients of two heads, for each pair of codebooks [batches × matrices] and [batches]."""

    averaged: Pairs  # over a matrix's outputs, as in the paper
    whole: Pairs


def look(world: World, place: Path) -> dict[str, Any]:
    """Everything of this module as plain data, from arms that are trained, or read from `place`, as `claims` does."""
    models = {name: claims.train(name, SEED, world, place) for name in HEADS}
    independent = claims.prepare("independent", SEED, world, place)[1]
    losses = read_curve(independent / "0.csv")
    prefix = "loss_codebook_"
    return {
        "seed": SEED,
        "gradients": {name: _gradients(model, batches(world)) for name, model in models.items()},
        "losses": {name.removeprefix(prefix): points for name, points in losses.items() if name.startswith(prefix)},
        "task_vectors": _task_vectors(world, place),
    }


def batches(world: World) -> list[Batch]:
    """The first held-out clips, in batches of the training's size; the first crop of each."""
    size, tokens = world.stage1.training.batch_size, world.validation
    starts = range(0, min(len(tokens), size * BATCHES) - size + 1, size)
    rows = [np.arange(begin, begin + size) for begin in starts] or [np.arange(len(tokens))]
    crops = [[int(tokens.crop_offsets[int(r)][0]) for r in own] for own in rows]
    return [read_batch(tokens, own, c, world.crop_frames, world.device) for own, c in zip(rows, crops, strict=True)]


def gradient_angles(transformer: ResidualTransformer, batch: Batch) -> Angles:
    """Angles between what any two owned codebooks' losses ask of the last temporal block. `.grad` stays as it is."""
    transformer.eval()
    losses = cross_entropy(transformer(batch.codes, batch.states, batch.mask), transformer.targets(batch.codes))  # [N]
    matrices = [p for p in transformer.temporal[-1].parameters() if p.ndim == 2]
    gradients = [torch.autograd.grad(loss, matrices, retain_graph=True) for loss in losses]
    means = [[g.mean(0) for g in own] for own in gradients]
    flat = [torch.cat([g.flatten() for g in own]) for own in gradients]
    pairs = list(combinations(range(len(losses)), 2))
    first = transformer.first
    return Angles(
        {
            (first + i, first + j): np.array([_degrees(a, b) for a, b in zip(means[i], means[j], strict=True)])
            for i, j in pairs
        },
        {(first + i, first + j): np.array([_degrees(flat[i], flat[j])]) for i, j in pairs},
    )


def _degrees(a: Tensor, b: Tensor) -> float:
    return float(torch.rad2deg(torch.arccos(F.cosine_similarity(a, b, dim=0, eps=1e-30).clamp(-1, 1))))


def _gradients(model: Siren, parts: Sequence[Batch]) -> dict[str, Any]:
    both = [(model[k].to(batch.codes.device), batch) for k in range(len(model)) for batch in parts]
    found = [gradient_angles(*one) for one in track(both, "gradients", len(both), unit="batch")]

    def gather(kind: str) -> dict[str, Any]:
        joined: dict[tuple[int, int], list[np.ndarray]] = {}
        for angles in found:
            for pair, values in getattr(angles, kind).items():
                joined.setdefault(pair, []).append(values)
        pairs = {pair: np.concatenate(values) for pair, values in joined.items()}
        return analyze.distribution(pairs, model.num_codebooks, EDGES, 90.0, NEAR, 0.0)

    return {"averaged": gather("averaged"), "whole": gather("whole")}


def task_vectors(
    start: Mapping[str, Tensor], ends: Sequence[Mapping[str, Tensor]]
) -> dict[str, dict[str, list[float]]]:
    """Cosine of the task vectors of any two transformers, by structure and layer: {structure: {layer: [pairs]}}.

    start and ends: parameters by name. Raises ValueError for a parameter of no structure.
    """
    found: dict[str, dict[str, list[float]]] = {group: {} for group in GROUPS}
    for name, begin in start.items():
        group = next((g for g, prefixes in GROUPS.items() if name.startswith(prefixes)), None)
        if group is None and "norm" not in name:
            raise ValueError(f"parameter {name!r} belongs to none of {', '.join(GROUPS)}")
        if group is None or begin.ndim < 2:
            continue
        vectors = [(end[name] - begin).flatten().double() for end in ends]
        found[group][name] = [float(F.cosine_similarity(a, b, dim=0)) for a, b in combinations(vectors, 2)]
    return {group: layers for group, layers in found.items() if layers}


def _task_vectors(world: World, place: Path) -> dict[str, Any]:
    """Those of the arm `siren`, or what an earlier run found in `place`."""
    model, _, recipe = claims.prepare("siren", SEED, world, place)
    recipe |= {"start": item_seed(SEED, "task vectors")}
    folder = place / f"task-vectors-{digest(recipe)}"
    return claims.kept(folder / "result.json", lambda: _compared(model, world, folder, recipe))


def _compared(model: Model, world: World, folder: Path, recipe: dict[str, Any]) -> dict[str, Any]:
    """Trains the transformers from one initialisation, or reads them from `folder`."""
    steps = world.stage1.training.steps
    ends, early = [], []
    for k in model.transformers:
        kept = folder / "early" / str(k)

        def keep(transformer: ResidualTransformer, step: int, kept: Path = kept) -> None:
            if step >= EARLY * steps and not (kept / "config.json").is_file():
                save_transformer(kept, transformer, dict(world.made_with))

        one = claims.trained(model, k, SEED, world, folder, recipe | {"transformer": k}, recipe["start"], keep)
        ends.append(_parameters(one))
        early.append(_parameters(load_transformer(kept)))
    torch.manual_seed(recipe["start"])
    start = _parameters(ResidualTransformer(model, world.tables, world.tokens.text_width, 0))
    own = [task_vectors(start, pair) for pair in zip(early, ends, strict=True)]
    groups = task_vectors(start, ends)
    reference = {g: float(np.mean([c for one in own for layer in one[g].values() for c in layer])) for g in groups}
    return {"layers": groups, "early": reference, "share": EARLY}


def _parameters(transformer: ResidualTransformer) -> dict[str, Tensor]:
    return {name: p.detach().cpu() for name, p in transformer.named_parameters()}


def draw(found: Mapping[str, Any]) -> dict[str, figures.Figure]:
    """Name → figure, for `TITLES`."""
    series = {f"codebook {k}": (xs, list(figures.smooth(ys, 5))) for k, (xs, ys) in found["losses"].items()}
    layers = {
        group: [float(np.mean(c)) for c in own.values()] for group, own in found["task_vectors"]["layers"].items()
    }

    def angles(kind: str) -> figures.Figure:
        shared = found["gradients"]["independent"][kind]
        densities = {interval: row["histogram"] for interval, row in shared["intervals"].items()}
        return figures.distributions(shared["edges"], densities, "degrees between two heads' gradients")

    return {
        "gradients": angles("averaged"),
        "gradients_whole": angles("whole"),
        "losses": figures.curves(series, "step", "training loss (nats)", ordered=True),
        "task_vectors": figures.boxes(layers, "mean cosine over pairs of transformers", found["task_vectors"]["early"]),
    }


def findings(found: Mapping[str, Any]) -> dict[str, str]:
    """Name of a figure → what it says, with the numbers."""

    def angles(kind: str) -> str:
        rows = {name: found["gradients"][name][kind]["all"] for name in HEADS if name in found["gradients"]}
        said = [f"{HEADS[n]}: mean {r['mean']:.0f}°, {100 * r['near_orthogonal']:.0f} %" for n, r in rows.items()]
        return (
            f"Within {NEAR:.0f}° of a right angle: {'; '.join(said)}. Lines, of the first: distance of the codebooks."
        )

    ends = {k: float(np.mean(ys[-5:])) for k, (_, ys) in found["losses"].items()}
    first, *_, last = ends
    groups = found["task_vectors"]["layers"]
    means = {g: float(np.mean([c for layer in own.values() for c in layer])) for g, own in groups.items()}
    return {
        "gradients": "Averaged over outputs, as in the paper. " + angles("averaged"),
        "gradients_whole": angles("whole"),
        "losses": f"In the end {ends[first]:.2f} nats for codebook {first} and {ends[last]:.2f} for codebook {last}.",
        "task_vectors": "Means: " + ", ".join(f"{group} {mean:+.3f}" for group, mean in means.items()) + ". Red: one "
        f"transformer after {found['task_vectors']['share']:.0%} of its steps and in the end.",
    }
