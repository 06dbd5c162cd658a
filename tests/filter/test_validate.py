"""The data gate: sound tables pass, each kind of damage is found, and the rows are named."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from siren import config as settings
from siren.filter import validate as gate
from siren.shards import QUARANTINE_SCHEMA

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of great_expectations and what it imports
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*distutils.*:UserWarning"),
]
CONFIG = settings.load(Path(__file__).resolve().parents[2] / "params.yaml")
NAMES = ["a", "b", "c", "d", "e"]
SPLITS = ["train", "train", "train", "val", "test"]


def quarantine(*rows: tuple[str, str]) -> pa.Table:
    return pa.Table.from_pylist(
        [{"item": i, "reason": r, "stage": "segment", "detail": "d"} for i, r in rows], QUARANTINE_SCHEMA
    )


def corpus() -> gate.Corpus:
    """Seven clips: one lost in fetch, one in segment; segment e-000's clip has a second piece that was silent."""
    clips = {"id": [*NAMES, "f"], "path": [f"audio/{name}" for name in [*NAMES, "f"]], "split": [*SPLITS, "train"]}
    clips |= {"start": [None] * 6, "end": [1.5, 2.5, *[None] * 4]}
    clips |= {"captions": [["x"]] * 6, "labels": [["dog"]] * 6, "recording_id": [*NAMES, "f"]}
    clips |= {"source": ["s"] * 6, "licence": ["CC0-1.0"] * 6, "sha256": ["0" * 64] * 6}
    ids = [f"{name}-000" for name in NAMES]
    segments = {"id": ids, "clip_id": NAMES, "recording_id": NAMES, "num_samples": [16000] * 5, "snr_db": [20.0] * 5}
    pairs = {"id": ids, "caption": ["a dog"] * 5, "recording_id": NAMES, "score": [0.5] * 5, "crop_offsets": [[0]] * 5}
    table = pa.table(pairs)
    return gate.Corpus(
        clips=pa.table(clips),
        segments=pa.table(segments | {"split": SPLITS}),
        captions=pa.table({"id": ids, "caption": ["a dog"] * 5, "candidates": [["a dog"]] * 5}),
        scores=pa.table({"id": ids, "score": [0.5] * 5, "crop_offsets": [[0]] * 5, "crop_scores": [[0.5]] * 5}),
        splits={"stage1": table[:3], "rl": table[:1], "val": table[3:4], "test": table[4:]},
        quarantined={
            "fetch": quarantine(("g", "missing_file")),
            "segment": quarantine(("f-000", "low_snr"), ("e-001", "silent")),
            "caption": quarantine(),
            "score": quarantine(),
        },
        fetched=7,
    )


def relaxed(share: float) -> settings.Config:
    filters = dataclasses.replace(CONFIG.filter, validate=settings.Validate(max_quarantined=share))
    return dataclasses.replace(CONFIG, filter=filters)


def put(table: pa.Table, column: str, row: int, value: Any) -> pa.Table:
    values = table[column].to_pylist()
    values[row] = value
    return table.set_column(table.column_names.index(column), column, [values])


def damaged(table: str, column: str, row: int, value: Any) -> Callable[[gate.Corpus], gate.Corpus]:
    return lambda c: dataclasses.replace(c, **{table: put(getattr(c, table), column, row, value)})


def in_split(split: str, column: str, value: Any) -> Callable[[gate.Corpus], gate.Corpus]:
    return lambda c: dataclasses.replace(c, splits=c.splits | {split: put(c.splits[split], column, 0, value)})


def test_a_clip_without_any_text_is_for_a_captioner_that_hears() -> None:
    def bare(table: pa.Table) -> pa.Table:
        return put(put(table, "captions", 0, []), "labels", 0, [])

    lacking = dataclasses.replace(corpus(), clips=bare(corpus().clips))
    with pytest.raises(gate.GateError, match=r"clips: .*num_texts.*a \(0\)"):
        gate.gate(gate.validate(lacking, relaxed(0.5)))
    hearing = dataclasses.replace(
        relaxed(0.5).filter, caption=settings.Caption("autocap", None, None, settings.BeamSearch("elsewhere", 1, 1))
    )
    gate.gate(gate.validate(lacking, dataclasses.replace(CONFIG, filter=hearing)))


def test_two_parts_of_one_file_are_two_clips() -> None:
    one_file = damaged("clips", "path", 1, "audio/a")(corpus())
    gate.gate(gate.validate(one_file, relaxed(0.5)))
    with pytest.raises(gate.GateError, match=r"clips: expect_column_values_to_be_unique .*part.*: 2 of 6"):
        gate.gate(gate.validate(damaged("clips", "end", 1, 1.5)(one_file), relaxed(0.5)))


