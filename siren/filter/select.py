"""Scores to splits: the stage-1 corpus by threshold, the best of it for alignment, validation and test.

Train pairs are kept at or above `min_score` (the paper's tau: 0.40 at 1.6B, 0.35 at 3.1B), with their crops at or above
`min_crop_score` (at least one). The best of them are the prompts of alignment; with `reserve_rl` they are trained on
nowhere else. The paper does so, by its figures: of 117K pairs 1K go to alignment, and 116K are what the 320K of the
lower threshold join to make 436K. Validation and test are not filtered by score, which would make the task easier; of
their crops the best is kept where all are below the threshold. No recording may be in two splits. Words that train's
captions shall not have (`drop_words`) and a least length of true sound (`min_seconds`) are filters of AutoReCap (arXiv
2406.19388); where they are not set, nothing asks for them.

Everything is a column, because there are millions of pairs. Shapes: N pairs.
"""

import re
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

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
SWEEP_SCHEMA = pa.schema(
    [("tau", pa.float64()), ("source", pa.string()), ("pairs", pa.int64()), ("hours", pa.float64())]
)
ALL = "all"  # the source that stands for all of them


def select(
    segments: pa.Table, scores: pa.Table, settings: Select, seed: int, sample_rate: int
) -> tuple[dict[str, pa.Table], dict[str, int]]:
    """The four splits (`SCHEMA`) and the funnel: how many pairs are left after each rule.

    Raises ValueError where there are fewer pairs than asked, saying how many there are and which threshold would do;
    and where a recording is in two splits.
    """
    pairs = join(segments, scores)
    check_recordings(pairs)
    split, score = np.array(pairs["split"].to_pylist(), object), pairs["score"].to_numpy()
    train = np.flatnonzero(split == "train")
    funnel = {"segments": segments.num_rows, "scored": pairs.num_rows, "train": len(train)}
    for name, mask in rules(pairs, settings, sample_rate).items():
        train = train[mask[train]]
        funnel[name] = len(train)
    above = train[score[train].astype(float) >= settings.min_score]
    funnel["above_min_score"] = len(above)
    good = above[best_crops(pairs)[above] >= settings.min_crop_score]
    funnel["with_a_good_crop"] = len(good)
    _enough(pairs, good, train, settings, funnel["train"] - len(train))
    if settings.reserve_rl:
        rl = _top(pairs, good, settings.rl_prompts)
        stage1 = _some(good[~np.isin(good, rl)], settings.max_pairs, [seed, 1])
    else:
        stage1 = _some(good, settings.max_pairs, [seed, 1])
        rl = _top(pairs, stage1, settings.rl_prompts)
    chosen = {"stage1": stage1, "rl": rl}
    for name, count, stream in (("val", settings.val_pairs, 2), ("test", settings.test_pairs, 3)):
        held = np.flatnonzero(split == name)
        if len(held) < (1 if count is None else count):
            raise ValueError(f"filter.select.{name}_pairs asks for {count or 1} pairs; split {name} has {len(held)}")
        chosen[name] = _some(held, count, [seed, stream])
    funnel |= {name: len(chosen[name]) for name in SPLITS}
    return {name: with_crops(pairs.take(chosen[name]), settings.min_crop_score) for name in SPLITS}, funnel


def passing(pairs: pa.Table, settings: Select, sample_rate: int) -> np.ndarray:
    """Train pairs that pass all rules but `min_score`. [N]"""
    masks = (best_crops(pairs) >= settings.min_crop_score, *rules(pairs, settings, sample_rate).values())
    return np.logical_and.reduce([pc.equal(pairs["split"], "train").to_numpy(), *masks])


def rules(pairs: pa.Table, settings: Select, sample_rate: int) -> dict[str, np.ndarray]:
    """Which pairs pass each rule that is set, but for scores; by the name that the funnel counts it under. [N] each"""
    found = {}
    if settings.drop_words:
        found["without_drop_words"] = ~holds_word(pairs["caption"], settings.drop_words)
    if settings.min_seconds:
        found["of_min_seconds"] = pairs["num_samples"].to_numpy() >= settings.min_seconds * sample_rate
    return found


