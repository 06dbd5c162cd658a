"""Fingerprints: one recording is known again in another form, two recordings of one thing are not taken for it."""

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile

from siren import audio, shards
from siren.collect import segment
from siren.collect.fingerprint import FINE, Index, error_rate, fingerprint
from siren.collect.sources import CLIPS_SCHEMA
from siren.config import Audio, ConfigError, Segment

RATE = 16000
LIMIT = 0.25
REAL = Path(__file__).resolve().parents[2] / "../shared/data/real-sounds"


def sound(seed: int, seconds: float = 5.0) -> np.ndarray:
    """Noise whose spectrum and level wander, as those of sounds do."""
    generator = np.random.default_rng(seed)
    noise = generator.normal(size=round(seconds * RATE))
    level = np.interp(
        np.arange(len(noise)), np.arange(0, len(noise), 1600), generator.uniform(0.05, 1, len(noise) // 1600)
    )
    return (0.2 * level * noise).astype(np.float32)


def coded(wav: np.ndarray, kind: str, subtype: str, level: float) -> np.ndarray:
    file = io.BytesIO()
    soundfile.write(file, wav, RATE, format=kind, subtype=subtype, compression_level=level)
    file.seek(0)
    return soundfile.read(file, dtype="float32")[0]


FORMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "itself": lambda wav: wav,
    "quieter": lambda wav: 0.1 * wav,
    "upside down": lambda wav: -wav,
    "mp3": lambda wav: coded(wav, "MP3", "MPEG_LAYER_III", 0.3),
    "ogg": lambda wav: coded(wav, "OGG", "VORBIS", 0.5),
    "telephone": lambda wav: audio.resample(audio.resample(wav, RATE, 8000), 8000, RATE),
    "8 bit": lambda wav: np.round(wav * 127) / 127,
    "noise at 20 dB": lambda wav: wav + 0.1 * wav.std() * np.random.default_rng(9).normal(size=len(wav)),
    "16 ms later": lambda wav: wav[256:],
    "a second later": lambda wav: wav[RATE:],
    "with silence before": lambda wav: np.concatenate([np.zeros(2000), wav]),
    "two thirds of it": lambda wav: wav[len(wav) // 3 :],
}


@pytest.fixture(scope="module")
def index() -> Index:
    return Index((str(seed), "test", *fingerprint(sound(seed), RATE, FINE)) for seed in range(40))


@pytest.mark.parametrize("form", FORMS)
def test_a_recording_is_known_again(index: Index, form: str) -> None:
    for seed in (3, 17, 38):
        found = index.find(*fingerprint(FORMS[form](sound(seed)), RATE), ("test",), LIMIT)
        assert found is not None, seed
        assert (found.name, found.group) == (str(seed), "test")
        assert found.error_rate <= LIMIT


def test_another_recording_and_another_group_are_not(index: Index) -> None:
    assert all(index.find(*fingerprint(sound(seed), RATE), ("test",), 0.35) is None for seed in range(100, 140))
    assert index.find(*fingerprint(sound(3), RATE), ("val",), LIMIT) is None
    assert Index([]).find(*fingerprint(sound(3), RATE), ("test",), LIMIT) is None


def test_silence_and_what_is_short_have_no_fingerprint(index: Index) -> None:
    for wav in (np.zeros(5 * RATE), np.zeros(0), sound(3)[: RATE // 4]):
        bits, heard = fingerprint(np.asarray(wav, np.float32), RATE)
        assert not heard.any()
        assert index.find(bits, heard, ("test",), LIMIT) is None


def test_the_error_rate_by_hand() -> None:
    other = np.arange(100, dtype=np.uint32)
    heard = np.ones(100, bool)
    bits = other[10:50:2] ^ np.uint32(0b101)
    assert error_rate(bits, heard[:20], other, heard, shift=10) == pytest.approx(2 / 32)
    assert error_rate(bits, heard[:20], other, heard, shift=95) == 1.0  # three frames in common
    assert error_rate(bits, ~heard[:20], other, heard, shift=10) == 1.0


def clips(folder: Path, wavs: dict[str, tuple[str, np.ndarray]]) -> pa.Table:
    rows: list[dict[str, Any]] = []
    for name, (split, wav) in wavs.items():
        audio.write(folder / f"{name}.flac", wav, RATE)
        row = dict.fromkeys(CLIPS_SCHEMA.names) | {"id": name, "path": f"{name}.flac", "recording_id": name}
        rows.append(row | {"split": split, "captions": [name], "labels": []})
    return pa.Table.from_pylist(rows, schema=CLIPS_SCHEMA)


@pytest.mark.parametrize("reverse", [False, True])
def test_near_duplicates_across_splits_give_way_to_what_is_held_out(
    tmp_path: Path, reverse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    wavs = {
        "a": ("train", sound(1)),
        "a-again": ("train", 0.5 * sound(1)),  # in its own split: no leak
        "b": ("train", FORMS["mp3"](sound(2))),
        "b-held": ("test", sound(2)),
        "c": ("val", sound(3)[4000:]),
        "c-held": ("test", sound(3)),
        "d": ("train", FORMS["ogg"](sound(4))),
        "d-held": ("val", sound(4)),
    }
    table = clips(tmp_path, dict(reversed(wavs.items())) if reverse else wavs)
    rules = Segment(0.2, 6.0, -60.0, LIMIT)
    results = []
    for size in (3, 8):
        monkeypatch.setattr(segment, "PIECE_CLIPS", size)
        out, work = tmp_path / f"out{size}", tmp_path / f"work{size}"
        quarantine, counts = segment.segment(table, tmp_path, out, rules, Audio(RATE, 2.0), work)
        results.append((quarantine, counts, [path.read_bytes() for path in sorted(out.iterdir())]))
    assert results[0] == results[1]
    quarantine, counts, _ = results[0]
    assert {(row["item"].rsplit("-", 1)[0], row["reason"]) for row in quarantine} == {
        (name, "near_duplicate") for name in ("b", "c", "d")
    }
    assert (counts["in"], counts["out"], counts["quarantined"]) == (8, 5, 3)
    assert all("-held-00" in row["detail"] for row in quarantine)
    segment.segment(table, tmp_path, tmp_path / "off", Segment(0.2, 6.0, -60.0), Audio(RATE, 2.0), tmp_path / "w")
    assert shards.read_shards(tmp_path / "off", "segments").num_rows == 16


def test_an_impossible_limit_is_named() -> None:
    with pytest.raises(ConfigError, match=r"max_bit_errors is 0\.5"):
        Segment(0.2, 6.0, -60.0, 0.5)


@pytest.mark.real
def test_real_recordings_are_told_apart() -> None:
    """Of one recording for each Freesound id, two are the same sound under two ids (crackling fire); no others are."""
    if not REAL.is_dir():
        pytest.skip("the real recordings are not here")
    with (REAL / "manifest.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["label"] in ("crackling_fire", "dog", "rain", "clock_tick")]
    rules = Segment(0.2, 6.0, -60.0)
    wavs = {row["file"]: segment.load(REAL / row["file"], None, None, rules, RATE)[0] for row in rows}
    owners = {row["file"]: row["source_id"] for row in rows}
    known = Index((name, owners[name], *fingerprint(wav, RATE, FINE)) for name, wav in wavs.items())
    twins = set()
    for name, wav in wavs.items():
        found = known.find(*fingerprint(wav, RATE), set(owners.values()) - {owners[name]}, LIMIT)
        if found:
            twins.add(frozenset([owners[name], found.group]))
    assert twins == {frozenset(["freesound:28314", "freesound:30322"])}
