"""Two folders of sounds and a manifest: which file belongs to which prompt, checked before anything is computed.

Files are paired by their name without folder and suffix, as the field does. Nothing falls back: what is missing, too
much, unreadable or of another rate is named. Public loaders replace an unreadable file by its neighbour, which hides
failed generations.
"""

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from siren import audio
from siren.hashing import file_sha256
from siren.progress import track
from siren.textfile import lines, read_text

SUFFIXES = (".flac", ".mp3", ".ogg", ".wav")


@dataclass(frozen=True)
class Sounds:
    """The clips of one folder in the order of the prompts."""

    paths: list[Path]
    hashes: list[str]  # SHA-256 of each file's bytes
    lengths: list[int]  # samples at the files' own rate
    sample_rate: int
    unlisted: list[str]  # sound files of the folder that the manifest does not name
    channels: list[int]

    def facts(self) -> dict[str, Any]:
        """What a figure needs beside it to be repeated."""
        return {
            "files": len(self.paths),
            "unlisted": len(self.unlisted),
            "identical": len(self.hashes) - len(set(self.hashes)),
            "sample_rate": self.sample_rate,
            "channels": [min(self.channels), max(self.channels)],
            "seconds": round(sum(self.lengths) / self.sample_rate, 3),
            "seconds_range": [round(f(self.lengths) / self.sample_rate, 3) for f in (min, max)],
            "content_sha256": hash_of(self.hashes),
        }


def hash_of(items: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(items).encode()).hexdigest()


def read_manifest(path: str | Path, keep: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Rows {id, caption, labels} by id, of a table with the columns file, caption and perhaps labels (or label).

    CSV, JSON lines or Parquet. Several labels of a cell stand between semicolons; of the columns `keep` the row has the
    text as well. Raises ValueError naming the rows that lack something or share a name.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no manifest at {path}; it is a CSV, JSONL or Parquet table with columns file and caption")
    rows: list[dict[str, Any]] = []
    for number, row in enumerate(table(path), 1):
        if absent := [key for key in ("file", "caption") if not str(row.get(key) or "").strip()]:
            raise ValueError(f"{path}, row {number} has no {' and no '.join(absent)}; every clip needs both")
        labels = row.get("labels", row.get("label")) or []
        labels = labels.split(";") if isinstance(labels, str) else labels
        rows.append(
            {
                "id": Path(str(row["file"])).stem,
                "caption": str(row["caption"]).strip(),
                "labels": [name for label in labels if (name := str(label or "").strip())],
                **{key: str(row.get(key) or "").strip() for key in keep},
            }
        )
    if not rows:
        raise ValueError(f"{path} lists no clips")
    counts = Counter(str(row["id"]) for row in rows)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise ValueError(f"{path} has {named(twice)} more than once; one caption a clip, and no two files of one name")
    return sorted(rows, key=lambda row: row["id"])


def table(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        return list(pq.read_table(path).to_pylist())
    if path.suffix in (".jsonl", ".ndjson"):
        return [_row(path, number, line) for number, line in enumerate(lines(read_text(path)), 1) if line.strip()]
    if path.suffix == ".csv":
        return list(csv.DictReader(io.StringIO(read_text(path), newline="")))
    raise ValueError(f"{path.name} is no manifest: the suffix must be .csv, .jsonl or .parquet")


def _row(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {number} is no JSON: {error}") from None
    if not isinstance(row, dict):
        raise ValueError(f"{path}, line {number} is no object with file and caption: {line[:60]}")
    return row


def manifest_in(folder: Path) -> Path:
    """The one table that lies in a folder of sounds. Raises ValueError where there is none, or more than one."""
    tables = sorted(p for p in folder.glob("*") if p.suffix in (".csv", ".jsonl", ".ndjson", ".parquet"))
    if len(tables) != 1:
        found = f"there are {', '.join(p.name for p in tables)}" if tables else "there is none"
        raise ValueError(
            f"which clips belong to which captions? {found} in {folder}; give the manifest as a third path"
        )
    return tables[0]


def gather(folder: str | Path, ids: Sequence[str], label: str, exact: bool = False) -> Sounds:
    """The clips `ids` in `folder`, at any depth. With `exact`, there may be no others.

    Raises ValueError that names the files that are missing, too many, unreadable, or of another sample rate.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{label}: there is no folder {folder}")
    found: dict[str, Path] = {}
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()):
        if path.stem in found:
            raise ValueError(f"{label}: {found[path.stem]} and {path} have one name; clips are paired by it")
        found[path.stem] = path
    if missing := [name for name in ids if name not in found]:
        others = {path.stem: path.name for path in folder.rglob("*") if path.stem in missing and path.is_file()}
        near = f"; {', '.join(list(others.values())[:5])} there: the suffix is none of {', '.join(SUFFIXES)}"
        told = f"{label}: {len(missing)} of {len(ids)} clips are missing in {folder}: {named(missing)}"
        raise ValueError(told + (near if others else ""))
    unlisted = sorted(set(found) - set(ids))
    if exact and unlisted:
        raise ValueError(
            f"{label}: {folder} has {len(unlisted)} sounds that the manifest does not list: {named(unlisted)}; "
            "move them away, or list them"
        )
    paths = [found[name] for name in ids]
    headers = [_header(path, label) for path in paths]
    rates = Counter(rate for rate, *_ in headers)
    if len(rates) > 1:
        example = {rate: next(p.name for p, h in zip(paths, headers, strict=True) if h[0] == rate) for rate in rates}
        told = ", ".join(f"{rates[rate]} at {rate} Hz (such as {example[rate]})" for rate in sorted(rates))
        raise ValueError(f"{label}: {folder} mixes sample rates: {told}; a set is measured at one")
    hashes = [file_sha256(path) for path in track(paths, f"{label}: hashing", unit="file")]
    all_rates, lengths, channels = (list(column) for column in zip(*headers, strict=True))
    return Sounds(paths, hashes, lengths, all_rates[0], unlisted, channels)


def _header(path: Path, label: str) -> tuple[int, int, int]:
    """Rate, samples and channels that the file promises; `read` holds it to them."""
    import soundfile

    try:
        info = soundfile.info(path)
    except (soundfile.SoundFileError, RuntimeError) as error:
        raise ValueError(f"{label}: {path.name} is not readable as sound: {error}") from None
    if info.frames == 0:
        raise ValueError(f"{label}: {path.name} holds no samples")
    return info.samplerate, info.frames, info.channels


def read(path: Path) -> np.ndarray:
    """The first channel, as audioldm_eval takes it (others average them). [S]. Raises `AudioError` with the reason."""
    return audio.read(path)[0][0]


def named(names: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(repr(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
