"""Clips to segments: mono, one rate, one length, with something to hear in them (paper, appendix A).

Rules, in order: unreadable files, too short ones and silent ones are quarantined; channels are averaged; the DC offset
is removed; resampling (soxr); a clip beyond full scale is scaled down to it. Then the clip is cut into pieces of one
segment without overlap. What remains at its end is dropped and counted; a clip shorter than a segment is one piece,
zero-padded, its true length kept. Pieces that are silent or below the signal-to-noise gate (`audio.snr_db`) are
quarantined one by one, and so are near-duplicates of held-out pieces (`fingerprint.py`), whatever their recording is
called: train gives way to validation and test, validation to test. Held-out clips are read twice for that. What a rule
changed is counted under its name (`FIXES`). Clips are segmented in pieces that any process can take (`siren.engine`);
order and bytes of the result do not depend on which.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from siren import audio, shards
from siren.collect import fingerprint
from siren.config import Audio, Segment
from siren.engine import LOCAL, Engine, gather, noted, notes, pieces, threaded

SLACK_SECONDS = 0.01  # so much may be missing from a piece before it counts as residue: resampling rounds lengths
YIELDS = {"train": ("test", "val"), "val": ("test",)}  # split: those to which its near-duplicates give way
OFFSET = 1e-3  # of full scale: a mean above it counts as a DC offset
FIXES = ("end_clamped", "mixed_down", "dc_removed", "resampled", "scaled_down", "residue_dropped", "padded")
SHARD_BYTES = 128 * 2**20
PIECE_CLIPS = 32  # that one process cuts together at most, and
PIECE_BYTES = 16 * 2**20  # of their files: at four times as many, a third of the time went into fresh memory
CLIP_COLUMNS = ("recording_id", "source", "split", "captions", "labels", "relation", "title", "licence")
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("clip_id", pa.string()),
        ("recording_id", pa.string()),
        ("source", pa.string()),
        ("start", pa.float64()),  # seconds from the beginning of the clip
        ("num_samples", pa.int32()),  # true length, without padding
        ("snr_db", pa.float32()),
        ("split", pa.string()),
        ("captions", pa.list_(pa.string())),
        ("labels", pa.list_(pa.string())),
        ("relation", pa.string()),
        ("title", pa.string()),
        ("licence", pa.string()),
        ("pcm", pa.binary()),  # little-endian int16, zero-padded to the segment's length
    ]
)


@dataclass
class Outcome:
    """What became of one clip."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    quarantine: list[dict[str, str]] = field(default_factory=list)
    residue_seconds: float = 0.0
    fixes: list[str] = field(default_factory=list)  # names of `FIXES`

    def reject(self, item: str, reason: str, detail: str) -> None:
        self.quarantine.append({"item": item, "stage": "segment", "reason": reason, "detail": detail})


