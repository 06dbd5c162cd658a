"""Where clips come from. A source is one file and one entry of `SOURCES` or `REMOTE`.

One of `SOURCES` is a function `(options, folder, audio, seed, engine) -> (rows, quarantine)`: it writes sound files
under `folder/audio`, by the engine where that pays, and returns one row for each clip (the columns of `CLIPS_SCHEMA`)
and one row for each thing it had to leave out, with the reason. One of `REMOTE` is a function
`(options, downloader) -> items`: it reads the index of its dataset and says where the sounds are; `siren.collect.fetch`
gets them. Each of those takes the option `limit`, too, and sources of videos `transcripts`.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from siren.collect.fetch import licences
from siren.collect.fetch.download import Downloader
from siren.collect.fetch.media import Item, Row, obtain
from siren.collect.fetch.transcripts import Transcripts, wordless
from siren.collect.sources import (
    audiocaps,
    audioset,
    avsync15,
    bbc,
    clotho,
    esc50,
    folder,
    freesound,
    scenes,
    soundbible,
    vggsound,
    videos,
)
from siren.config import Audio, ConfigError, Source, parse, require
from siren.engine import LOCAL, Engine

Rows = list[dict[str, Any]]
SourceFunction = Callable[[dict[str, Any], Path, Audio, int, Engine], tuple[Rows, Rows]]

SOURCES: dict[str, SourceFunction] = {"scenes": scenes.fetch, "folder": folder.fetch}
REMOTE: dict[str, Callable[[dict[str, Any], Downloader], Iterator[Item | Row]]] = {
    "audiocaps": audiocaps.items,
    "audioset": audioset.items,
    "avsync15": avsync15.items,
    "bbc": bbc.items,
    "clotho": clotho.items,
    "esc50": esc50.items,
    "freesound": freesound.items,
    "soundbible": soundbible.items,
    "vggsound": vggsound.items,
    "videos": videos.items,
}

VIDEOS = ("audiocaps", "audioset", "avsync15", "vggsound", "videos")  # of REMOTE, those that need `videos.REMEDIES`

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
        ("title", pa.string()),  # what its author called it, for captioners that read it
        ("licence", pa.string()),
        ("author", pa.string()),
        ("split", pa.string()),  # a hint: train | val | test
        ("sha256", pa.string()),  # of the file
    ]
)


def collect(
    sources: Sequence[Source],
    folder: Path,
    audio: Audio,
    seed: int,
    downloader: Downloader | None = None,
    wanted: Sequence[str] | None = None,
    engine: Engine = LOCAL,
) -> tuple[pa.Table, list[dict[str, str]], int]:
    """All sources into one folder: the clips (`CLIPS_SCHEMA`), what was left out, and how many there were.

    Left out here: a clip whose licence is not one of those wanted, an id used before, a file with the bytes of an
    earlier one, and a clip of a recording (or of a file) of which earlier clips are in another split. What was named
    first is kept, so the source with the held-out test comes first. Sources of `REMOTE` need a downloader.
    """
    rows: Rows = []
    quarantine: Rows = []
    for source in sources:
        if source.kind in SOURCES:
            found, bad = SOURCES[source.kind](source.options, folder, audio, seed, engine)
        elif source.kind in REMOTE:
            if downloader is None:
                raise ValueError(f"the source {source.kind} comes over the network; pass a downloader")
            options = {key: value for key, value in source.options.items() if key != "limit"}
            limit = source.options.get("limit")
            require(
                limit is None or (isinstance(limit, int) and limit > 0), f"{source.kind}: limit is {limit!r}; a count"
            )
            transcripts = options.pop("transcripts", None)
            require(
                transcripts is None or source.kind in VIDEOS,
                f"{source.kind}: transcripts is an option of sources of videos: {', '.join(VIDEOS)}",
            )
            items = REMOTE[source.kind](options, downloader)
            if transcripts is not None:
                items = wordless(items, parse(Transcripts, transcripts, f"{source.kind} transcripts"))
            items = itertools.islice(items, limit)
            found, bad = obtain(items, source.kind, folder, downloader, wanted, engine)
        else:
            kinds = ", ".join([*SOURCES, *REMOTE])
            raise ConfigError(f"collect.fetch.sources has kind {source.kind!r}; there are {kinds}")
        rows += found
        quarantine += bad
    total = len(rows) + len(quarantine)
    kept = []
    ids: set[str] = set()
    files: dict[tuple[str, float | None, float | None], str] = {}
    splits: dict[str, tuple[str, str]] = {}
    for row in rows:
        content = (row["sha256"], row["start"], row["end"])
        names = (row["recording_id"], f"sha256:{row['sha256']}")  # a file is a recording, whatever it is called
        split, first = next((splits[name] for name in names if name in splits), (row["split"], row["id"]))
        if not licences.allowed(row["licence"], wanted):
            reason, detail = "licence", f"its licence is {licences.normalise(row['licence'])}"
        elif row["id"] in ids:
            reason, detail = "duplicate_id", f"id {row['id']!r} was used by an earlier source"
        elif content in files:
            reason, detail = "duplicate", f"the same bytes as {files[content]!r}"
        elif split != row["split"]:
            reason, detail = "two_splits", f"{row['split']}, but {first!r} of the same recording is in {split}"
        else:
            ids.add(row["id"])
            files[content] = row["id"]
            splits |= dict.fromkeys(names, (split, first))
            kept.append(row)
            continue
        quarantine.append({"item": row["id"], "stage": "fetch", "reason": reason, "detail": detail})
    used = {row["path"] for row in kept}
    for path in (folder / "audio").iterdir():
        if f"audio/{path.name}" not in used:
            path.unlink()
    return pa.Table.from_pylist(kept, schema=CLIPS_SCHEMA), quarantine, total
