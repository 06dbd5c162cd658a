"""Segments: one rate, one length, true lengths kept, and every clip accounted for."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from siren import audio, engine, shards
from siren.collect import segment
from siren.collect.sources import CLIPS_SCHEMA, SOURCES, collect
from siren.collect.sources.broken import BROKEN
from siren.config import Source
from tests.collect.builders import FORMAT, RULES, tone
from tests.tables import write_shards

REAL = Path(__file__).resolve().parents[2] / "../shared/data/real-sounds"


def clip(name: str, path: str, **values: Any) -> dict[str, Any]:
    row = dict.fromkeys(CLIPS_SCHEMA.names) | {"id": name, "path": path, "source": "t", "recording_id": name}
    return row | {"captions": ["a tone"], "labels": ["tone"], "licence": "CC0", "split": "train"} | values


def run(folder: Path, wav: np.ndarray, rate: int, subtype: str = "PCM_16", **values: Any) -> segment.Outcome:
    audio.write(folder / "a.wav", wav, rate, subtype)
    return segment.segment_clip(clip("a", "a.wav", **values), folder, RULES, FORMAT)


@pytest.mark.parametrize("kind", BROKEN)
def test_every_broken_file_ends_with_its_reason(tmp_path: Path, kind: str) -> None:
    suffix, reason, make = BROKEN[kind]
    make(tmp_path / f"a.{suffix}")
    outcome = segment.segment_clip(clip("a", f"a.{suffix}"), tmp_path, RULES, FORMAT)
    assert outcome.rows == []
    assert [row["reason"] for row in outcome.quarantine] == [reason]
    assert str(tmp_path) not in outcome.quarantine[0]["detail"]


@pytest.mark.parametrize(
    ("seconds", "lengths", "residue"),
    [
        (0.9, [14400], 0),
        (1.6, [25600], 0),
        (1.75, [25600], 0.15),
        (1.595, [25520], 0),
        (3.195, [25600, 25520], 0),
        (5.0, [25600] * 3, 0.2),
    ],
)
def test_cutting_padding_and_residue(tmp_path: Path, seconds: float, lengths: list[int], residue: float) -> None:
    outcome = run(tmp_path, tone(seconds), 16000)
    assert [row["num_samples"] for row in outcome.rows] == lengths
    assert outcome.residue_seconds == pytest.approx(residue, abs=1e-3)
    assert [row["start"] for row in outcome.rows] == pytest.approx([1.6 * i for i in range(len(lengths))])
    assert [row["id"] for row in outcome.rows] == [f"a-{i:03d}" for i in range(len(lengths))]
    for row in outcome.rows:
        pcm = shards.pcm_array(row["pcm"])
        assert len(pcm) == 25600
        assert not pcm[row["num_samples"] :].any()


@pytest.mark.parametrize(("channels", "rate"), [(8, 16000), (1, 192000), (2, 44100), (6, 8000)])
def test_channels_and_rates(tmp_path: Path, channels: int, rate: int) -> None:
    outcome = run(tmp_path, np.stack([tone(1.6, rate)] * channels), rate)
    (row,) = outcome.rows
    pcm = shards.pcm_to_float(row["pcm"])
    assert row["num_samples"] in range(25590, 25601)
    np.testing.assert_allclose(pcm[3000:22000], tone(1.6)[3000:22000], atol=5e-3)


def test_an_offset_is_removed_and_loud_files_are_scaled_not_clipped(tmp_path: Path) -> None:
    offset = shards.pcm_to_float(run(tmp_path, tone(1.6) + 0.4, 16000).rows[0]["pcm"])
    np.testing.assert_allclose(offset, tone(1.6), atol=1e-3)
    loud = shards.pcm_to_float(run(tmp_path, 40 * tone(1.6), 16000, "FLOAT").rows[0]["pcm"])
    np.testing.assert_allclose(loud, tone(1.6) / 0.3, atol=1e-3)


def test_a_part_of_a_file(tmp_path: Path) -> None:
    wav = np.concatenate([np.zeros(16000), tone(1.0), np.zeros(16000)])
    (row,) = run(tmp_path, wav, 16000, start=1.0, end=2.0).rows
    assert (row["num_samples"], row["start"]) == (16000, 1.0)
    outcome = run(tmp_path, wav, 16000, start=9.0)
    assert outcome.quarantine[0]["reason"] == "past_end"


def test_a_silent_piece_of_a_clip_is_left_out_alone(tmp_path: Path) -> None:
    outcome = run(tmp_path, np.concatenate([tone(1.6), np.zeros(25600), tone(1.6)]), 16000)
    assert [row["id"] for row in outcome.rows] == ["a-000", "a-002"]
    assert [(row["item"], row["reason"]) for row in outcome.quarantine] == [("a-001", "silent")]


def collected(folder: Path, options: dict[str, Any], kind: str = "scenes") -> pa.Table:
    return collect([Source(kind, options)], folder, FORMAT, 0)[0]


def test_in_is_out_plus_quarantined_whatever_the_number_of_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segment, "PIECE_CLIPS", 30)
    monkeypatch.setattr(segment, "SHARD_BYTES", 10 * 2 * FORMAT.segment_samples)  # shards and pieces end elsewhere
    options = {"train": 20, "val": 2, "test_one": 2, "test_two": 2, "broken": len(BROKEN), "seconds": 1.6}
    clips = collected(tmp_path, options)
    engines = {n: engine.Local(engine.Settings(workers=n)) for n in (1, 3)}
    results = [
        segment.segment(clips, tmp_path, tmp_path / str(n), RULES, FORMAT, tmp_path / f"work{n}", where)
        for n, where in engines.items()
    ]
    quarantine, counts = results[0]
    assert results[0] == results[1]
    assert (counts["in"], counts["out"], counts["quarantined"]) == (40, 26, 14)
    table = shards.read_shards(tmp_path / "1", "segments")
    assert table.schema.equals(segment.SCHEMA)
    assert [shards.num_rows(path) for path in shards.shard_paths(tmp_path / "1", "segments")] == [10, 10, 6]
    write_shards(tmp_path / "0", "segments", shards.table(table.to_pylist(), segment.SCHEMA), 10)
    assert set(table["clip_id"].to_pylist()) | {row["item"].removesuffix("-000") for row in quarantine} == set(
        clips["id"].to_pylist()
    )
    first, second, written = (sorted((tmp_path / n).iterdir()) for n in ("1", "3", "0"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in written]


@pytest.mark.real
def test_real_recordings_go_through_the_folder_source(tmp_path: Path) -> None:
    if not REAL.is_dir():
        pytest.skip("the real recordings are not here")
    options = {"path": str(REAL), "where": {"tier": "core"}, "limit_per_label": 3}
    rows, bad = SOURCES["folder"](options, tmp_path, FORMAT, 0)
    assert (len(rows), bad) == (30, [])
    clips = pa.Table.from_pylist(rows, schema=CLIPS_SCHEMA)
    quarantine, counts = segment.segment(clips, tmp_path, tmp_path / "out", RULES, FORMAT, tmp_path / "work")
    assert counts["in"] == counts["out"] + counts["quarantined"] == 30
    assert counts["out"] >= 28
    assert {row["reason"] for row in quarantine} <= {"silent", "low_snr"}
    assert all(row["author"] and row["licence"] != "unknown" for row in rows)
