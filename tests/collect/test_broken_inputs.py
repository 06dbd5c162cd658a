"""Everything that can be wrong with a file or a manifest, each with what becomes of it, from the folder to segments.

Outcomes: "quarantined: REASON", "kept: FIX, FIX" (names of `segment.FIXES`; none for a sound that needs nothing), and
for manifests "caption: TEXT", what a row that is repaired by rule says, or "error: MESSAGE" where a setting is wrong.
Every case goes through both stages between two good clips, which survive it, and whatever comes in goes out or is in
quarantine with that one reason.
"""

import codecs
import csv
import io
import json
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from siren import audio, shards
from siren.collect import segment
from siren.collect.sources import CLIPS_SCHEMA, collect
from siren.config import ConfigError, Source
from tests.collect.builders import FORMAT, RULES, tone

GOOD = [{"file": f"good-{n}.wav", "caption": f"good {n}", "split": "train", "id": f"good-{n}"} for n in (1, 2)]
Make = Callable[[Path], object]


def noise(count: int = 25600) -> np.ndarray:
    return np.random.default_rng(5).uniform(-0.5, 0.5, count)


def sound(
    wav: np.ndarray, rate: int = 16000, subtype: str | None = "PCM_16", form: str | None = None, cut: float = 1.0
) -> Make:
    def make(path: Path) -> None:
        soundfile.write(path, np.asarray(wav).T, rate, subtype, format=form)
        if cut < 1:
            os.truncate(path, int(cut * path.stat().st_size))

    return make


def with_values(*values: float) -> np.ndarray:
    wav = tone().astype(np.float32)
    wav[500 : 500 + len(values)] = values
    return wav


def data(content: bytes) -> Make:
    return lambda path: path.write_bytes(content)


def patched(make: Make, changes: dict[int, bytes], end: bytes = b"") -> Make:
    """The file with other bytes at some places, and some more at its end."""

    def made(path: Path) -> None:
        make(path)
        content = bytearray(path.read_bytes())
        for place, new in changes.items():
            content[place : place + len(new)] = new
        path.write_bytes(bytes(content) + end)

    return made


def wav_header(channels: int = 1, rate: int = 16000, bits: int = 16, kind: int = 1, riff: int | None = None) -> Make:
    """A WAV with half a second of samples under a header of one's own."""
    pcm = (tone(0.5) * 32767).astype("<i2").tobytes()
    block = channels * bits // 8
    head = struct.pack("<HHIIHH", kind, channels, rate, rate * block & 0xFFFFFFFF, block & 0xFFFF, bits)
    body = b"WAVEfmt " + struct.pack("<I", 16) + head + b"data" + struct.pack("<I", len(pcm)) + pcm
    return data(b"RIFF" + struct.pack("<I", len(body) if riff is None else riff) + body)