DAMAGE: dict[str, tuple[Callable[[gate.Corpus], gate.Corpus], str]] = {
    "two clips of one id": (
        damaged("clips", "id", 1, "a"),
        r"clips: expect_column_values_to_be_unique .*: 2 of 6 .*a, a",
    ),
    "an unknown split": (damaged("clips", "split", 2, "dev"), r"clips: .*be_in_set .*c \(dev\)"),
    "too many samples": (damaged("segments", "num_samples", 3, 30000), r"segments: .*d-000 \(30000\)"),
    "too few samples": (damaged("segments", "num_samples", 3, 1), r"segments: .*num_samples.*d-000 \(1\)"),
    "below the noise gate": (damaged("segments", "snr_db", 0, 2.0), r"segments: .*snr_db.*a-000 \(2.0\)"),
    "an empty caption": (damaged("captions", "caption", 1, ""), r"captions: .*match_regex.*b-000"),
    "no caption": (damaged("captions", "caption", 1, None), r"captions: .*not_be_null.*b-000"),
    "a cosine of 1.2": (damaged("scores", "score", 4, 1.2), r"scores: .*e-000 \(1.2\)"),
    "a score that is no number": (damaged("scores", "score", 4, float("nan")), r"scores: .*not_be_null.*e-000"),
    "no crop": (in_split("val", "crop_offsets", []), r"splits: .*num_crop_offsets"),
    "an empty caption in a split": (in_split("rl", "caption", " "), r"splits: .*match_regex.*a-000"),
    "a recording in two splits": (in_split("test", "recording_id", "a"), r"recordings: .*a \(2\)"),
    "an empty split": (
        lambda c: dataclasses.replace(c, splits=c.splits | {"val": c.splits["val"][:0]}),
        r"sizes: .*val \(0\)",
    ),
    "a pair twice in a split": (
        lambda c: dataclasses.replace(c, splits=c.splits | {"rl": pa.concat_tables([c.splits["rl"]] * 2)}),
        r"splits: expect_compound_columns_to_be_unique",
    ),
    "a clip that went nowhere": (
        lambda c: dataclasses.replace(c, quarantined=c.quarantined | {"segment": quarantine(("e-001", "silent"))}),
        r"accounting: .*lost.*segment \(1\)",
    ),
    "a clip without licence": (damaged("clips", "licence", 3, None), r"clips: .*not_be_null .*licence.*: 1 of 6 .*d"),
    "a hash that is none": (damaged("clips", "sha256", 3, "x"), r"clips: .*match_regex .*sha256.*d \(x\)"),
    "a segment of no clip": (
        damaged("segments", "clip_id", 2, "z"),
        r"segments: .*has_clip.*: 1 of 5 rows, e.g. c-000",
    ),
    "a caption of no segment": (damaged("captions", "id", 2, "z"), r"captions: .*has_segment.*: 1 of 5 rows, e.g. z"),
    "a score of no caption": (damaged("scores", "id", 2, "z"), r"scores: .*has_caption.*: 1 of 5 rows, e.g. z"),
    "a pair of no score": (in_split("rl", "id", "z"), r"splits: .*has_score.*: 1 of 6 rows, e.g. z"),
    "a whole list of clips that could not be read": (
        lambda c: dataclasses.replace(
            c, quarantined=c.quarantined | {"fetch": quarantine(("manifest.csv", "bad_manifest"))}
        ),
        r"quarantine: .*not_be_in_set .*e.g. manifest.csv \(bad_manifest\)",
    ),
    "a quarantine row that says nothing": (
        lambda c: dataclasses.replace(c, quarantined=c.quarantined | {"fetch": quarantine(("g", ""))}),
        r"quarantine: .*match_regex .*reason.*: 1 of 3 rows, e.g. g",
    ),
    "a segment without caption or reason": (
        lambda c: dataclasses.replace(c, captions=c.captions[:4], scores=c.scores[:4]),
        r"accounting: .*lost.*caption \(1\)",
    ),
}


def test_sound_tables_pass() -> None:
    report = gate.validate(corpus(), relaxed(0.3))
    gate.gate(report)
    assert len(report.checks) == 44


def test_the_report_is_the_same_bytes_each_time_and_links_only_to_itself(tmp_path: Path) -> None:
    frames = gate.tables(corpus())
    for name in ("a", "b"):
        gate.write(gate.hold({table: frames[table] for table in ("clips", "sizes")}, relaxed(0.3)), tmp_path / name)
    first, second = (sorted((tmp_path / name).iterdir()) for name in ("a", "b"))
    assert {path.name for path in first} == {"index.html", "checks.json", "clips.html", "sizes.html"}
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    page = (tmp_path / "a" / "clips.html").read_text()
    assert "Great Expectations" in page
    assert {link for link in re.findall(r'href="([^"]*)"', page) if link[0] != "#"} == {"index.html"}
    for path in first:  # nothing is fetched, so that they open without a network
        assert not re.search(r"src=|@import|url\(|https?:|<script|<link", path.read_text())
    assert "all 10 demands hold" in (tmp_path / "a" / "index.html").read_text()
    assert len(json.loads((tmp_path / "a" / "checks.json").read_text())) == 10