def holds_word(captions: pa.ChunkedArray, words: Sequence[str]) -> np.ndarray:
    """Whether a caption has one of `words`, whole and in any case, or a regular plural of it. [N]

    A word ends where letters and digits end: "music" is in "Music-like" and in "music's", not in "musical". Plurals add
    s or es, and end in ies for y; irregular ones (people) and other forms (speaks, speaking) are words of their own.
    """
    plural = [f"{word[:-1]}(?:y|ys|ies)" if word[-1:] in "yY" else f"{word}(?:s|es)?" for word in words]
    either = "|".join(re.sub(r" ", r"\\s+", word) for word in plural)
    pattern = rf"(?:^|[^\pL\pN])(?:{either})(?:[^\pL\pN]|$)"
    return pc.fill_null(pc.match_substring_regex(captions, pattern, ignore_case=True), False).to_numpy()


def join(segments: pa.Table, scores: pa.Table) -> pa.Table:
    """Segments that have a score, in the order of `segments`, with the columns of both."""
    at = pc.index_in(segments["id"], scores["id"])
    found = segments.filter(pc.is_valid(at))
    rows = scores.take(pc.drop_null(at))
    for name in scores.column_names:
        if name != "id":
            found = found.append_column(name, rows[name])
    return found.combine_chunks()


def best_crops(pairs: pa.Table) -> np.ndarray:
    """The highest crop score of each pair. [N]"""
    flat, starts, lengths = _lists(pairs, "crop_scores")
    best = np.full(len(lengths), -np.inf)
    best[lengths > 0] = np.maximum.reduceat(flat, starts[lengths > 0]) if len(flat) else -np.inf
    return best


def with_crops(pairs: pa.Table, min_crop_score: float) -> pa.Table:
    """Pairs (`SCHEMA`) with those crops only that reach the threshold; else the best one."""
    scores, _, lengths = _lists(pairs, "crop_scores")
    owner = np.repeat(np.arange(len(lengths)), lengths)
    kept = scores.astype(float) >= min_crop_score
    lacking = np.bincount(owner[kept], minlength=len(lengths)) == 0
    # Crops of those that lack one, best first; the earliest of equal ones.
    order = np.flatnonzero(lacking[owner])
    order = order[np.lexsort((order, -scores[order], owner[order]))]
    kept[order[np.unique(owner[order], return_index=True)[1]]] = True
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owner[kept], minlength=len(lengths)))]).astype(np.int32)
    values = pc.list_flatten(pairs["crop_offsets"]).filter(pa.array(kept)).combine_chunks()
    crops = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)
    at = pairs.column_names.index("crop_offsets")
    return pairs.set_column(at, "crop_offsets", crops).select(SCHEMA.names).cast(SCHEMA)


def check_recordings(pairs: pa.Table) -> None:
    """Raises ValueError when clips of one recording are in two splits."""
    counts = pairs.select(["recording_id", "split"]).group_by("recording_id").aggregate([("split", "count_distinct")])
    mixed = counts.filter(pc.greater(counts["split_count_distinct"], 1))["recording_id"].to_pylist()
    if mixed:
        names = ", ".join(sorted(mixed)[:5])
        raise ValueError(f"{len(mixed)} recordings are in two splits: {names}; give all their clips one split")