WAV = sound(tone())
FLAC_LENGTH = 21  # its 36 bits begin in the byte before, with the low ones of the sample size
AUDIO: list[tuple[str, str, Make, str]] = [
    # what it is, name of the file, how it is made, outcome
    ("nothing wrong", "x.wav", WAV, "kept: "),
    ("no bytes", "x.wav", data(b""), "quarantined: empty"),
    ("a header and no samples", "x.wav", sound(tone(0)), "quarantined: empty"),
    ("half of a header", "x.wav", data(b"RIFF\x00\x10\x00\x00WAVEfm"), "quarantined: corrupt"),
    ("cut WAV", "x.wav", sound(tone(), cut=0.5), "quarantined: truncated"),
    ("cut AIFF", "x.aiff", sound(noise(), cut=0.5), "quarantined: truncated"),
    ("cut AU", "x.au", sound(noise(), cut=0.5), "quarantined: truncated"),
    ("cut RF64", "x.rf64", sound(noise(), form="RF64", cut=0.5), "quarantined: truncated"),
    ("cut CAF", "x.caf", sound(noise(), cut=0.5), "quarantined: corrupt"),
    ("cut FLAC", "x.flac", sound(noise(), cut=0.5), "quarantined: corrupt"),
    ("cut Ogg", "x.ogg", sound(noise(), subtype=None, cut=0.5), "quarantined: truncated"),
    ("cut MP3", "x.mp3", sound(noise(), subtype=None, cut=0.5), "quarantined: truncated"),
    ("NaN", "x.wav", sound(with_values(np.nan), subtype="FLOAT"), "quarantined: non_finite"),
    ("infinite", "x.wav", sound(with_values(np.inf), subtype="FLOAT"), "quarantined: non_finite"),
    (
        "minus infinite and NaN",
        "x.wav",
        sound(with_values(-np.inf, np.nan), subtype="DOUBLE"),
        "quarantined: non_finite",
    ),
    ("1e30", "x.wav", sound(with_values(1e30), subtype="FLOAT"), "quarantined: corrupt"),
    ("denormal", "x.wav", sound(tone() * 1e-40, subtype="FLOAT"), "quarantined: silent"),
    ("all zero", "x.flac", sound(np.zeros(25600)), "quarantined: silent"),
    ("direct current", "x.wav", sound(np.full(25600, 0.25)), "quarantined: silent"),
    ("hiss", "x.wav", sound(6e-4 * np.random.default_rng(2).normal(size=25600)), "quarantined: low_snr"),
    ("one sample", "x.wav", sound(np.array([0.5])), "quarantined: too_short"),
    ("a twentieth of a second", "x.flac", sound(tone(0.05)), "quarantined: too_short"),
    ("text", "x.wav", data(b"404 Not Found\n" * 50), "quarantined: corrupt"),
    ("an HTML page", "x.mp3", data(b"<!doctype html><html><body>Sign in</body></html>"), "quarantined: corrupt"),
    ("a picture", "x.flac", data(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 8), "quarantined: corrupt"),
    ("random bytes", "x.wav", data(np.random.default_rng(3).bytes(4096)), "quarantined: corrupt"),
    ("zeros instead of bytes", "x.wav", data(bytes(4096)), "quarantined: corrupt"),
    ("a WebP in RIFF", "x.wav", data(b"RIFF\x1a\0\0\0WEBPVP8L\x0d\0\0\0" + bytes(14)), "quarantined: corrupt"),
    ("an MP3 called WAV", "x.wav", sound(noise(), subtype=None, form="MP3"), "kept: "),
    ("a FLAC called MP3", "x.mp3", sound(tone(), form="FLAC"), "kept: "),
    ("a WAV without suffix", "x", sound(tone(), form="WAV"), "kept: "),
    ("a WAV called RAW", "x.raw", sound(tone(), form="WAV"), "kept: "),
    ("samples without header", "x.raw", sound(tone(), form="RAW"), "quarantined: corrupt"),
    ("size of the file wrong", "x.wav", wav_header(riff=10**9), "kept: padded"),
    ("size of the file 0, as streams have it", "x.wav", wav_header(riff=0), "kept: padded"),
    ("size of the samples wrong", "x.wav", patched(WAV, {40: b"\xff\xff\xff\x0f"}), "quarantined: truncated"),
    ("size of the samples unknown", "x.wav", patched(WAV, {40: b"\xff\xff\xff\xff"}), "kept: "),
    ("more after the samples", "x.wav", patched(WAV, {}, b"LIST\x04\0\0\0INFOjunk"), "kept: "),
    ("rate 0", "x.wav", wav_header(rate=0), "quarantined: corrupt"),
    ("rate 1 Hz", "x.wav", wav_header(rate=1), "quarantined: bad_rate"),
    ("rate 2 GHz", "x.wav", wav_header(rate=2 * 10**9), "quarantined: bad_rate"),
    ("no channels", "x.wav", wav_header(channels=0), "quarantined: corrupt"),
    ("65,535 channels", "x.wav", wav_header(channels=65535), "quarantined: corrupt"),
    ("an unknown codec", "x.wav", wav_header(kind=0x4242), "quarantined: corrupt"),
    ("17 bits", "x.wav", wav_header(bits=130), "quarantined: corrupt"),
    (
        "a FLAC of unknown length",
        "x.flac",
        patched(sound(noise()), {FLAC_LENGTH: b"\xf0\0\0\0\0"}),
        "quarantined: no_length",
    ),
    ("a FLAC of 50 days", "x.flac", patched(sound(noise()), {FLAC_LENGTH: b"\xff" * 5}), "quarantined: corrupt"),
    ("8 bits", "x.wav", sound(tone(), subtype="PCM_U8"), "kept: dc_removed"),
    ("24 bits", "x.wav", sound(tone(), subtype="PCM_24"), "kept: "),
    ("32 bits", "x.wav", sound(tone(), subtype="PCM_32"), "kept: "),
    ("float64", "x.wav", sound(tone(), subtype="DOUBLE"), "kept: "),
    ("mu-law", "x.au", sound(tone(), subtype="ULAW"), "kept: "),
    ("8 channels", "x.wav", sound(np.stack([tone()] * 8)), "kept: mixed_down"),
    ("192 kHz", "x.wav", sound(tone(rate=192000), 192000), "kept: resampled"),
    (
        "11,025 Hz of two channels",
        "x.wav",
        sound(np.stack([tone(rate=11025)] * 2), 11025),
        "kept: mixed_down, resampled",
    ),
    ("channels that cancel each other", "x.wav", sound(np.stack([tone(), -tone()])), "quarantined: silent"),
    ("offset", "x.wav", sound(tone() + 0.3), "kept: dc_removed"),
    ("clipped", "x.wav", sound(np.clip(tone(level=3.0), -1, 1)), "kept: "),
    ("beyond full scale", "x.wav", sound(tone(level=40.0), subtype="FLOAT"), "kept: scaled_down"),
    ("16-bit values as floats", "x.wav", sound(tone(level=20000.0), subtype="FLOAT"), "kept: scaled_down"),
    ("short", "x.wav", sound(tone(0.5)), "kept: padded"),
    ("longer than a segment", "x.wav", sound(tone(2.0)), "kept: residue_dropped"),
    ("half of it silent", "x.wav", sound(np.concatenate([tone(), np.zeros(25600)])), "kept: "),
    ("a folder", "x.wav", lambda path: path.mkdir(), "quarantined: not_a_file"),
    ("a pipe", "x.wav", lambda path: os.mkfifo(path), "quarantined: not_a_file"),
    ("a link to itself", "x.wav", lambda path: path.symlink_to(path), "quarantined: unreadable"),
    ("a link to nothing", "x.wav", lambda path: path.symlink_to("gone.wav"), "quarantined: missing_file"),
    ("a link out of the folder", "x.wav", lambda path: path.symlink_to("/etc/hostname"), "quarantined: path_escapes"),
    ("a link to a good file", "x.wav", lambda path: (WAV(path.with_name("y.wav")), path.symlink_to("y.wav")), "kept: "),
    ("nothing there", "x.wav", lambda path: None, "quarantined: missing_file"),
    ("another case", "X.wav", lambda path: WAV(path.with_name("x.wav")), "quarantined: missing_file"),
    ("accents composed elsewhere", "caf\u00e9.wav", lambda path: WAV(path.with_name("cafe\u0301.wav")), "kept: "),
    ("a name in Chinese", "狗叫.wav", WAV, "kept: "),
    ("a name with a new line", "a\nb.wav", WAV, "kept: "),
    ("a name with quotes and commas", "a\",'b.wav", WAV, "kept: "),
    ("a name of 255 bytes", f"{'x' * 251}.wav", WAV, "kept: "),
    ("a name of 300 bytes", f"{'x' * 300}.wav", lambda path: None, "quarantined: unreadable"),
    (
        "a copy of a good file",
        "x.wav",
        lambda path: shutil.copy(path.with_name("good-1.wav"), path),
        "quarantined: duplicate",
    ),
]


