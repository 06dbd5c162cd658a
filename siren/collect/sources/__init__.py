"""Where clips come from. A source is one file and one entry of `SOURCES`.

A source is a function `(options, folder, audio, seed) -> (rows, quarantine)`: it writes sound files under
`folder/audio` and returns one row for each clip (the columns of `CLIPS_SCHEMA`) and one row for each thing it had
to leave out, with the reason.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from siren.collect.sources import folder, scenes
from siren.config import Audio, ConfigError, Source

Rows = list[dict[str, Any]]
SourceFunction = Callable[[dict[str, Any], Path, Audio, int], tuple[Rows, Rows]]

SOURCES: dict[str, SourceFunction] = {"scenes": scenes.fetch, "folder": folder.fetch}

CLIPS_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("path", pa.string()),  # below the folder of the clips
        ("source", pa.string()),
        ("recording_id", pa.string()),  # clips of one recording never go to two splits
        ("start", pa.float64()),  # seconds within the recording, where known
        ("end", pa.float64()),
        ("captions", pa.list_(pa.string())),
        ("labels", pa.list_(pa.string())),  # in the order of the events
        ("relation", pa.string()),  # one | while | then, where known
        ("licence", pa.string()),
        ("author", pa.string()),
        ("split", pa.string()),  # a hint: train | val | test
        ("sha256", pa.string()),  # of the file
    ]
)


def find(kind: str) -> SourceFunction:
    """The source of this name. Raises `ConfigError` naming those there are."""
    if kind not in SOURCES:
        raise ConfigError(f"collect.fetch.sources has kind {kind!r}; there are {', '.join(SOURCES)}")
    return SOURCES[kind]


def collect(
    sources: Sequence[Source], folder: Path, audio: Audio, seed: int
) -> tuple[pa.Table, list[dict[str, str]], int]:
    """All sources into one folder: the clips (`CLIPS_SCHEMA`), what was left out, and how many there were.

    Left out here: an id used before, a file with the bytes of an earlier one, and a clip of a recording of which
    earlier clips are in another split. What was named first is kept.
    """
    rows: Rows = []
    quarantine: Rows = []
    for source in sources:
        found, bad = find(source.kind)(source.options, folder, audio, seed)
        rows += found
        quarantine += bad
    total = len(rows) + len(quarantine)
    kept = []
    ids: set[str] = set()
    files: dict[tuple[str, float | None, float | None], str] = {}
    splits: dict[str, tuple[str, str]] = {}
    for row in rows:
        content = (row["sha256"], row["start"], row["end"])
        split, first = splits.get(row["recording_id"], (row["split"], row["id"]))
        if row["id"] in ids:
            reason, detail = "duplicate_id", f"id {row['id']!r} was used by an earlier source"
        elif content in files:
            reason, detail = "duplicate", f"the same bytes as {files[content]!r}"
        elif split != row["split"]:
            reason, detail = "two_splits", f"{row['split']}, but {first!r} of the same recording is in {split}"
        else:
            ids.add(row["id"])
            files[content] = row["id"]
            splits[row["recording_id"]] = (split, first)
            kept.append(row)
            continue
        quarantine.append({"item": row["id"], "stage": "fetch", "reason": reason, "detail": detail})
    used = {row["path"] for row in kept}
    for path in (folder / "audio").iterdir():
        if f"audio/{path.name}" not in used:
            path.unlink()
    return pa.Table.from_pylist(kept, schema=CLIPS_SCHEMA), quarantine, total
