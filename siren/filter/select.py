"""Scores to splits: the stage-1 corpus by threshold, the best of it for alignment, validation and test.

Train pairs are kept at or above `min_score`, with their crops at or above `min_crop_score` (at least one). Validation
and test are not filtered by score, which would make the task easier; of their crops the best is kept where all are
below the threshold. No recording may be in two splits.
"""

from typing import Any

import numpy as np
import pyarrow as pa

from siren.config import Select

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("caption", pa.string()),
        ("labels", pa.list_(pa.string())),
        ("relation", pa.string()),
        ("recording_id", pa.string()),
        ("score", pa.float32()),
        ("crop_offsets", pa.list_(pa.int32())),  # samples
    ]
)
SPLITS = ("stage1", "rl", "val", "test")


def select(
    segments: pa.Table, captions: pa.Table, scores: pa.Table, settings: Select, seed: int
) -> tuple[dict[str, pa.Table], dict[str, int]]:
    """The four splits (`SCHEMA`) and the funnel: how many pairs are left after each rule.

    Raises ValueError where there are fewer pairs than asked, saying how many there are and which threshold would do;
    and where a recording is in two splits.
    """
    pairs = join(segments, captions, scores)
    check_recordings(pairs)
    train = [pair for pair in pairs if pair["split"] == "train"]
    funnel = {"segments": segments.num_rows, "scored": len(pairs), "train": len(train)}
    above = [pair for pair in train if pair["score"] >= settings.min_score]
    funnel["above_min_score"] = len(above)
    good = [cropped for pair in above if (cropped := with_crops(pair, settings.min_crop_score))["crop_offsets"]]
    funnel["with_a_good_crop"] = len(good)
    if settings.max_pairs is None:
        _enough(good, train, max(1, settings.rl_prompts), "rl_prompts" if settings.rl_prompts else "stage 1", settings)
    else:
        _enough(good, train, settings.max_pairs, "max_pairs", settings)
        if settings.rl_prompts > settings.max_pairs:
            raise ValueError(
                f"filter.select.rl_prompts is {settings.rl_prompts}, but they are taken from the stage-1 corpus of "
                f"max_pairs {settings.max_pairs}; raise max_pairs or lower rl_prompts"
            )
    stage1 = _some(good, settings.max_pairs, [seed, 1])
    rl = sorted(stage1, key=lambda pair: (-pair["score"], pair["id"]))[: settings.rl_prompts]
    chosen = {"stage1": stage1, "rl": rl}
    for name, count, stream in (("val", settings.val_pairs, 2), ("test", settings.test_pairs, 3)):
        held = [pair for pair in pairs if pair["split"] == name]
        if len(held) < (1 if count is None else count):
            raise ValueError(f"filter.select.{name}_pairs asks for {count or 1} pairs; split {name} has {len(held)}")
        kept = _some(held, count, [seed, stream])
        chosen[name] = [with_crops(pair, settings.min_crop_score, at_least_one=True) for pair in kept]
    funnel |= {name: len(chosen[name]) for name in SPLITS}
    return {name: pa.Table.from_pylist(chosen[name], schema=SCHEMA) for name in SPLITS}, funnel


def join(segments: pa.Table, captions: pa.Table, scores: pa.Table) -> list[dict[str, Any]]:
    """Segments that have a caption and a score, in the order of `segments`, with the columns of all three."""
    columns = ["id", "labels", "relation", "recording_id", "split"]
    by_id = [{row["id"]: row for row in table.to_pylist()} for table in (captions, scores)]
    rows = segments.select(columns).to_pylist()
    return [row | by_id[0][row["id"]] | by_id[1][row["id"]] for row in rows if all(row["id"] in t for t in by_id)]


def with_crops(pair: dict[str, Any], min_crop_score: float, at_least_one: bool = False) -> dict[str, Any]:
    """The pair with only those crops that reach the threshold; with `at_least_one`, else the best."""
    offsets, scores = pair["crop_offsets"], pair["crop_scores"]
    kept = [offset for offset, score in zip(offsets, scores, strict=True) if score >= min_crop_score]
    if at_least_one and not kept:
        kept = [offsets[int(np.argmax(scores))]]
    return pair | {"crop_offsets": kept}


def check_recordings(pairs: list[dict[str, Any]]) -> None:
    """Raises ValueError when clips of one recording are in two splits."""
    seen: dict[str, str] = {}
    mixed = {p["recording_id"] for p in pairs if seen.setdefault(p["recording_id"], p["split"]) != p["split"]}
    if mixed:
        names = ", ".join(sorted(mixed)[:5])
        raise ValueError(f"{len(mixed)} recordings are in two splits: {names}; give all their clips one split")


def _some(pairs: list[dict[str, Any]], count: int | None, seed: list[int]) -> list[dict[str, Any]]:
    """`count` pairs drawn at random, in their old order; all of them for None."""
    if count is None or count >= len(pairs):
        return pairs
    chosen = np.random.default_rng(seed).permutation(len(pairs))[:count]
    return [pairs[index] for index in sorted(chosen)]


def _enough(pairs: list[dict[str, Any]], train: list[dict[str, Any]], wanted: int, name: str, settings: Select) -> None:
    if len(pairs) >= wanted:
        return
    left = f"{len(pairs)} of {len(train)} train pairs are left"
    message = f"filter.select: {name} needs {wanted} pairs; {left}"
    best = sorted((min(pair["score"], max(pair["crop_scores"])) for pair in train), reverse=True)
    if wanted > len(best):
        raise ValueError(f"{message}; no threshold would do, collect more or lower it to at most {len(best)}")
    threshold = np.floor(best[wanted - 1] * 1000) / 1000
    raise ValueError(
        f"{message} with min_score {settings.min_score:g} and min_crop_score {settings.min_crop_score:g}; "
        f"both at {threshold:g} would do"
    )