@pytest.mark.parametrize("damage", DAMAGE)
def test_every_damage_stops_the_pipeline_and_names_the_rows(damage: str) -> None:
    break_it, message = DAMAGE[damage]
    frames = gate.tables(break_it(corpus()))
    table = message.partition(":")[0]
    report = gate.hold({table: frames[table]}, relaxed(0.3))
    with pytest.raises(gate.GateError, match=message):
        gate.gate(report)


def tokens() -> tuple[dict[str, pa.Table], dict[str, str]]:
    """Shards of the splits above: 2 codebooks, 10 frames, text states of width 4."""
    about = {"num_codebooks": "2", "text_width": "4"}
    rows = {"codes": bytes(40), "num_frames": 8, "text": bytes(3 * 8), "text_length": 3, "crop_offsets": [0]}
    splits = {
        name: [{"id": row["id"], "caption": row["caption"], **rows} for row in table.to_pylist()]
        for name, table in corpus().splits.items()
    }
    return {name: pa.Table.from_pylist(rows) for name, rows in splits.items()}, about


TOKEN_DAMAGE = {
    "codes cut off": ("codes", bytes(39), r"tokens: .*frame_part.*: 1 of 6 rows, e.g. a-000"),
    "more frames than codes": ("num_frames", 11, r"tokens: .*padding.*: 1 of 6 rows, e.g. a-000 \(-1"),
    "no frame": ("num_frames", 0, r"tokens: .*num_frames.*a-000 \(0\)"),
    "text states cut off": ("text", bytes(16), r"tokens: .*missing_states.*a-000 \(1"),
    "no text": ("text_length", 0, r"tokens: .*text_length.*a-000 \(0\)"),
    "no crop": ("crop_offsets", [], r"tokens: .*num_crop_offsets.*a-000 \(0\)"),
    "an empty caption": ("caption", "", r"tokens: .*caption.*a-000"),
    "another pair": ("id", "z", None),
}


@pytest.mark.parametrize("damage", TOKEN_DAMAGE)
def test_the_index_of_tokens_is_held_against_the_pairs(damage: str) -> None:
    column, value, message = TOKEN_DAMAGE[damage]
    made, about = tokens()
    splits = corpus().splits
    gate.gate(gate.hold_tokens(made, about, splits, relaxed(0.3)))
    made["stage1"] = put(made["stage1"], column, 0, value) if message else made["stage1"][1:]
    with pytest.raises(gate.GateError, match=message or r"token_splits: .*lost.*: 1 of 4 rows, e.g. stage1 \(1\)"):
        gate.gate(gate.hold_tokens(made, about, splits, relaxed(0.3)))


def test_failing_rows_are_named_up_to_a_limit_and_counted() -> None:
    many = 100
    clips = {"id": [f"c{n}" for n in range(many)], "part": [f"p{n}" for n in range(many)], "split": ["dev"] * many}
    clips |= {name: ["x"] * many for name in ("recording_id", "source", "licence")}
    frames = {"clips": pa.table(clips | {"sha256": ["0" * 64] * many, "num_texts": [1] * many}).to_pandas()}
    with pytest.raises(gate.GateError, match=r"be_in_set .*: 100 of 100 rows, e.g. c0 \(dev\), .*, and 80 more$"):
        gate.gate(gate.hold(frames, relaxed(0.3)))


def test_a_piece_named_like_another_clip_is_counted_as_what_it_is() -> None:
    c = corpus()
    clips = put(put(c.clips, "id", 4, "f-000"), "path", 4, "audio/f-000")  # and the clip "f" has lost its piece f-000
    segments = put(put(c.segments, "clip_id", 4, "f-000"), "id", 4, "f-000-000")
    rows = gate.accounting(dataclasses.replace(c, clips=clips, segments=segments)).to_dict("records")
    assert (rows[1]["went_out"], rows[1]["quarantined"], rows[1]["lost"]) == (5, 1, 0)


def test_too_much_in_quarantine_stops_the_pipeline(tmp_path: Path) -> None:
    report = gate.hold({"accounting": gate.accounting(corpus())}, relaxed(0.2))  # two of seven are 0.29
    with pytest.raises(gate.GateError, match=r"accounting: .*share_quarantined.*: 1 of 4 rows, e.g. segment \(0.28"):
        gate.gate(report)
    gate.write(report, tmp_path)
    assert "1 of 2 demands fail" in (tmp_path / "index.html").read_text()


def test_accounting_adds_up() -> None:
    rows = gate.accounting(corpus()).to_dict("records")
    found = [tuple(row[key] for key in ("stage", "came_in", "went_out", "quarantined", "lost")) for row in rows]
    assert found == [("fetch", 7, 6, 1, 0), ("segment", 6, 5, 1, 0), ("caption", 5, 5, 0, 0), ("score", 5, 5, 0, 0)]
