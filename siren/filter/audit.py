"""What became of the corpus: the funnel from clips to pairs, whose sounds they are, and one item's whole history.

Works on however many of the tables there are, so that it can be asked while the pipeline is still running. Counting is
Arrow's, column by column: at the paper's size there are millions of segments.
"""

import difflib
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from siren.config import Select
from siren.filter import select

TIERS = (0.40, 0.35)  # tau of the paper's two corpora
LONG = 400  # characters after which a value is cut


@dataclass(frozen=True)
class Tables:
    """The tables of the data stages; None where a stage has not run."""

    fetched: int | None = None  # what fetch started from
    clips: pa.Table | None = None
    segments: pa.Table | None = None  # pcm is not needed
    captions: pa.Table | None = None
    scores: pa.Table | None = None
    splits: dict[str, pa.Table] = field(default_factory=dict)
    tokens: dict[str, pa.Table] = field(default_factory=dict)  # split → id, num_frames, text_length, crop_offsets
    quarantined: dict[str, pa.Table] = field(default_factory=dict)  # stage → its quarantine


@dataclass(frozen=True)
class Audit:
    funnel: list[tuple[str, int, float]]  # step, items, hours (0 where unknown)
    sources: list[dict[str, Any]]  # clips, segments, captioned, kept and hours of each source
    licences: list[dict[str, Any]]
    quarantined: list[dict[str, Any]]  # stage, reason, items

    def to_dict(self) -> dict[str, Any]:
        funnel = [dict(zip(("step", "items", "hours"), row, strict=True)) for row in self.funnel]
        return {"funnel": funnel, **{k: getattr(self, k) for k in ("sources", "licences", "quarantined")}}


def audit(tables: Tables, sample_rate: int, thresholds: Sequence[float], settings: Select) -> Audit:
    """Count everything. `thresholds`: the taus to count for, with the other rules of `settings`."""
    hours = _hours(tables.segments, sample_rate)
    funnel: list[tuple[str, int, float]] = []

    def step(name: str, ids: pa.ChunkedArray | None) -> None:
        if ids is not None:
            funnel.append((name, len(ids), _sum_hours(hours, ids)))

    if tables.fetched is not None:
        funnel.append(("found in the sources", tables.fetched, 0.0))
    step("clips", _ids(tables.clips))
    step("segments", _ids(tables.segments))
    step("captioned", _ids(tables.captions))
    step("scored", _ids(tables.scores))
    if (train := passing(tables, settings, sample_rate)) is not None:
        for tau in sorted(set(thresholds)):
            step(f"kept at tau {tau:g}", kept(train, tau))
    for name, table in tables.splits.items():
        step(f"split {name}", _ids(table))
    if tables.tokens:
        step("with tokens", pc.unique(pa.chunked_array([c for t in tables.tokens.values() for c in t["id"].chunks])))
    quarantined = [
        {"stage": stage, "reason": row["reason"], "items": row["reason_count"]}
        for stage, table in tables.quarantined.items()
        for row in sorted(
            table.group_by("reason").aggregate([("reason", "count")]).to_pylist(), key=lambda row: -row["reason_count"]
        )
    ]
    return Audit(funnel, _by("source", tables, hours), _by("licence", tables, hours), quarantined)


def passing(tables: Tables, settings: Select, sample_rate: int) -> pa.Table | None:
    """Id and score of the train segments that pass all rules of `select` but its threshold."""
    if tables.scores is None or tables.segments is None:
        return None
    segments = tables.segments.select(["id", "split", "num_samples"])
    pairs = select.join(segments, tables.scores.select(["id", "caption", "score", "crop_scores"]))
    return pairs.select(["id", "score"]).filter(pa.array(select.passing(pairs, settings, sample_rate)))


def kept(train: pa.Table, tau: float) -> pa.ChunkedArray:
    """Ids of those that a threshold keeps, as `select` keeps them."""
    return train.filter(pc.greater_equal(pc.cast(train["score"], pa.float64()), tau))["id"]


def _ids(table: pa.Table | None) -> pa.ChunkedArray | None:
    return None if table is None else table["id"]


def _hours(segments: pa.Table | None, sample_rate: int) -> pa.Table | None:
    """Hours of sound of each segment, without padding: id, hours."""
    if segments is None:
        return None
    seconds = pc.divide(pc.cast(segments["num_samples"], pa.float64()), float(sample_rate))
    return pa.table({"id": segments["id"], "hours": pc.divide(seconds, 3600.0)})


def _sum_hours(hours: pa.Table | None, ids: pa.ChunkedArray) -> float:
    if hours is None:
        return 0.0
    return pc.sum(hours.filter(pc.is_in(hours["id"], ids))["hours"]).as_py() or 0.0


def _by(column: str, tables: Tables, hours: pa.Table | None) -> list[dict[str, Any]]:
    """Clips, segments, hours, captioned and stage-1 pairs for each value of a column that clips and segments have."""
    counts: dict[str, dict[str, Any]] = {}

    def add(name: str, table: pa.Table | None, what: tuple[str, str] = ("id", "count")) -> None:
        if table is not None:
            for row in table.group_by(column).aggregate([what]).to_pylist():
                counts.setdefault(row[column], {})[name] = row["_".join(what)]

    def among(others: pa.Table | None) -> pa.Table | None:
        if tables.segments is None or others is None:
            return None
        return tables.segments.filter(pc.is_in(tables.segments["id"], others["id"]))

    add("clips", tables.clips)
    add("segments", tables.segments)
    if tables.segments is not None and hours is not None:
        add("hours", tables.segments.append_column("hours", hours["hours"]), ("hours", "sum"))
    add("captioned", among(tables.captions))
    add("stage1", among(tables.splits.get("stage1")))
    return [{column: key, **counts[key]} for key in sorted(counts, key=str)]


