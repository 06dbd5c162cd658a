"""Stretches without words: found exactly, never over a cue, and what cannot be read is put aside."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from siren.cli.project import gaps as command
from siren.collect.fetch import transcripts
from siren.collect.fetch.transcripts import gaps, json3, webvtt
from siren.config import ConfigError
from tests.collect.server import Server
from tests.collect.test_remote import Run, calls, lists, programs, run, server  # noqa: F401

TIME = st.integers(0, 60_000).map(lambda ms: ms / 1000)
CUES = st.lists(st.tuples(TIME, TIME).map(lambda pair: (min(pair), max(pair))), max_size=12)

VTT = """WEBVTT
Kind: captions
Language: en

NOTE what follows is said early

00:00:02.000 --> 00:00:04.500 align:start position:0%
\x20
hello<00:00:03.000><c> there</c>

00:00:04.500 --> 00:00:04.510 align:start position:0%
hello there
\x20

1
00:12.000 --> 00:13.000
[Music]

00:30.000 --> 00:40.000
<c>&nbsp;</c>

01:00:00.000 --> 01:00:01.250
<v Ann>bye
"""


def events(*found: tuple[float, float | None, str]) -> str:
    rows: list[dict[str, Any]] = [{"tStartMs": 0, "dDurationMs": 90_000, "id": 1, "wpWinPosId": 1}]
    for start, length, words in found:
        row: dict[str, Any] = {"tStartMs": round(start * 1000), "segs": [{"utf8": w} for w in words.split("|")]}
        rows.append(row | ({"dDurationMs": round(length * 1000)} if length is not None else {}))
    return json.dumps({"wireMagic": "pb3", "events": rows})


def test_gaps_by_hand() -> None:
    cues = [(20.0, 22.0), (5.0, 9.0), (8.0, 10.0), (21.0, 21.5)]  # in no order, overlapping, one inside another
    assert gaps(cues, 0, 40, 5) == [(0, 5), (10, 20), (22, 40)]
    assert gaps(cues, 0, 40, 5, margin_seconds=1) == [(11, 19), (23, 40)]  # no margin from the start and the end
    assert gaps(cues, 12, 24, 1) == [(12, 20), (22, 24)]
    assert gaps([], 3, 9, 6) == [(3, 9)]
    assert gaps([], 3, 9, 6.5) == []
    assert gaps([(0.0, float("inf"))], 3, 9, 1) == []


@given(cues=CUES, start=TIME, length=TIME, least=st.floats(0.01, 10), margin=st.floats(0, 3))
def test_gaps_are_disjoint_inside_and_never_over_a_cue(
    cues: list[tuple[float, float]], start: float, length: float, least: float, margin: float
) -> None:
    end = start + length
    found = gaps(cues, start, end, least, margin)
    for a, b in found:
        assert start <= a < b <= end
        assert b - a >= least
        assert all(b <= c - margin or d + margin <= a for c, d in cues)
    assert all(b <= c for (_, b), (c, _) in itertools.pairwise(found))


@given(cues=CUES, length=TIME, least=st.floats(0.01, 10))
def test_no_stretch_is_missed(cues: list[tuple[float, float]], length: float, least: float) -> None:
    """Every instant that no cue has, in a stretch that is long enough, is in a gap."""
    found = gaps(cues, 0, length, least)
    edges = sorted({0.0, length, *(min(t, length) for cue in cues for t in cue)})
    free = [(a, b) for a, b in itertools.pairwise(edges) if not any(c < b and a < d for c, d in cues)]
    long = [(a, b) for a, b in free if b - a >= least]
    assert all(any(c <= a and b <= d for c, d in found) for a, b in long)


def test_webvtt_times_of_cues_with_words() -> None:
    assert webvtt(VTT) == [(2.0, 4.5), (4.5, 4.51), (12.0, 13.0), (3600.0, 3601.25)]
    assert webvtt("\ufeffWEBVTT\n\n00:01.000 --> 00:02.000\nx") == [(1.0, 2.0)]
    assert webvtt("WEBVTT - nothing is said\r\n") == []


def test_json3_times_of_events_with_words() -> None:
    text = events((2, 2.5, "hello| there"), (4.5, 0.01, "\n"), (12, 1, "[Music]"), (50, None, "bye"))
    assert json3(text) == [(2.0, 4.5), (12.0, 13.0), (50.0, float("inf"))]


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (webvtt, "1\n00:00:01,000 --> 00:00:02,000\nSubRip\n"),
        (webvtt, "WEBVTT\n\n00:00:01 --> 00:00:02\nx\n"),
        (webvtt, "WEBVTT\n\n00:09.000 --> 00:02.000\nx\n"),
        (webvtt, ""),
        (json3, "{}"),
        (json3, "[]"),
        (json3, "<html>"),
        (json3, '{"events": [{"segs": [{"utf8": "x"}]}]}'),
        (json3, '{"events": [{"tStartMs": -1, "segs": [{"utf8": "x"}]}]}'),
        (json3, '{"events": [{"tStartMs": "0", "segs": [{"utf8": "x"}]}]}'),
    ],
)
def test_what_is_no_transcript_is_an_error_and_never_silence(read: Any, text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        read(text)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "transcripts"
    (made / "deep").mkdir(parents=True)
    (made / "partAAAAAAA.en.vtt").write_text("WEBVTT\n\n00:14.000 --> 00:15.500\nwords\n")
    (made / "deep/A title [wholeAAAAAA].en-orig.json3").write_text(events((2, 3, "before"), (31, 9, "after")))
    (made / "talkAAAAAAA.json3").write_text(events((0, 80, "and so on")))
    (made / "oddAAAAAAAA.vtt").write_text("<html>")
    (made / "readme.txt").write_text("of no video")
    return made


def test_files_are_found_by_the_id_in_their_name(folder: Path) -> None:
    found = transcripts.find(folder)
    assert {video: list(files) for video, files in found.items()} == {
        "partAAAAAAA": [".vtt"],
        "wholeAAAAAA": [".json3"],
        "talkAAAAAAA": [".json3"],
        "oddAAAAAAAA": [".vtt"],
    }


def test_only_stretches_without_words_are_fetched(run: Run, server: Server, programs: Path, folder: Path) -> None:  # noqa: F811
    names = ["partAAAAAAA", "wholeAAAAAA", "talkAAAAAAA", "oddAAAAAAAA", "goneAAAAAAA"]
    text = "".join(f"{name},10,rain,train\n" for name in names)
    options = lists(server, "vggsound.csv", text)
    options["transcripts"] = {"folder": str(folder), "min_seconds": 3.0, "margin_seconds": 0.5}
    rows, bad = run("vggsound", options)
    assert {name: row["labels"] for name, row in rows.items()} == {
        "vggsound-partAAAAAAA-10000-13500": [],  # what was said of ten seconds need not hold for a part of them
        "vggsound-partAAAAAAA-16000-20000": [],
        "vggsound-wholeAAAAAA-10000-20000": ["rain"],
    }
    assert bad == {
        "vggsound-talkAAAAAAA-10000-20000": "words",
        "vggsound-oddAAAAAAAA-10000-20000": "bad_transcript",
        "vggsound-goneAAAAAAA-10000-20000": "no_transcript",
    }
    assert soundfile.info(run.folder / rows["vggsound-partAAAAAAA-10000-13500"]["path"]).duration == 3.5
    assert len(calls(programs, "yt-dlp")) == 2  # both parts are cut out of one download
    assert not list(run.folder.rglob("*.track"))
    run("vggsound", options)
    assert len(calls(programs, "yt-dlp")) == 2


def test_impossible_options_are_named(run: Run, server: Server, programs: Path, folder: Path) -> None:  # noqa: F811
    options = lists(server, "vggsound.csv", "partAAAAAAA,10,rain,train\n")
    for wrong, told in (
        ({"folder": "nowhere"}, "transcripts.folder is 'nowhere'; there is no such folder"),
        ({"folder": str(folder), "min_seconds": 0.0}, "min_seconds is 0.0; it must be positive"),
        ({"folder": str(folder), "margins": 1.0}, "unknown key .*margins.*did you mean 'margin_seconds'"),
    ):
        with pytest.raises(ConfigError, match=told):
            run("vggsound", options | {"transcripts": wrong})
    with pytest.raises(ConfigError, match="esc50: transcripts is an option of sources of videos"):
        run("esc50", {"transcripts": {"folder": str(folder)}})


def test_a_folder_of_transcripts_becomes_a_manifest_that_a_source_fetches(
    run: Run,  # noqa: F811
    programs: Path,  # noqa: F811
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (folder / "partAAAAAAA.info.json").write_text(json.dumps({"duration": 30.0, "title": "Rain,\n roof"}))
    command(folder, tmp_path / "out/gaps.csv", min_seconds=5.0, margin_seconds=0.5)
    said = capsys.readouterr().out
    assert "3 stretches of 2 videos, 0.01 h" in said
    assert "1 videos left out, bad_transcript: e.g. oddAAAAAAAA, the transcript oddAAAAAAAA.vtt cannot be read" in said
    assert "1 videos left out, words: e.g. talkAAAAAAA" in said
    text = (tmp_path / "out/gaps.csv").read_text()
    # of the second nobody knows how long it is: it ends with its last word
    assert text.splitlines() == [
        "video,start,end,title",
        "wholeAAAAAA,5.5,30.5,",
        'partAAAAAAA,0.0,13.5,"Rain, roof"',
        'partAAAAAAA,16.0,30.0,"Rain, roof"',
    ]
    more = "busyAAAAAAA,4,2,\nno id,1,2,\nbusyAAAAAAA,,2,\n"
    (tmp_path / "out/gaps.csv").write_text(text + more)
    rows, bad = run("videos", {"manifest": str(tmp_path / "out/gaps.csv")})
    assert {name: (row["recording_id"], row["split"], row["captions"]) for name, row in rows.items()} == {
        "videos-wholeAAAAAA-5500-30500": ("youtube:wholeAAAAAA", "train", []),
        "videos-partAAAAAAA-0-13500": ("youtube:partAAAAAAA", "train", []),
        "videos-partAAAAAAA-16000-30000": ("youtube:partAAAAAAA", "train", []),
    }
    assert [row["title"] for row in rows.values()] == [None, "Rain, roof", "Rain, roof"]
    assert bad == {"gaps.csv:5": "bad_time", "gaps.csv:6": "bad_row", "gaps.csv:7": "bad_time"}
    assert len(calls(programs, "yt-dlp")) == 2


def test_a_folder_without_transcripts_is_no_corpus_without_words(tmp_path: Path) -> None:
    (tmp_path / "readme.vtt").write_text("of no video")
    with pytest.raises(ConfigError, match=r"has no transcript; their names are ID\.LANGUAGE\.vtt"):
        command(tmp_path, tmp_path / "gaps.csv", min_seconds=5.0, margin_seconds=0.5)
    assert not (tmp_path / "gaps.csv").exists()


def test_a_manifest_of_videos_keeps_what_people_said_of_them(run: Run, programs: Path, tmp_path: Path) -> None:  # noqa: F811
    manifest = tmp_path / "videos.jsonl"
    row = {
        "video": "fineAAAAAAA",
        "start": 1,
        "end": 2.5,
        "caption": "Rain falls",
        "label": "Rain;Roof",
        "split": "eval",
    }
    ragged = {"video": "fineAAAAAAA", "start": 3}
    others = [row | {"split": "some"}, row | {"caption": "Rain on a roof"}, ragged]
    manifest.write_text("".join(json.dumps(each) + "\n" for each in [row, *others]))
    rows, bad = run("videos", {"manifest": str(manifest)})
    found = rows["videos-fineAAAAAAA-1000-2500"]
    assert (found["captions"], found["labels"], found["split"]) == (
        ["Rain falls", "Rain on a roof"],
        ["Rain", "Roof"],
        "test",
    )
    assert bad == {"videos.jsonl:2": "bad_split", "videos.jsonl:4": "bad_time"}
    with pytest.raises(ConfigError, match="there is no such file"):
        run("videos", {"manifest": "none.csv"})
    (tmp_path / "wrong.csv").write_text("id,start\nx,1\n")
    with pytest.raises(ConfigError, match=r"wrong.csv has no column video, end; it has id, start"):
        run("videos", {"manifest": str(tmp_path / "wrong.csv")})


MILLISECONDS = st.integers(0, 2 * 3_600_000)
SAID = st.lists(st.tuples(MILLISECONDS, MILLISECONDS, st.sampled_from(["so", "[Applause]", "a\nb", "& <i>x</i>", "…"])))


def stamp(ms: int) -> str:
    return f"{ms // 3_600_000:02d}:{ms // 60_000 % 60:02d}:{ms // 1000 % 60:02d}.{ms % 1000:03d}"


@given(said=SAID)
def test_what_is_written_is_read_in_both_layouts(said: list[tuple[int, int, str]]) -> None:
    lines = ["WEBVTT", ""]
    for number, (start, length, text) in enumerate(said):
        lines += [str(number), f"{stamp(start)} --> {stamp(start + length)} line:0%", *text.split("\n"), ""]
    expected = [(pytest.approx(a / 1000), pytest.approx((a + b) / 1000)) for a, b, _ in said]
    assert webvtt("\n".join(lines)) == expected
    assert json3(events(*((a / 1000, b / 1000, text) for a, b, text in said))) == expected
