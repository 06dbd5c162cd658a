"""The folder source: what a manifest can get wrong is an error that helps, or a quarantine row with its line."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from siren import audio
from siren.collect.sources import SOURCES, collect, manifest
from siren.config import Audio, ConfigError, Source

SETTINGS = Audio(16000, 1.6)
GOOD: list[dict[str, Any]] = [
    {"file": "a.wav", "caption": "A dog barks.", "label": "dog", "split": "train", "licence": "CC0"},
    {"file": "b.wav", "caption": "Rain falls.", "label": "rain;wind", "split": "validation", "licence": ""},
    {"file": "ünï code.wav", "caption": "", "label": "bell", "split": "test", "licence": "CC BY 4.0"},
]


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    folder = tmp_path / "sounds"
    for index, name in enumerate(["a.wav", "b.wav", "ünï code.wav", "sub/c.wav"]):
        wav = 0.3 * np.random.default_rng(index).normal(size=16000).clip(-2, 2)
        audio.write(folder / name, wav, 16000)
    audio.write(tmp_path / "outside.wav", np.zeros(100), 16000)
    return folder


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path)


WRITERS = {"csv": write_csv, "jsonl": write_jsonl, "parquet": write_parquet}


def fetch(sounds: Path, rows: list[dict[str, Any]], **options: Any) -> tuple[list[dict], list[dict]]:
    write_csv(sounds / "manifest.csv", rows)
    return SOURCES["folder"]({"path": str(sounds), **options}, sounds.parent / "clips", SETTINGS, 0)


@pytest.mark.parametrize("kind", WRITERS)
def test_every_kind_of_manifest_gives_the_same_clips(sounds: Path, kind: str) -> None:
    WRITERS[kind](sounds / f"list.{kind}", GOOD)
    out = sounds.parent / "clips"
    options = {"path": str(sounds), "manifest": f"list.{kind}", "licence": "own"}
    rows, bad = SOURCES["folder"](options, out, SETTINGS, 0)
    assert bad == []
    assert [row["split"] for row in rows] == ["train", "val", "test"]
    assert [row["captions"] for row in rows] == [["A dog barks."], ["Rain falls."], []]
    assert [row["labels"] for row in rows] == [["dog"], ["rain", "wind"], ["bell"]]
    assert [row["relation"] for row in rows] == ["one", None, "one"]
    assert [row["licence"] for row in rows] == ["CC0", "own", "CC BY 4.0"]
    assert len({row["id"] for row in rows}) == 3
    for row, given in zip(rows, GOOD, strict=True):
        assert (out / row["path"]).read_bytes() == (sounds / given["file"]).read_bytes()
        assert row["path"].isascii()


BAD = {
    "path_escapes": {"file": "../outside.wav"},
    "path_escapes ": {"file": "/etc/hostname"},
    "missing_file": {"file": "a.wave"},
    "not_a_file": {"file": "sub"},
    "bad_row": {"file": ""},
    "empty_caption": {"caption": "  ", "label": ""},
    "bad_split": {"split": "holdout"},
    "bad_relation": {"relation": "beside"},
    "bad_time": {"start": "soon"},
    "bad_time ": {"start": "3", "end": "2"},
    "bad_time  ": {"end": "nan"},
    "duplicate_id": {"file": "b.wav", "id": "x"},
    "duplicate_file": {"file": "a.wav", "split": "test", "id": "y"},
}


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_row_is_quarantined_with_its_line_and_the_rest_is_kept(sounds: Path, reason: str) -> None:
    empty = dict.fromkeys(("file", "caption", "label", "split", "relation", "start", "end", "id"), "")
    first = empty | {"file": "a.wav", "caption": "first", "id": "x", "split": "train"}
    bad = empty | {"file": "sub/c.wav", "caption": "bad"} | BAD[reason]
    last = empty | {"file": "ünï code.wav", "caption": "last"}
    rows, quarantine = fetch(sounds, [first, bad, last])
    assert [row["captions"] for row in rows] == [["first"], ["last"]]
    (row,) = quarantine
    assert (row["stage"], row["reason"]) == ("fetch", reason.strip())
    assert row["detail"].startswith("manifest.csv line 3: ")


def test_a_symbolic_link_out_of_the_folder_escapes(sounds: Path) -> None:
    (sounds / "link.wav").symlink_to(sounds.parent / "outside.wav")
    rows, quarantine = fetch(sounds, [{"file": "link.wav", "caption": "x"}])
    assert (rows, quarantine[0]["reason"]) == ([], "path_escapes")


def test_lines_that_are_not_rows_are_quarantined(sounds: Path) -> None:
    (sounds / "a.jsonl").write_text('{"file": "a.wav", "caption": "x"}\n{"file": \n\n[1, 2]\n')
    (sounds / "a.csv").write_text("file,caption\na.wav,x\nb.wav,it rains, and pours\n")
    for name, lines in (("a.jsonl", [2, 4]), ("a.csv", [3])):
        rows, bad = SOURCES["folder"]({"path": str(sounds), "manifest": name}, sounds.parent / "clips", SETTINGS, 0)
        assert [row["captions"] for row in rows] == [["x"]]
        assert [(row["item"], row["reason"]) for row in bad] == [(f"{name}:{line}", "bad_row") for line in lines]


def test_a_missing_column_is_an_error_that_names_the_nearest(sounds: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"no column 'file'; it has filename, caption; nearest to 'file' is 'filename'"
    ):
        fetch(sounds, [{"filename": "a.wav", "caption": "x"}])
    with pytest.raises(ConfigError, match=r"no column 'caption'; it has file, captions"):
        fetch(sounds, [{"file": "a.wav", "captions": "x"}])
    with pytest.raises(ConfigError, match="no column 'tier'"):
        fetch(sounds, [{"file": "a.wav", "caption": "x"}], where={"tier": "core"})
    rows, _ = fetch(sounds, [{"filename": "a.wav", "text": "x"}], columns={"file": "filename", "caption": "text"})
    assert rows[0]["captions"] == ["x"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "nowhere"}, "no such folder"),
        ({"manifest": "none.csv"}, "no manifest"),
        ({"manifest": "list.txt"}, "must end in"),
        ({"pathe": "x"}, "'pathe'"),
        ({"columns": {"wave": "x"}}, "'wave'"),
        ({"val_share": 0.6, "test_share": 0.6}, "below 1"),
    ],
)
def test_wrong_options_are_errors(sounds: Path, options: dict[str, Any], message: str) -> None:
    (sounds / "list.txt").touch()
    with pytest.raises(ConfigError, match=message):
        fetch(sounds, GOOD, **options)


def test_sounds_without_any_text_need_no_column_for_it(sounds: Path) -> None:
    given = [{"file": "a.wav", "title": "by the lake"}]
    with pytest.raises(ConfigError, match="without any text: described: false"):
        fetch(sounds, given)
    (row,), bad = fetch(sounds, given, described=False)
    assert (row["captions"], row["labels"], row["title"], bad) == ([], [], "by the lake", [])


def test_where_and_limits_choose_rows(sounds: Path) -> None:
    rows = [
        {"file": name, "caption": "x", "label": "dog", "tier": tier}
        for name, tier in (("a.wav", "core"), ("b.wav", "wide"), ("ünï code.wav", "core"), ("sub/c.wav", "extra"))
    ]
    assert len(fetch(sounds, rows, where={"tier": "core"})[0]) == 2
    assert len(fetch(sounds, rows, where={"tier": ["core", "extra"]})[0]) == 3
    assert len(fetch(sounds, rows, limit=1)[0]) == 1
    assert len(fetch(sounds, rows, limit_per_label=3)[0]) == 3


def test_rows_of_one_file_are_wordings_of_one_clip(sounds: Path) -> None:
    rows, bad = fetch(sounds, [{"file": "a.wav", "caption": text} for text in ("one", "two", "one")])
    assert (len(rows), rows[0]["captions"], bad) == (1, ["one", "two"], [])


def test_without_splits_whole_recordings_are_drawn(sounds: Path) -> None:
    rows = [
        {"file": name, "caption": "x", "recording_id": r}
        for name, r in (("a.wav", "r1"), ("b.wav", "r1"), ("ünï code.wav", "r2"), ("sub/c.wav", "r3"))
    ]
    found, _ = fetch(sounds, rows)
    splits = {row["recording_id"]: set() for row in found}
    for row in found:
        splits[row["recording_id"]].add(row["split"])
    assert sorted(split for (split,) in splits.values()) == ["test", "train", "val"]


def test_collecting_keeps_one_of_each_and_counts_all(sounds: Path) -> None:
    (sounds / "copy.wav").write_bytes((sounds / "a.wav").read_bytes())
    rows = [
        {"file": "a.wav", "caption": "x", "id": "1", "recording_id": "r1", "split": "train"},
        {"file": "copy.wav", "caption": "x", "id": "2", "recording_id": "r2", "split": "test"},
        {"file": "b.wav", "caption": "x", "id": "3", "recording_id": "r1", "split": "test"},
        {"file": "sub/c.wav", "caption": "x", "id": "4", "recording_id": "r1", "split": "train"},
    ]
    write_csv(sounds / "manifest.csv", rows)
    out = sounds.parent / "clips"
    source = Source("folder", {"path": str(sounds)})
    table, quarantine, total = collect([source, source], out, SETTINGS, 0)
    assert table["id"].to_pylist() == ["1", "4"]
    assert [(row["item"], row["reason"]) for row in quarantine[:2]] == [("2", "duplicate"), ("3", "two_splits")]
    assert [row["reason"] for row in quarantine[2:]] == ["duplicate_id", "duplicate", "two_splits", "duplicate_id"]
    assert total == table.num_rows + len(quarantine) == 8
    assert {f"audio/{path.name}" for path in (out / "audio").iterdir()} == set(table["path"].to_pylist())


def test_a_row_is_read_without_those_before_it() -> None:
    """A manifest of a million rows would otherwise take half a million million steps."""

    class Lines(list[str]):
        asked = 0

        def __getitem__(self, place: Any) -> Any:
            self.asked += 1
            return super().__getitem__(place)

        def __iter__(self) -> Any:
            raise AssertionError("all lines are gone through for one row")

    lines = Lines(["a,b\n"] * 1000 + ['c,"d\n', 'e"\n'])
    assert manifest._record(lines, 999, ",") == (["a", "b"], 1)
    assert manifest._record(lines, 1000, ",") == (["c", "d\ne"], 2)
    assert lines.asked == 3