def segment(
    clips: pa.Table, folder: Path, out: Path, settings: Segment, format: Audio, work: Path, engine: Engine = LOCAL
) -> tuple[list[dict[str, str]], dict[str, float]]:
    """Write the segments of all `clips` (whose files lie in `folder`) as shards in `out`.

    `work`: where pieces are put until the shards are written; those of an earlier run are not made again. Returns the
    quarantine rows and counts: clips in = out (at least one segment) + quarantined; segments; pieces quarantined out of
    clips that are not; seconds of sound kept, and seconds of residue dropped; clips that each of `FIXES` changed, as
    "fix/NAME".
    """
    quarantine: list[dict[str, str]] = []
    counts: Counter[str] = Counter({"in": clips.num_rows})
    known = () if settings.max_bit_errors is None else held_out(clips, folder, settings, format, work, engine)
    make = partial(Segmenter, folder, settings, format, known)
    paths = pieces(engine, make, _parts(clips, folder), work, "segment", "clip")
    for outcome in (Outcome(**facts) for path in paths for facts in notes(path)):
        quarantine += outcome.quarantine
        counts["segments"] += len(outcome.rows)
        counts["out" if outcome.rows else "quarantined"] += 1
        counts["pieces_quarantined"] += len(outcome.quarantine) if outcome.rows else 0
        counts["samples"] += sum(row["num_samples"] for row in outcome.rows)
        counts.update(f"fix/{name}" for name in outcome.fixes)
        counts["residue_samples"] += round(outcome.residue_seconds * format.sample_rate)
    gather(engine, paths, out, "segments", max(1, SHARD_BYTES // (2 * format.segment_samples)))
    names = ("in", "out", "quarantined", "segments", "pieces_quarantined")
    seconds = {f"{name}seconds": counts[f"{name}samples"] / format.sample_rate for name in ("", "residue_")}
    fixes = {f"fix/{name}": counts[f"fix/{name}"] for name in FIXES if counts[f"fix/{name}"]}
    return quarantine, {name: counts[name] for name in names} | seconds | fixes


def _parts(clips: pa.Table, folder: Path) -> list[pa.Table]:
    """Copies, because a slice that is sent takes the whole table with it. At least one, which may be empty."""
    parts: list[list[int]] = [[]]
    held = 0
    for row, path in enumerate(clips["path"].to_pylist()):
        size = _size(folder / path)
        if parts[-1] and (len(parts[-1]) == PIECE_CLIPS or held + size > PIECE_BYTES):
            parts.append([])
            held = 0
        parts[-1].append(row)
        held += size
    return [clips.take(pa.array(rows, pa.int64())) for rows in parts]


def _size(path: Path) -> int:
    """Bytes; 0 of a file that cannot be asked, which is quarantined when it is read."""
    try:
        return path.stat().st_size
    except (OSError, ValueError):
        return 0


class Segmenter:
    """Clips to the table of their segments, which carries what became of each clip."""

    def __init__(self, folder: Path, settings: Segment, format: Audio, known: Sequence[Path]) -> None:
        self.folder, self.settings, self.format = folder, settings, format
        self.known = index(known) if known else None

    def __call__(self, clips: pa.Table) -> pa.Table:
        found = list(outcomes(clips, self.folder, self.settings, self.format, 1, self.known))
        table = shards.table([row for outcome in found for row in outcome.rows], SCHEMA)
        short = [[{"num_samples": row["num_samples"]} for row in outcome.rows] for outcome in found]
        return noted(table, [asdict(replace(outcome, rows=rows)) for outcome, rows in zip(found, short, strict=True)])


def held_out(
    clips: pa.Table, folder: Path, settings: Segment, format: Audio, work: Path, engine: Engine = LOCAL
) -> list[Path]:
    """Fingerprints of all pieces of validation and test, in files: `index` reads them."""
    import pyarrow.compute as pc

    some = clips.filter(pc.is_in(clips["split"], pa.array(["test", "val"])))
    make = partial(Fingerprinter, folder, settings, format)
    return pieces(engine, make, _parts(some, folder), work / "held_out", "held out", "clip")


def index(paths: Sequence[Path]) -> fingerprint.Index:
    """What to look pieces up in."""
    rows = (row for path in paths for row in shards.read_table(path).to_pylist())
    return fingerprint.Index(
        (row["id"], row["split"], np.frombuffer(row["bits"], np.uint32), np.frombuffer(row["heard"], bool))
        for row in rows
    )


class Fingerprinter:
    """Clips to a table of the fingerprints of their pieces."""

    SCHEMA = pa.schema([("id", pa.string()), ("split", pa.string()), ("bits", pa.binary()), ("heard", pa.binary())])

    def __init__(self, folder: Path, settings: Segment, format: Audio) -> None:
        self.folder, self.settings, self.format = folder, settings, format

    def __call__(self, clips: pa.Table) -> pa.Table:
        found = outcomes(clips, self.folder, self.settings, self.format, 1)
        return shards.table([self._entry(row) for outcome in found for row in outcome.rows], self.SCHEMA)

    def _entry(self, row: dict[str, Any]) -> dict[str, Any]:
        wav = shards.pcm_to_float(row["pcm"])[: row["num_samples"]]
        bits, heard = fingerprint.fingerprint(wav, self.format.sample_rate, fingerprint.FINE)
        return {"id": row["id"], "split": row["split"], "bits": bits.tobytes(), "heard": heard.tobytes()}


def outcomes(
    clips: pa.Table,
    folder: Path,
    settings: Segment,
    format: Audio,
    threads: int = 2,
    known: fingerprint.Index | None = None,
) -> Iterator[Outcome]:
    """One `Outcome` for each clip, in the order of the table. Reading and resampling leave Python, so threads pay.

    No more than a few clips are ahead of the one that is asked for: they may be long.
    """
    rows = (clip for batch in clips.to_batches(max_chunksize=256) for clip in batch.to_pylist())
    work = partial(segment_clip, folder=folder, settings=settings, format=format, known=known)
    return threaded(work, rows, threads, 4 * threads)


def segment_clip(
    clip: dict[str, Any],
    folder: Path,
    settings: Segment,
    format: Audio,
    known: fingerprint.Index | None = None,
) -> Outcome:
    """Apply the rules to one clip. `known`: held-out pieces that no piece of another split may be like."""
    outcome = Outcome()
    rate, length = format.sample_rate, format.segment_samples
    try:
        wav, outcome.fixes = load(folder / clip["path"], clip["start"], clip["end"], settings, rate)
    except audio.AudioError as error:
        outcome.reject(clip["id"], error.reason, error.detail)
        return outcome
    pieces = max(1, (len(wav) + round(SLACK_SECONDS * rate)) // length)
    residue = len(wav) - pieces * length
    outcome.residue_seconds = max(0, residue) / rate
    if residue:
        outcome.fixes.append("residue_dropped" if residue > 0 else "padded")
    for index in range(pieces):
        name = f"{clip['id']}-{index:03d}"
        piece = wav[index * length : (index + 1) * length]
        snr, loudest = audio.snr_db(piece, rate), decibels(piece)
        if loudest < settings.silence_dbfs:
            outcome.reject(name, "silent", f"its peak is {loudest:.1f} dBFS, below {settings.silence_dbfs:g}")
        elif snr < settings.min_snr_db:
            outcome.reject(name, "low_snr", f"signal-to-noise {snr:.1f} dB is below {settings.min_snr_db:g} dB")
        elif twin := _twin(piece, clip["split"], settings, format, known):
            detail = f"it is {twin.name!r} of {twin.group}, but for {twin.error_rate:.0%} of the fingerprint's bits"
            outcome.reject(name, "near_duplicate", detail)
        else:
            row = {key: clip[key] for key in CLIP_COLUMNS}
            row |= {"id": name, "clip_id": clip["id"], "start": (clip["start"] or 0.0) + index * length / rate}
            row |= {"num_samples": len(piece), "snr_db": snr}
            row["pcm"] = shards.float_to_pcm(piece).ljust(2 * length, b"\0")
            outcome.rows.append(row)
    return outcome


def _twin(
    piece: np.ndarray, split: str, settings: Segment, format: Audio, known: fingerprint.Index | None
) -> fingerprint.Known | None:
    """The held-out piece that this one is like."""
    if known is None or settings.max_bit_errors is None or split not in YIELDS:
        return None
    return known.find(*fingerprint.fingerprint(piece, format.sample_rate), YIELDS[split], settings.max_bit_errors)


def load(
    path: Path, start: float | None, end: float | None, settings: Segment, rate: int
) -> tuple[np.ndarray, list[str]]:
    """A clip's file as mono at `rate`, without DC, within full scale, [S]; and which of `FIXES` changed it.

    Raises `AudioError` with the reason.
    """
    wav, source = audio.read(path)
    seconds = wav.shape[1] / source
    if start is not None and start >= seconds:
        raise audio.AudioError("past_end", f"it begins at {start:g} s of a file that lasts {seconds:.4g} s")
    wav = wav[:, round((start or 0.0) * source) : None if end is None else round(end * source)]
    if wav.shape[1] < settings.min_seconds * source:
        detail = f"it lasts {wav.shape[1] / source:.4g} s, less than {settings.min_seconds:g} s"
        raise audio.AudioError("too_short", detail)
    mono = audio.to_mono(wav)
    offset = mono.mean(dtype=np.float64).astype(np.float32)
    mono -= offset  # what was read is nobody else's
    if decibels(mono) < settings.silence_dbfs:
        detail = f"its peak is {decibels(mono):.1f} dBFS, below {settings.silence_dbfs:g}"
        raise audio.AudioError("silent", detail)
    mono = audio.resample(mono, source, rate)
    full = audio.peak(mono)
    changed = (end is not None and end > seconds + SLACK_SECONDS, len(wav) > 1, abs(offset) > OFFSET, source != rate)
    fixes = [name for name, done in zip(FIXES, (*changed, full > 1.0), strict=False) if done]
    return mono / full if full > 1.0 else mono, fixes


def decibels(wav: np.ndarray) -> float:
    """Peak in dB relative to full scale, at least -200."""
    return float(20 * np.log10(max(audio.peak(wav), 1e-10)))