def history(tables: Tables, name: str, settings: Select, sample_rate: int) -> list[tuple[str, dict[str, Any]]]:
    """(stage, what it says) of everything about an item: a clip's or a segment's id, or an item in quarantine.

    For a clip all its segments are told, for a segment its clip and itself. Raises ValueError, naming near ones, for an
    id that no table has.
    """
    clips, segments = _rows(tables.clips, "id", [name]), _rows(tables.segments, "id", [name])
    if segments:
        clips = _rows(tables.clips, "id", [segments[0]["clip_id"]])
    elif clips:
        segments = _rows(tables.segments, "clip_id", [name])
    names = [name, *(row["id"] for row in segments)]
    story = [("fetch", row) for row in clips]
    for stage, table in tables.quarantined.items():
        items = [row for row in table.to_pylist() if row["item"] in names or (clips and _piece(row["item"], name))]
        story += [(f"{stage}: quarantined", {key: row[key] for key in ("item", "reason", "detail")}) for row in items]
    if len(clips) == 1 and clips[0]["recording_id"]:
        others = [row["id"] for row in _rows(tables.clips, "recording_id", [clips[0]["recording_id"]])]
        if len(others) > 1:
            story.append(("same recording", {"clips": [other for other in others if other != clips[0]["id"]]}))
    for segment in segments:
        own = [segment["id"]]
        story.append(("segment", segment))
        story += [("caption", told(row)) for row in _rows(tables.captions, "id", own)]
        story += [("score", row) for row in _rows(tables.scores, "id", own)]
        for split, table in tables.splits.items():
            columns = ("id", "caption", "score", "crop_offsets")
            story += [(f"select: {split}", {key: row[key] for key in columns}) for row in _rows(table, "id", own)]
        if tables.splits and story[-1][0] == "score":
            story.append(("select: in no split", _left_out(segment, story[-1][1], settings, sample_rate)))
        for split, table in tables.tokens.items():
            story += [(f"tokenize: {split}", row) for row in _rows(table, "id", own)]
    if not story:
        raise ValueError(f"nothing in data/ is called {name!r}{_near(tables, name)}")
    return story


def _left_out(segment: dict[str, Any], score: dict[str, Any], settings: Select, sample_rate: int) -> dict[str, Any]:
    """Scores of a pair that is in no split, and for train the rules that it fails; none where others were drawn."""
    best = max(score["crop_scores"], default=None)
    pair = pa.table({"caption": pa.array([score["caption"]], pa.string()), "num_samples": [segment["num_samples"]]})
    passes = {name: mask[0] for name, mask in select.rules(pair, settings, sample_rate).items()}
    passes["above_min_score"] = score["score"] >= settings.min_score
    passes["with_a_good_crop"] = best is not None and best >= settings.min_crop_score
    fails = [name for name, holds in passes.items() if not holds and segment["split"] == "train"]
    return {"score": score["score"], "best_crop_score": best, "fails": fails or None}


def told(row: dict[str, Any]) -> dict[str, Any]:
    """A row of captions with the history of each candidate in one line: as it came → what each rule made of it."""
    facts = {name: value for name, value in row.items() if name != "history"}
    for number, candidate in enumerate(row.get("history") or (), 1):
        steps = [f"{step['rule']}: {_quoted(step['text'])}" for step in candidate["steps"]]
        came = _quoted(candidate["raw"]) if candidate["raw"] is not None else f"missing, {candidate['missing']}"
        facts[f"candidate {number} ({candidate['origin']})"] = " → ".join([came, *steps])
    return facts


def _quoted(text: str | None) -> str:
    return "removed" if text is None else repr(text)


def _rows(table: pa.Table | None, column: str, names: Sequence[str]) -> list[dict[str, Any]]:
    return [] if table is None else table.filter(pc.is_in(table[column], pa.array(names, pa.string()))).to_pylist()


def _piece(item: str, clip: str) -> bool:
    """Whether an item in quarantine is a piece of this clip, as `segment` names them."""
    return re.fullmatch(re.escape(clip) + r"-\d{3,}", item) is not None


def _near(tables: Tables, name: str) -> str:
    columns = [table["id"] for table in (tables.clips, tables.segments) if table is not None]
    columns += [table["item"] for table in tables.quarantined.values()]
    holding = [column.filter(pc.match_substring(column, name, ignore_case=True)).to_pylist() for column in columns]
    near = list(itertools.islice(itertools.chain(*holding), 3))
    near = near or difflib.get_close_matches(name, list(itertools.chain(*(c[:20000].to_pylist() for c in columns))))
    return f"; there is {', '.join(map(repr, near))}" if near else "; run the stage `fetch` first"


def text(value: Any) -> str:
    """A value of a table for people: short numbers, lists without brackets, nothing endless."""
    if isinstance(value, list):
        shown = ", ".join(map(text, value))
    else:
        shown = f"{value:.4g}" if isinstance(value, float) else str(value)
    return shown if len(shown) <= LONG else f"{shown[:LONG]} ..."