def as_csv(rows: list[dict[str, Any]], **form: Any) -> bytes:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)), **form)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def as_jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def as_parquet(rows: list[dict[str, Any]], **types: pa.DataType) -> bytes:
    names = list(dict.fromkeys(key for row in rows for key in row))
    columns = {name: pa.array([row.get(name) for row in rows], types.get(name)) for name in names}
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


X = {"file": "x.wav", "caption": "a dog", "split": "train", "id": "x"}
FIRST, LAST = GOOD


def one(write: Callable[..., bytes], **values: Any) -> bytes:
    """A manifest whose middle row is wrong in these values."""
    return write([FIRST, X | values, LAST])


def lines(*middle: bytes, end: bytes = b"\n", head: bytes = b"file,caption,split,id") -> bytes:
    """A CSV whose middle lines are these."""
    good = [f"{row['file']},{row['caption']},train,{row['id']}".encode() for row in GOOD]
    return end.join([head, good[0], *middle, good[1], b""])


def between(*middle: bytes) -> bytes:
    """A JSONL whose middle lines are these."""
    return as_jsonl([FIRST]) + b"\n".join(middle) + b"\n" + as_jsonl([LAST])


SPLIT = {"file": "good-1.wav", "split": "test"}
NOT_UTF8 = one(as_parquet, caption="a dog").replace(b"a dog", b"\xff dog")
SAME_NAME = [X | {"id": "a/b"}, X | {"id": "a_b", "file": "y.wav"}]
ROW = b"x.wav,a dog,train,x"
FEW = as_parquet([*GOOD, X])
MANIFESTS: list[tuple[str, str, bytes, str]] = [
    # what it is, its suffix, its bytes, outcome
    ("BOM", "csv", codecs.BOM_UTF8 + lines(ROW), "caption: a dog"),
    ("BOM of JSON", "jsonl", codecs.BOM_UTF8 + as_jsonl([FIRST, X, LAST]), "caption: a dog"),
    ("UTF-16", "csv", lines(ROW).decode().encode("utf-16"), "caption: a dog"),
    ("Latin-1", "csv", lines("x.wav,un café,train,x".encode("latin-1")), "caption: un café"),
    ("CRLF", "csv", lines(ROW, end=b"\r\n"), "caption: a dog"),
    ("CR alone", "csv", lines(ROW, end=b"\r"), "caption: a dog"),
    ("empty lines", "csv", lines(b"", ROW, b"", b"   "), "caption: a dog"),
    ("semicolons", "csv", as_csv([FIRST, X, LAST], delimiter=";"), "caption: a dog"),
    ("tabs", "csv", as_csv([FIRST, X, LAST], delimiter="\t"), "caption: a dog"),
    ("spaces around the columns' names", "csv", lines(ROW, head=b" file , caption , split, id"), "caption: a dog"),
    ("NUL in a caption", "csv", lines(b"x.wav,a\0dog,train,x"), "caption: a dog"),
    ("NUL in JSON", "jsonl", as_jsonl([FIRST]) + b"\0" + as_jsonl([X, LAST]), "caption: a dog"),
    ("control characters", "jsonl", one(as_jsonl, caption="a\x07\x1b\u2028dog\n"), "caption: a dog"),
    ("half of a surrogate pair", "jsonl", one(as_jsonl, caption="a\ud800dog"), "caption: a dog"),
    ("a caption of two lines", "csv", one(as_csv, caption="a\ndog"), "caption: a dog"),
    ("captions as a list", "jsonl", one(as_jsonl, caption=["a dog", None, "", "barks"]), "caption: a dog"),
    ("captions as bytes", "parquet", as_parquet([*GOOD, X], caption=pa.binary()), "caption: a dog"),
    ("NUL in a file's name", "csv", lines(b"x\0.wav,a dog,train,x"), "quarantined: bad_row"),
    ("no file", "csv", one(as_csv, file=" "), "quarantined: bad_row"),
    ("too few values", "csv", lines(b"x.wav"), "quarantined: empty_caption"),
    ("too many values", "csv", lines(ROW + b",and,more"), "quarantined: bad_row"),
    ("a quote that is never closed", "csv", lines(b'x.wav,"a dog,train,x'), "quarantined: bad_row"),
    ("a quote in the middle", "csv", lines(b'x.wav,"a" dog,train,x'), "quarantined: bad_row"),
    ("10 MB in CSV", "csv", one(as_csv, caption="dog " * 2_500_000), "quarantined: bad_row"),
    ("10 MB in JSON", "jsonl", one(as_jsonl, caption="dog " * 2_500_000), "quarantined: too_long_text"),
    ("10 MB in Parquet", "parquet", one(as_parquet, caption="dog " * 2_500_000), "quarantined: too_long_text"),
    ("10 MB of a file's name", "jsonl", one(as_jsonl, file="dog " * 2_500_000), "quarantined: too_long_text"),
    ("an empty caption", "csv", one(as_csv, caption="  "), "quarantined: empty_caption"),
    ("null instead of a caption", "jsonl", one(as_jsonl, caption=None), "quarantined: empty_caption"),
    ("NaN instead of a caption", "jsonl", one(as_jsonl, caption=float("nan")), "quarantined: empty_caption"),
    ("null in Parquet", "parquet", one(as_parquet, caption=None), "quarantined: empty_caption"),
    ("a number for a caption", "jsonl", one(as_jsonl, caption=5), "quarantined: bad_type"),
    ("true for a caption", "jsonl", one(as_jsonl, caption=True), "quarantined: bad_type"),
    ("an object for a caption", "jsonl", one(as_jsonl, caption={"text": "a dog"}), "quarantined: bad_type"),
    ("lists of lists", "jsonl", one(as_jsonl, caption=[["a dog"]]), "quarantined: bad_type"),
    ("a list for a file", "jsonl", one(as_jsonl, file=["x.wav"]), "quarantined: bad_type"),
    ("an object for an id", "jsonl", one(as_jsonl, id={"a": 1}), "quarantined: bad_type"),
    ("JSON 100,000 deep", "jsonl",  between(b'{"file": "x.wav", "caption": ' + b"[" * 100_000), "quarantined: bad_row"),
    ("an integer of 10,000 digits", "jsonl", between(b'{"file": ' + b"9" * 10_000 + b"}"), "quarantined: bad_row"),
    ("half of an object", "jsonl", between(b'{"file": "x.wav", '), "quarantined: bad_row"),
    ("a list and not an object", "jsonl", between(b'["x.wav", "a dog"]'), "quarantined: bad_row"),
    ("another row's id", "csv", one(as_csv, id="good-1"), "quarantined: duplicate_id"),
    ("another row's id, as a name of files", "csv", as_csv([*GOOD, *SAME_NAME]), "quarantined: duplicate_id"),
    ("another row's file in another split", "csv", one(as_csv, **SPLIT), "quarantined: duplicate_file"),
    ("an id of 1,000 characters", "csv", one(as_csv, id="x" * 1000), "quarantined: bad_id"),
    ("an id that leaves a folder", "csv", one(as_csv, id="../../x"), "id: __.._x"),
    ("a path out of the folder", "csv", one(as_csv, file="../outside.wav"), "quarantined: path_escapes"),
    ("an absolute path", "csv", one(as_csv, file="/etc/hostname"), "quarantined: path_escapes"),
    ("a path in and out", "csv", one(as_csv, file="sub/../../sounds/../outside.wav"), "quarantined: path_escapes"),
    ("a path of Windows", "csv", one(as_csv, file="C:\\x.wav"), "quarantined: missing_file"),
    ("a surrogate in a path", "jsonl", one(as_jsonl, file="\ud800.wav"), "quarantined: unreadable"),
    ("start after end", "csv", one(as_csv, start="1.2", end="0.4"), "quarantined: bad_time"),
    ("start before 0", "csv", one(as_csv, start="-1"), "quarantined: bad_time"),
    ("start that is a word", "csv", one(as_csv, start="soon"), "quarantined: bad_time"),
    ("start that is true", "jsonl", one(as_jsonl, start=True), "quarantined: bad_time"),
    ("infinite end", "jsonl", one(as_jsonl, end=float("inf")), "quarantined: bad_time"),
    ("start past the end of the file", "csv", one(as_csv, start="9"), "quarantined: past_end"),
    ("end past the end of the file", "csv", one(as_csv, start="0.6", end="1e300"), "kept: end_clamped, padded"),
    ("nothing between start and end", "csv", one(as_csv, start="0.6", end="0.601"), "quarantined: too_short"),
    ("an unknown split", "csv", one(as_csv, split="holdout"), "quarantined: bad_split"),
    ("an unknown relation", "csv", one(as_csv, relation="beside"), "quarantined: bad_relation"),
    ("text that is not UTF-8", "parquet", NOT_UTF8, "quarantined: bad_row"),
    ("an empty file", "csv", b"", "quarantined: bad_manifest"),
    ("an empty file of JSON", "jsonl", b"\n\n", "quarantined: bad_manifest"),
    ("an empty file of Parquet", "parquet", b"", "quarantined: bad_manifest"),
    ("columns and no rows", "csv", b"file,caption\n", "quarantined: bad_manifest"),
    ("two columns of one name", "csv", b"file,caption,caption\nx.wav,a,b\n", "quarantined: bad_manifest"),
    ("a line of names that is none", "csv", b'file,"caption\nx.wav,a\n', "quarantined: bad_manifest"),
    ("half of a Parquet file", "parquet", FEW[: len(FEW) // 2], "quarantined: bad_manifest"),
    ("a Parquet file with a hole", "parquet", FEW[:60] + bytes(900) + FEW[960:], "quarantined: bad_manifest"),
    ("a CSV called Parquet", "parquet", lines(ROW), "quarantined: bad_manifest"),
    ("a missing column", "csv", lines(ROW, head=b"file,captions,split,id"), "error: no column 'caption'"),
    ("no names of columns", "csv", lines(ROW, head=ROW), "error: no column 'file'"),
    ("an unknown kind", "xlsx", b"PK", "error: must end in"),
]  # fmt: skip


def run(root: Path, manifest: str) -> tuple[list[dict[str, Any]], list[dict[str, str]], list[dict[str, str]], Any]:
    """Both stages over `root/sounds`: clips, quarantine of each stage, counts of the second. Nothing may be lost."""
    source = Source("folder", {"path": str(root / "sounds"), "manifest": manifest})
    clips, fetched, total = collect([source], root / "clips", FORMAT, 0)
    assert total == clips.num_rows + len(fetched)
    segmented, counts = segment.segment(clips, root / "clips", root / "segments", RULES, FORMAT, root / "work")
    assert counts["in"] == clips.num_rows == counts["out"] + counts["quarantined"]
    for folder, rows in (("clips", fetched), ("segments", segmented)):  # what is in quarantine can be written
        shards.write_quarantine(root / folder, rows)
        assert shards.read_quarantine(root / folder).num_rows == len(rows)
        assert all(row["item"] and row["reason"] and len(row["detail"]) < 600 for row in rows)
    shards.write_table(root / "clips" / "clips.parquet", clips)
    made = shards.read_shards(root / "segments", "segments").to_pylist()
    left = {row["id"] for row in clips.to_pylist()} - {row["clip_id"] for row in made}
    assert left <= {row["item"] for row in segmented} | {row["item"].rsplit("-", 1)[0] for row in segmented}
    return clips.to_pylist(), fetched, segmented, counts


def check(root: Path, manifest: str, outcome: str, survivors: set[str]) -> None:
    kind, _, what = outcome.partition(": ")
    if kind == "error":
        with pytest.raises(ConfigError, match=what):
            run(root, manifest)
        return
    clips, fetched, segmented, counts = run(root, manifest)
    kept = {row["id"]: row for row in clips}
    lost = {row["item"] for row in segmented} | {row["item"].rsplit("-", 1)[0] for row in segmented}
    assert survivors <= set(kept) - (lost if kind == "quarantined" else set())
    if kind == "quarantined":
        assert [row["reason"] for row in fetched + segmented] == [what]
        return
    assert fetched == []
    (clip,) = (row for name, row in kept.items() if name not in survivors)
    if kind == "kept":
        assert ", ".join(name for name in segment.FIXES if f"fix/{name}" in counts) == what
    else:
        assert {"caption": (clip["captions"] or [None])[0], "id": clip["id"]}[kind] == what


def folder(root: Path) -> Path:
    """Two good clips in `root/sounds`, and a file beside it that no manifest may reach."""
    sounds = root / "sounds"
    for number, row in enumerate(GOOD):
        audio.write(sounds / row["file"], tone(level=0.5 + number / 10), 16000)
    audio.write(root / "outside.wav", tone(level=0.35), 16000)
    return sounds


@pytest.mark.parametrize(("name", "file", "make", "outcome"), AUDIO, ids=[row[0] for row in AUDIO])
def test_a_broken_file_is_repaired_or_quarantined(
    tmp_path: Path, name: str, file: str, make: Make, outcome: str
) -> None:
    sounds = folder(tmp_path)
    make(sounds / file)
    (sounds / "manifest.csv").write_bytes(as_csv([FIRST, X | {"file": file}, LAST]))
    check(tmp_path, "manifest.csv", outcome, {"good-1", "good-2"})


@pytest.mark.parametrize(("name", "suffix", "content", "outcome"), MANIFESTS, ids=[row[0] for row in MANIFESTS])
def test_a_broken_manifest_loses_no_row(tmp_path: Path, name: str, suffix: str, content: bytes, outcome: str) -> None:
    sounds = folder(tmp_path)
    for number, other in enumerate("xy"):
        audio.write(sounds / f"{other}.wav", tone(level=0.2 - number / 10), 16000)
    (sounds / f"manifest.{suffix}").write_bytes(content)
    survivors = set() if outcome.endswith("bad_manifest") else {"good-1", "good-2"}
    check(tmp_path, f"manifest.{suffix}", outcome, survivors)


def test_there_are_more_than_sixty_kinds_and_each_is_named_once() -> None:
    names = [row[0] for row in (*AUDIO, *MANIFESTS)]
    assert len(set(names)) == len(names) > 120


@pytest.fixture
def as_somebody() -> Iterator[Path]:
    """A folder that every user may enter, while this process may not read everything (where it runs as root)."""
    root, user = Path(tempfile.mkdtemp()), os.geteuid()
    root.chmod(0o777)
    try:
        if user == 0:
            os.seteuid(65534)
        yield root
    finally:
        os.seteuid(user)
        shutil.rmtree(root)


def test_a_file_without_permission_is_quarantined_before_and_after_it_is_copied(as_somebody: Path) -> None:
    sounds = folder(as_somebody)
    WAV(sounds / "x.wav")
    (sounds / "x.wav").chmod(0)
    (sounds / "manifest.csv").write_bytes(as_csv([FIRST, X, LAST]))
    check(as_somebody, "manifest.csv", "quarantined: unreadable", {"good-1", "good-2"})
    row = dict.fromkeys(CLIPS_SCHEMA.names) | {"id": "x", "path": "x.wav", "split": "train"}
    outcome = segment.segment_clip(row, sounds, RULES, FORMAT)
    assert [row["reason"] for row in outcome.quarantine] == ["unreadable"]


def test_a_sound_longer_than_memory_is_quarantined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio, "LONGEST", 2**14)
    monkeypatch.setattr(audio, "BLOCK", 2**12)
    WAV(tmp_path / "x.wav")
    with pytest.raises(audio.AudioError, match=r"too_long: x.wav is longer than 1 s at its 1 x 16000 Hz"):
        audio.read(tmp_path / "x.wav")


def test_blocks_give_the_samples_of_one_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for suffix, subtype in (("wav", "FLOAT"), ("flac", "PCM_16"), ("ogg", "VORBIS"), ("mp3", None)):
        sound(np.stack([noise(), tone()]), subtype=subtype)(tmp_path / f"x.{suffix}")
        whole, _ = audio.read(tmp_path / f"x.{suffix}")
        with monkeypatch.context() as patch:
            patch.setattr(audio, "BLOCK", 2**10)
            blocks, _ = audio.read(tmp_path / f"x.{suffix}")
        np.testing.assert_allclose(blocks, whole, rtol=0, atol=2e-7 if suffix == "mp3" else 0)
