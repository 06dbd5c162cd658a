"""The audit counts what select keeps, tells an item's whole history, and works while tables are still missing."""

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from siren import shards
from siren.collect.segment import SCHEMA as SEGMENTS
from siren.collect.sources import CLIPS_SCHEMA
from siren.config import Select
from siren.filter import audit, caption, score, select
from siren.filter.audit import Tables

RATE = 16000
RULES = Select(0.0, 0.2, None, 0, False, 1, None)


def table(schema: pa.Schema, rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist([dict.fromkeys(schema.names) | row for row in rows], schema=schema)


def quarantine(*rows: tuple[str, str]) -> pa.Table:
    made = [{"item": item, "stage": "s", "reason": reason, "detail": f"why {item}"} for item, reason in rows]
    return pa.Table.from_pylist(made, schema=shards.QUARANTINE_SCHEMA)


@pytest.fixture
def tables() -> Tables:
    clips = [
        {"id": "a", "source": "bbc", "licence": "RemArc", "recording_id": "r1"},
        {"id": "b", "source": "esc50", "licence": "CC0-1.0", "recording_id": "r1"},
        {"id": "c", "source": "esc50", "licence": "CC-BY-3.0", "recording_id": "r2"},
    ]
    segments = [
        {"id": f"{clip}-00{n}", "clip_id": clip, "num_samples": count, "split": split, "recording_id": "r1"}
        | {"source": {"a": "bbc", "b": "esc50"}[clip], "licence": {"a": "RemArc", "b": "CC0-1.0"}[clip]}
        for clip, n, count, split in (("a", 0, 160000, "train"), ("a", 2, 80000, "train"), ("b", 0, 160000, "test"))
    ]
    captions = [{"id": name, "caption": f"sound {name}", "captioner": "human"} for name in ("a-000", "a-002", "b-000")]
    scores = [
        {"id": "a-000", "score": 0.5, "crop_offsets": [0, 1], "crop_scores": [0.1, 0.3]},
        {"id": "a-002", "caption": "sounds", "score": 0.37, "crop_offsets": [0], "crop_scores": [0.37]},
        {"id": "b-000", "score": 0.9, "crop_offsets": [0], "crop_scores": [0.9]},
    ]
    return Tables(
        fetched=4,
        clips=table(CLIPS_SCHEMA, clips),
        segments=table(SEGMENTS, segments),
        captions=table(caption.SCHEMA, captions),
        scores=table(score.SCHEMA, scores),
        splits={"stage1": table(select.SCHEMA, [{"id": "a-000", "caption": "sound a", "score": 0.5}])},
        tokens={
            "stage1": pa.table({"id": ["a-000"], "num_frames": [500], "text_length": [7], "crop_offsets": [[0, 50]]})
        },
        quarantined={
            "fetch": quarantine(("d", "not_found")),
            "segment": quarantine(("a-001", "silent"), ("c", "too_short"), ("x", "silent")),
        },
    )


def test_the_funnel_by_hand(tables: Tables) -> None:
    found = audit.audit(tables, RATE, (0.4, 0.35), RULES)
    assert [(name, count) for name, count, _ in found.funnel] == [
        ("found in the sources", 4),
        ("clips", 3),
        ("segments", 3),
        ("captioned", 3),
        ("scored", 3),
        ("kept at tau 0.35", 2),
        ("kept at tau 0.4", 1),
        ("split stage1", 1),
        ("with tokens", 1),
    ]
    hours = {name: hours * 3600 for name, _, hours in found.funnel}
    assert (hours["segments"], hours["kept at tau 0.35"], hours["split stage1"]) == pytest.approx((25, 15, 10))
    assert found.sources == [
        {"source": "bbc", "clips": 1, "segments": 2, "hours": pytest.approx(15 / 3600), "captioned": 2, "stage1": 1},
        {"source": "esc50", "clips": 2, "segments": 1, "hours": pytest.approx(10 / 3600), "captioned": 1},
    ]
    assert [(row["licence"], row["clips"]) for row in found.licences] == [
        ("CC-BY-3.0", 1),
        ("CC0-1.0", 1),
        ("RemArc", 1),
    ]
    assert [tuple(row.values()) for row in found.quarantined] == [
        ("fetch", "not_found", 1),
        ("segment", "silent", 2),
        ("segment", "too_short", 1),
    ]


@pytest.mark.parametrize("rules", [RULES, dataclasses.replace(RULES, drop_words=("dog",), min_seconds=1.0)])
def test_it_counts_what_select_keeps(rules: Select) -> None:
    generator = np.random.default_rng(0)
    names = [f"s{number}" for number in range(300)]
    segments = [
        {"id": name, "recording_id": name, "num_samples": RATE - (number % 7 == 6)}
        | {"split": ("test", "val", *["train"] * 8)[number % 10]}
        for number, name in enumerate(names)
    ]
    scores = [
        {"id": name, "score": s, "crop_offsets": list(range(count)), "crop_scores": generator.uniform(-0.2, 0.5, count)}
        | {"caption": "dogs bark" if int(name[1:]) % 3 else "rain"}
        for name, s, count in zip(names, generator.uniform(0, 0.7, 300), generator.integers(1, 5, 300), strict=True)
    ]
    made = Tables(
        segments=table(SEGMENTS, segments),
        captions=table(caption.SCHEMA, [{"id": name, "caption": "x"} for name in names]),
        scores=table(score.SCHEMA, scores),
    )
    for tau in (0.0, 0.35, 0.4, 0.6):
        splits, _ = select.select(made.segments, made.scores, dataclasses.replace(rules, min_score=tau), 0, RATE)
        train = audit.passing(made, rules, RATE)
        assert train is not None
        assert audit.kept(train, tau).to_pylist() == splits["stage1"]["id"].to_pylist()


@pytest.mark.parametrize("missing", ["clips", "segments", "captions", "scores"])
def test_it_works_on_the_tables_that_there_are(tables: Tables, missing: str) -> None:
    some = Tables(**{**vars(tables), missing: None})
    found = audit.audit(some, RATE, (0.4,), RULES)
    assert found.quarantined
    assert audit.audit(Tables(), RATE, (0.4,), RULES).funnel == []


def test_a_clips_history_has_its_pieces_its_rejects_and_its_recording(tables: Tables) -> None:
    story = audit.history(tables, "a", RULES, RATE)
    assert [stage for stage, _ in story] == [
        "fetch",
        "segment: quarantined",
        "same recording",
        *["segment", "caption", "score", "select: stage1", "tokenize: stage1"],
        *["segment", "caption", "score", "select: in no split"],
    ]
    scores = {"score": pytest.approx(0.37), "best_crop_score": pytest.approx(0.37)}
    assert story[-1][1] == scores | {"fails": None}
    rules = dataclasses.replace(RULES, min_score=0.4, drop_words=("sound",), min_seconds=5.5)
    why = ["without_drop_words", "of_min_seconds", "above_min_score"]
    assert audit.history(tables, "a-002", rules, RATE)[-1][1] == scores | {"fails": why}
    assert story[1][1] == {"item": "a-001", "reason": "silent", "detail": "why a-001"}
    assert story[2][1] == {"clips": ["b"]}


def test_a_segment_and_an_item_in_quarantine_are_found_too(tables: Tables) -> None:
    assert [
        row["id"] for stage, row in audit.history(tables, "a-002", RULES, RATE) if stage in ("fetch", "segment")
    ] == [
        "a",
        "a-002",
    ]
    assert audit.history(tables, "d", RULES, RATE) == [
        ("fetch: quarantined", {"item": "d", "reason": "not_found", "detail": "why d"})
    ]
    with pytest.raises(ValueError, match="there is 'b-000'"):
        audit.history(tables, "B-0", RULES, RATE)
    with pytest.raises(ValueError, match="run the stage `fetch`"):
        audit.history(Tables(), "a", RULES, RATE)


def test_values_are_shown_short() -> None:
    assert audit.text([0.123456, "x", 3]) == "0.1235, x, 3"
    assert len(audit.text("x" * 5000)) < 500


def test_the_history_tells_what_every_rule_made_of_each_candidate(tables: Tables) -> None:
    steps = [{"rule": "opening", "text": "a dog barks."}, {"rule": "final_stop", "text": "a dog barks"}]
    lost = {"rule": "refusal", "text": None}
    history = [
        {"origin": "qwen2-audio", "raw": "The audio contains a dog barks.", "missing": None, "steps": steps},
        {"origin": "qwen2-audio", "raw": "I'm sorry", "missing": None, "steps": [lost]},
        {"origin": "qwen2-audio", "raw": None, "missing": "timeout: no answer", "steps": []},
    ]
    row = {"id": "a-000", "caption": "a dog barks", "captioner": "qwen2-audio", "history": history}
    found = audit.history(dataclasses.replace(tables, captions=table(caption.SCHEMA, [row])), "a-000", RULES, RATE)
    facts = dict(found)["caption"]
    assert "history" not in facts
    assert [facts[f"candidate {n} (qwen2-audio)"] for n in (1, 2, 3)] == [
        "'The audio contains a dog barks.' → opening: 'a dog barks.' → final_stop: 'a dog barks'",
        '"I\'m sorry" → refusal: removed',
        "missing, timeout: no answer",
    ]
