"""Parts of videos that a manifest lists: the id of each, from when to when, and what people said of it, if they did.

CSV, JSONL or Parquet with the columns video, start, end, and perhaps caption, label (several between semicolons), title
(which a captioner may read) and split (train without it). `siren gaps` makes one of a folder of transcripts.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siren.collect.fetch import tables, videos
from siren.collect.fetch.download import Downloader
from siren.collect.fetch.media import Item, Row, rejected
from siren.collect.sources import manifest as manifests
from siren.collect.sources.folder import SPLITS
from siren.collect.sources.manifest import BadRow, seconds, text, texts
from siren.config import parse, require

COLUMNS = ("video", "start", "end")


@dataclass(frozen=True)
class Options:
    manifest: str
    watch: str = videos.WATCH
    yt_dlp: tuple[str, ...] = ()  # more arguments for yt-dlp


def items(options: dict[str, Any], downloader: Downloader) -> Iterator[Item | Row]:
    """Parts in the order of the manifest: those of one video out of one download, several captions of one together."""
    settings = parse(Options, options, "collect.fetch.sources videos")
    path = Path(settings.manifest).expanduser()
    require(path.is_file(), f"the source videos has manifest {settings.manifest!r}; there is no such file")
    videos.require_tools()
    try:
        rows = manifests.read(path)
    except BadRow as error:
        yield rejected(path.name, error.reason, f"{path.name}: {error}")
        return
    names = {name for _, row in rows if isinstance(row, dict) for name in row}
    missing = [name for name in COLUMNS if names and name not in names]
    require(not missing, f"{path.name} has no column {', '.join(missing)}; it has {', '.join(sorted(names))}")
    found: list[Item | Row] = []
    for line, row in rows:
        try:
            if isinstance(row, BadRow):
                raise row
            found.append(_item(row, settings))
        except BadRow as error:
            found.append(rejected(f"{path.name}:{line}", error.reason, f"{path.name} line {line}: {error}"))
    yield from videos.together(list(tables.merged(found)))


def _item(row: dict[str, Any], settings: Options) -> Item:
    video, split = text(row.get("video"), "video"), text(row.get("split"), "split").lower() or "train"
    start, end = seconds(row.get("start"), "start"), seconds(row.get("end"), "end")
    if not videos.ID.fullmatch(video):
        raise BadRow("bad_row", f"{manifests.shown(video)} is no YouTube id")
    if start is None or end is None or end <= start:
        raise BadRow("bad_time", f"it lasts from {start} to {end} s; both are needed, and end after start")
    if split not in SPLITS:
        raise BadRow("bad_split", f"split is {manifests.shown(split)}; it must be train, val or test")
    cut = videos.Cut(video, start, end, settings.watch, settings.yt_dlp)
    captions, labels = texts(row.get("caption"), "caption"), texts(row.get("label"), "label", ";")
    title = text(row.get("title"), "title") or None
    recording = f"youtube:{video}"
    return Item(f"videos-{cut.id}", recording, SPLITS[split], cut, captions=captions, labels=labels, title=title)
