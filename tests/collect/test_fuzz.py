"""Files and manifests broken at random: there is no error but the one that puts them aside, and no row is lost.

The short runs always take the same examples; the long ones (`-m slow`) take new ones for some minutes.
"""

import itertools
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from siren import audio, shards
from siren.collect import segment
from siren.collect.sources import CLIPS_SCHEMA, collect
from siren.config import Audio, ConfigError, Segment, Source
from tests.collect.test_broken_inputs import as_csv, as_jsonl, as_parquet

RULES, FORMAT = Segment(min_seconds=0.1, min_snr_db=-20.0, silence_dbfs=-100.0), Audio(16000, 1.6)
KINDS = ("wav", "flac", "ogg", "mp3", "aiff", "au", "caf", "w64", "rf64")
WRITERS = {"csv": as_csv, "jsonl": as_jsonl, "parquet": as_parquet}
NUM_ROWS = 6
SHORT = settings(max_examples=20, derandomize=True, deadline=None, database=None)
LONG = settings(max_examples=1500, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def damages(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """Some changes of some bytes: replaced, cut out, doubled, put in; at the beginning more often than elsewhere."""
    changes = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["replace", "insert", "remove", "double", "cut"]),
                st.one_of(st.floats(0, 1), st.floats(0, 0.02)),
                st.binary(min_size=1, max_size=12),
            ),
            min_size=1,
            max_size=5,
        )
    )

    def damage(content: bytes) -> bytes:
        for kind, where, new in changes:
            at = int(where * len(content))
            content = {
                "replace": content[:at] + new + content[at + len(new) :],
                "insert": content[:at] + new + content[at:],
                "remove": content[:at] + content[at + len(new) :],
                "double": content[: at + len(new)] + content[at:],
                "cut": content[: max(at, 1)],
            }[kind]
        return content

    return damage


@cache
def valid(kind: str, folder: Path) -> bytes:
    """A small sound file of this kind."""
    path = folder / f"valid.{kind}"
    wav = np.random.default_rng(0).uniform(-0.5, 0.5, (4000, 2))
    soundfile.write(path, wav, 16000, format="RF64" if kind == "rf64" else None)
    return path.read_bytes()


def check_audio(folder: Path, content: bytes) -> None:
    """One clip in: segments, or one reason, and both can be written."""
    (folder / "x.wav").write_bytes(content)
    clip = dict.fromkeys(CLIPS_SCHEMA.names) | {"id": "x", "path": "x.wav", "split": "train"}
    outcome = segment.segment_clip(clip, folder, RULES, FORMAT)
    assert bool(outcome.rows) != bool(outcome.quarantine) or len(outcome.rows) + len(outcome.quarantine) > 1
    assert all(len(row["pcm"]) == 2 * FORMAT.segment_samples for row in outcome.rows)
    shards.write_quarantine(folder, outcome.quarantine)


def check_manifest(root: Path, kind: str, content: bytes, rows: list[dict[str, Any]]) -> None:
    """Rows in: each line that nothing was done to is a clip, or part of one, or in quarantine."""
    (root / "sounds" / f"manifest.{kind}").write_bytes(content)
    shutil.rmtree(root / "clips", ignore_errors=True)
    source = Source("folder", {"path": str(root / "sounds"), "manifest": f"manifest.{kind}"})
    try:
        clips, quarantine, total = collect([source], root / "clips", FORMAT, 0)
    except ConfigError as error:  # the names of the columns are broken: that is a setting
        if "has no column" not in str(error):
            raise
        return
    assert total == clips.num_rows + len(quarantine) > 0
    shards.write_quarantine(root, quarantine)
    shards.write_table(root / "clips.parquet", clips)
    if kind == "parquet" or any(row["reason"] == "bad_manifest" for row in quarantine):
        return
    said, lines = repr(clips.to_pylist()) + repr(quarantine), content.splitlines()
    for line, row in zip(WRITERS[kind](rows).splitlines()[-len(rows) :], rows, strict=True) if rows else ():
        if lines.count(line) == 1:
            place = lines.index(line) + 1  # where the name of the column is broken, it is in the clip's id
            names = f"'{row['id']}'", f" line {place}: ", f"'sounds-{place:06d}'"
            assert any(name in said for name in names), f"{row['id']} is lost from {content!r}: {said}"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fuzz")
    for number in range(NUM_ROWS):
        audio.write(root / "sounds" / f"{number}.wav", np.full(100, number / 10), 16000)
    return root


def table() -> list[dict[str, Any]]:
    names = itertools.cycle(["a dog, barking", 'it "rains"', "two\tbells", "café"])
    return [{"file": f"{n}.wav", "caption": next(names), "start": n, "id": f"row-{n}-id"} for n in range(NUM_ROWS)]


def fuzz_audio(place: Path, profile: settings) -> None:
    @profile
    @given(kind=st.sampled_from(KINDS), damage=damages())
    def mutated(kind: str, damage: Callable[[bytes], bytes]) -> None:
        check_audio(place, damage(valid(kind, place)))

    @profile
    @given(head=st.sampled_from([b"", b"RIFF", b"fLaC", b"OggS", b"ID3", b".snd", b"FORM", b"caff"]), body=st.binary())
    def random(head: bytes, body: bytes) -> None:
        check_audio(place, head + body)

    mutated()
    random()


def fuzz_manifests(place: Path, profile: settings) -> None:
    @profile
    @given(kind=st.sampled_from(list(WRITERS)), damage=damages())
    def mutated(kind: str, damage: Callable[[bytes], bytes]) -> None:
        check_manifest(place, kind, damage(WRITERS[kind](table())), table())

    @profile
    @given(
        kind=st.sampled_from(list(WRITERS)), head=st.sampled_from([b"", b"file,caption\n", b"PAR1"]), body=st.binary()
    )
    def random(kind: str, head: bytes, body: bytes) -> None:
        assume(kind != "csv" or head != b"PAR1")
        check_manifest(place, kind, head + body, [])

    mutated()
    random()


def test_a_sound_file_broken_at_random(place: Path) -> None:
    fuzz_audio(place, SHORT)


def test_a_manifest_broken_at_random(place: Path) -> None:
    fuzz_manifests(place, SHORT)


@pytest.mark.slow
def test_sound_files_broken_at_random_for_long(place: Path) -> None:
    fuzz_audio(place, LONG)


@pytest.mark.slow
def test_manifests_broken_at_random_for_long(place: Path) -> None:
    fuzz_manifests(place, LONG)