def sweep(segments: pa.Table, scores: pa.Table, settings: Select, sample_rate: int) -> pa.Table:
    """What each threshold would keep of train: pairs and hours of sound, of all sources and of each (`SWEEP_SCHEMA`).

    Thresholds go from the lowest score to the highest in steps of 0.01; the other rules are those of `settings`.
    """
    pairs = join(segments, scores)
    pairs = pairs.filter(pa.array(passing(pairs, settings, sample_rate)))
    score, hours = pairs["score"].to_numpy().astype(float), pairs["num_samples"].to_numpy() / sample_rate / 3600
    sources = np.array(pairs["source"].to_pylist(), object)
    low, high = (np.floor(score.min() * 100), np.ceil(score.max() * 100)) if len(score) else (0, -1)
    taus = np.arange(int(low), int(high) + 1) / 100
    rows: list[tuple[float, str, int, float]] = []
    for source in (ALL, *sorted(set(sources))):
        own = np.ones(len(score), bool) if source == ALL else sources == source
        order = np.argsort(score[own])
        behind = np.append(np.cumsum(hours[own][order][::-1])[::-1], 0.0)  # hours from each pair to the best
        first = np.searchsorted(score[own][order], taus)
        counts, kept = own.sum() - first, behind[first]
        rows += [(t, source, int(n), round(float(h), 6)) for t, n, h in zip(taus, counts, kept, strict=True)]
    columns = zip(*rows, strict=True) if rows else ([], [], [], [])
    return pa.table([list(column) for column in columns], schema=SWEEP_SCHEMA)


def _lists(pairs: pa.Table, column: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All values of a list column, where each row's begin, and how many it has."""
    lengths = pc.fill_null(pc.list_value_length(pairs[column]), 0).to_numpy().astype(np.int64)
    return pc.list_flatten(pairs[column]).to_numpy(), np.cumsum(lengths) - lengths, lengths


def _some(rows: np.ndarray, count: int | None, seed: list[int]) -> np.ndarray:
    """`count` rows drawn at random, in their old order; all of them for None."""
    if count is None or count >= len(rows):
        return rows
    return rows[np.sort(np.random.default_rng(seed).permutation(len(rows))[:count])]


def _top(pairs: pa.Table, rows: np.ndarray, count: int) -> np.ndarray:
    """The `count` rows of the highest scores, best first; of equal ones by id."""
    some = pa.table({"row": rows, "score": pairs["score"].take(rows), "id": pairs["id"].take(rows)})
    order = pc.sort_indices(some, sort_keys=[("score", "descending"), ("id", "ascending")])
    return rows[order.to_numpy()[:count]]


def _enough(pairs: pa.Table, good: np.ndarray, train: np.ndarray, settings: Select, ruled_out: int) -> None:
    """Raises ValueError where fewer pairs are left than are asked for, with a threshold that would do."""
    rl, most = settings.rl_prompts, settings.max_pairs
    if settings.reserve_rl:
        wanted, name = rl + (1 if most is None else most), "max_pairs and the reserved rl_prompts" if most else "rl"
    elif most is None:
        wanted, name = max(1, rl), "rl_prompts" if rl else "stage 1"
    else:
        wanted, name = most, "max_pairs"
        if rl > most:
            raise ValueError(
                f"filter.select.rl_prompts is {rl}, but they are taken from the stage-1 corpus of "
                f"max_pairs {most}; raise max_pairs, lower rl_prompts, or set reserve_rl"
            )
    if len(good) >= wanted:
        return
    left = f"{len(good)} of {len(train)} train pairs are left"
    if ruled_out:
        left += f" (without the {ruled_out} that drop_words and min_seconds rule out)"
    message = f"filter.select: {name} needs {wanted} pairs; {left}"
    if wanted > len(train):
        raise ValueError(f"{message}; no threshold would do, collect more or lower it to at most {len(train)}")
    given = f"{message} with min_score {settings.min_score:g} and min_crop_score {settings.min_crop_score:g}; "
    score, crop = pairs["score"].to_numpy()[train].astype(float), best_crops(pairs)[train]
    cropped = np.sort(score[crop >= settings.min_crop_score])[::-1]
    if len(cropped) >= wanted:
        raise ValueError(f"{given}min_score at {_below(cropped[wanted - 1]):g} would do")
    both = np.sort(np.minimum(score, crop))[::-1]
    raise ValueError(f"{given}both at {_below(both[wanted - 1]):g} would do")


def _below(value: float) -> float:
    """To three digits, never above."""
    return float(np.floor(value * 1000) / 1000)
