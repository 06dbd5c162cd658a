"""The paper's claims about alignment (Figure 5, Table 7), tried on the stage-1 model at hand, over seeds.

An arm is alignment with other settings, and `stage1` none at all. Verdicts and reports are those of `siren.evaluate.
claims`; what differs is that all arms start from one stage-1 model, so the seeds are those of rollouts and of sampling.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from siren.config import Align, to_dict
from siren.evaluate.claims import Claim, Listen, Result, each, kept
from siren.evaluate.records import read_curve
from siren.generate.bundle import load_transformer, save_transformer
from siren.hashing import digest
from siren.model.siren import Siren
from siren.train.loop import Checkpoint, Curve, Log

ARMS: dict[str, dict[str, Any] | None] = {
    "stage1": None,
    "anti-causal": {"direction": "anti-causal", "transformers": 1, "method": "rl"},
    "causal": {"direction": "causal", "transformers": 1, "method": "rl"},
    "dpo": {"direction": "anti-causal", "transformers": 1, "method": "dpo"},
    "anti-causal-2": {"direction": "anti-causal", "transformers": 2, "method": "rl"},
}
CLAIMS = (
    Claim("Fig. 5", "alignment raises the held-out reward", (("anti-causal", "stage1"),), ("imagebind", "fd", "fad")),
    Claim(
        "7",
        "alignment raises the score of a network that it does not see",
        (("anti-causal", "stage1"),),
        ("clap", "event_accuracy"),
    ),
    Claim(
        "7", "the anti-causal direction beats the causal one", (("anti-causal", "causal"),), ("clap", "imagebind", "fd")
    ),
    Claim(
        "7",
        "two aligned transformers score higher than one",
        (("anti-causal-2", "anti-causal"),),
        ("clap", "imagebind", "fd"),
    ),
    Claim("4", "alignment improves on accumulated conditions", (("anti-causal", "stage1"),), ("fd", "is", "clap")),
    Claim(
        "Fig. 5", "reinforcement learning does better than DPO", (("anti-causal", "dpo"),), ("imagebind", "clap", "fd")
    ),
)
NEEDED = tuple(ARMS)
MEASURES = ("fd", "fad", "is", "event_accuracy", "both_heard", "imagebind", "clap")


@dataclass(frozen=True)
class World:
    """What every arm starts from and is measured with; `made_with` and `heard_with` name all inputs beside settings."""

    settings: Align
    stage1: Callable[[], Siren]  # a fresh copy
    align: Callable[[Siren, Align, int, Log, Checkpoint], list[int]]  # in place → which transformers it moved
    hear: Callable[[str, Siren, int], dict[str, Any]]
    made_with: Mapping[str, Any]
    heard_with: Mapping[str, Any]
    wanted: Sequence[str] = ()  # of the measures: a result that lacks one is heard again, without aligning
    listen: Listen | None = None


def arm(name: str, settings: Align) -> Align | None:
    """The settings of an arm; None for stage 1. Raises ValueError for an arm that there is not."""
    if name not in ARMS:
        raise ValueError(f"there is no arm {name!r} of the alignment; there are {', '.join(ARMS)}")
    changes = ARMS[name]
    return None if changes is None else replace(settings, **changes)


def run(
    names: Sequence[str], seeds: Sequence[int], world: World, place: Path, beside: Sequence[str] = ()
) -> Iterator[Result]:
    """Every arm at every seed, after those `beside` them that are finished; ValueError for an arm that there is not,
    before anything is trained."""
    for name in (*names, *beside):
        arm(name, world.settings)
    there = [(s, n) for s in seeds for n in beside if n not in names and _prepare(n, s, world, place)[2].is_file()]
    return each(there, names, seeds, lambda name, seed: measure(name, seed, world, place))


def _prepare(name: str, seed: int, world: World, place: Path) -> tuple[dict[str, Any], Path, Path]:
    """What an arm depends on, the folder that it is kept in, and the file there that has its measures."""
    settings = arm(name, world.settings)
    recipe = {"align": settings and to_dict(settings), "seed": seed, "inputs": dict(world.made_with)}
    folder = place / f"align-{name}-{seed}-{digest(recipe)}"
    return recipe, folder, folder / f"result-{digest(dict(world.heard_with))}.json"


def measure(name: str, seed: int, world: World, place: Path) -> dict[str, Any]:
    """Align and judge one arm at one seed, or read what an earlier run found. Resumes from `place` after a kill."""
    settings = arm(name, world.settings)
    recipe, folder, result = _prepare(name, seed, world, place)

    def aligned() -> tuple[Siren, list[int]]:
        model = world.stage1()
        return model, _aligned(model, settings, seed, world, folder, recipe) if settings else []

    def make() -> dict[str, Any]:
        begin, (model, moved) = time.monotonic(), aligned()
        spent = time.monotonic() - begin
        trained = sum(p.numel() for k in moved for p in model[k].parameters() if p.requires_grad)
        found = world.hear(name, model, seed)
        row = {"arm": name, "seed": seed, "parameters": trained, **found}
        return row | {"seconds": round(time.monotonic() - begin, 1), "align_seconds": round(spent, 1)}

    row = kept(result, make, world.wanted)
    row |= world.listen(lambda: aligned()[0], seed, folder) if world.listen else {}
    curve = read_curve(folder / "align.csv") if settings else {}
    return row | ({"reward": [list(part) for part in curve["reward"]]} if "reward" in curve else {})  # Fig. 5


def _aligned(
    model: Siren, settings: Align, seed: int, world: World, folder: Path, identity: dict[str, Any]
) -> list[int]:
    """Align `model` in place, or bring it to what an earlier run kept in `folder` → the transformers that moved."""
    curve_file = folder / "align.csv"  # written last
    if curve_file.is_file():
        done = {int(path.parent.name): path.parent for path in folder.glob("*/model.safetensors")}
        for k, kept_in in done.items():
            model[k].load_state_dict(load_transformer(kept_in).state_dict())
        return sorted(done)
    checkpoint = Checkpoint(folder / "checkpoints", identity)
    curve = Curve(lambda step, metrics: None, checkpoint.folder)
    moved = world.align(model, settings, seed, curve, checkpoint)
    for k in moved:
        save_transformer(folder / str(k), model[k], {})
    curve.write(curve_file)
    checkpoint.clear()
    return moved
